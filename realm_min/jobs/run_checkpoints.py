"""The last two checkpoints of a run: the newest, and the one before it, from which the run goes on if the newest is
damaged. It then loses some steps, and ends with the same bits.

    checkpoint.safetensors            weights, the optimizer's state, and the step they stand at
    checkpoint-previous.safetensors   what the former was before
    checkpoint-damaged.safetensors    what the former was when it was found damaged

Each has a checksum. A file takes the former's place by being renamed, so one of the first two is always whole.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ..files.atomic import write_atomically
from ..files.safetensors_file import read_with_metadata, write_safetensors
from ..kinds import checked

CHECKPOINT_FILE = "checkpoint.safetensors"
PREVIOUS_FILE = "checkpoint-previous.safetensors"
DAMAGED_FILE = "checkpoint-damaged.safetensors"


def write_checkpoint(folder: Path, tensors: dict[str, Tensor], done: int) -> None:
    """Write the checkpoint after `done` steps; the one there is becomes the one before it."""
    path = folder / CHECKPOINT_FILE
    with write_atomically(path) as temporary:
        write_safetensors(temporary, tensors, {"done": str(done)})
        if path.is_file():
            os.replace(path, folder / PREVIOUS_FILE)


def read_checkpoint(folder: Path, remark: Callable[[str], None]) -> tuple[int, dict[str, Tensor]] | None:
    """The newest whole checkpoint: the steps done and its tensors; None where there is none yet.

    A newest one that is damaged is put aside, and `remark` is told so.

    Raises:
        ValueError: it is damaged, and there is no whole one before it.
    """
    path, previous = folder / CHECKPOINT_FILE, folder / PREVIOUS_FILE
    if not path.is_file():  # a kill came between two renamings, or before the first checkpoint
        return _read(previous) if previous.is_file() else None
    try:
        return _read(path)
    except ValueError as error:
        if not previous.is_file():
            raise ValueError(f"{error}; there is no checkpoint before it: remove {folder} and start anew") from None
        try:
            found = _read(previous)
        except ValueError as second:
            raise ValueError(f"{error}; so is the one before it ({second}): remove {folder} and start anew") from None
        os.replace(path, folder / DAMAGED_FILE)
        remark(f"{error}; the run goes on from the checkpoint before it, step {found[0]:,}")
        return found


def _read(path: Path) -> tuple[int, dict[str, Tensor]]:
    tensors, metadata = read_with_metadata(path)
    done = metadata.get("done", "")
    if not (done.isascii() and done.isdigit() and len(done) < 20):
        raise ValueError(f"{path} is no checkpoint of a run: it does not say how many steps are done")
    return int(done), tensors


@checked
def checkpoint_steps(folder: str | os.PathLike) -> list[int]:
    """The steps that the checkpoints say they stand at, the newest first; their tensors are not looked at."""
    found = []
    for name in (CHECKPOINT_FILE, PREVIOUS_FILE):
        try:
            with safe_open(Path(folder) / name, "pt") as file:
                found.append(int(file.metadata()["done"]))
        except Exception:  # absent, or whatever the parser says of a damaged one: a resumed run will say so
            continue
    return found


def weights_checksum(tensors: dict[str, Tensor]) -> str:
    """CRC-32 (hexadecimal) of tensors and their names, by which a run knows the weights that it began with."""
    crc = 0
    for key, tensor in sorted(tensors.items()):
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        crc = zlib.crc32(data, zlib.crc32(key.encode(), crc))
    return f"{crc:08x}"
