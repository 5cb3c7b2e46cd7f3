"""Triton for the kernels beside this file. Whoever computes on the CPU needs none, and imports no kernel."""

import re

OLDEST = (3, 6)


def check_version(found: str) -> None:
    """ModuleNotFoundError if `found`, such as "3.2.0", is older than `OLDEST`."""
    numbers = re.match(r"(\d+)\.(\d+)", found)
    if numbers is None or tuple(map(int, numbers.groups())) < OLDEST:
        raise ModuleNotFoundError(_needed(f"triton {found} is installed"))


def _needed(what_is_there: str) -> str:
    oldest = ".".join(map(str, OLDEST))
    return (
        f"the GPU kernels need triton {oldest} or newer, and {what_is_there}: "
        f'pip install "triton>={oldest}", with a torch that goes with it, or compute on the CPU'
    )


try:
    import triton
except ModuleNotFoundError:
    raise ModuleNotFoundError(_needed("none is installed")) from None
check_version(triton.__version__)

import triton.language as tl  # noqa: E402
from triton import knobs  # noqa: E402

__all__ = ["knobs", "tl", "triton"]
