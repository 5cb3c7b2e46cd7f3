"""Where a command computes, its `--device`; and how, whatever context of torch a caller is in."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a name can be refused without it
    import torch


def add_device(parser: argparse.ArgumentParser) -> None:
    """The option --device."""
    parser.add_argument(
        "--device", metavar="NAME", default="cpu",
        help="where to compute: cpu, cuda or cuda:N; with torchrun, cuda is a GPU for each rank (default: cpu)",
    )  # fmt: skip


def check_device(name: str) -> tuple[str, int | None]:
    """Kind and number of the device of that name, whether it is here or not; without a number, None.

    Raises:
        ValueError: no device has that name.
    """
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise ValueError(f"--device {name} is unknown: give cpu, cuda or cuda:N")
    return kind, int(number) if number else None


def chosen_device(name: str) -> torch.device:
    """The device of that name; a GPU's number is filled in.

    Raises:
        ValueError: no device has that name, or it is not here.
    """
    kind, number = check_device(name)
    import torch

    if kind == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise ValueError(f"--device {name}: torch {torch.__version__} sees no GPU here; leave it out to use the CPU")
    place = torch.cuda.current_device() if number is None else number
    if place >= count:
        raise ValueError(f"--device {name}: this machine has cuda:0 to cuda:{count - 1}")
    return torch.device("cuda", place)


@contextmanager
def plain_arithmetic(kind: str) -> Iterator[None]:
    """Compute on plain tensors of their own dtypes, without torch's autograd and its automatic casts.

    `kind`: of the device, "cpu" say. What is computed in here has gradients by hand, and bounds that lower
    products break.
    """
    import torch

    plain = torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()
    with torch.no_grad(), torch._C.DisableTorchFunctionSubclass(), plain:
        yield
