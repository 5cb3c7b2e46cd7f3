"""The files of Google's release, read by TensorFlow, the optional extra `tf`: checkpoints, and TFRecords of blocks.

TensorFlow only reads them, and checks their checksums; what their variables are called in our models is told by
`tensorflow_checkpoint.py`.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from .causes import check_readable, raise_machine_error

if TYPE_CHECKING:
    import numpy as np


def import_tensorflow() -> ModuleType:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # it greets on import
    check_tensorflow()
    if "tensorflow" not in sys.modules:
        with suppress(ImportError):  # imported after TensorFlow it ends the process (a segmentation fault)
            import triton  # noqa: F401
    import tensorflow

    return tensorflow


def check_tensorflow() -> None:
    """ModuleNotFoundError, with the remedy, where TensorFlow is not installed."""
    if find_spec("tensorflow") is None:
        raise ModuleNotFoundError(
            "reading TensorFlow files needs tensorflow: pip install 'realm-min[tf]'", name="tensorflow"
        )


def find_checkpoint(path: str | os.PathLike) -> str:
    """The prefix that TensorFlow knows a checkpoint by, from the prefix, the .index file, or the folder it is in.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the folder holds several.
    """
    path = Path(path)
    if path.suffix == ".index":
        path = path.with_suffix("")
    if Path(f"{path}.index").is_file():
        return str(path)
    found = sorted([*path.glob("*.index"), *path.glob("variables/*.index")])
    if not found:
        raise FileNotFoundError(
            f"{path} is no TensorFlow checkpoint: give the common start of its files' names, for model.ckpt-1.index "
            "and model.ckpt-1.data-00000-of-00001 this is model.ckpt-1, or the folder that they are in"
        )
    if len(found) > 1:
        names = ", ".join(str(file.relative_to(path).with_suffix("")) for file in found)
        raise ValueError(f"{path} holds several checkpoints ({names}): give one of them")
    return str(found[0].with_suffix(""))


class Checkpoint:
    """The variables of a TensorFlow checkpoint: `shapes` by name, and `read(name)`.

    Raises:
        FileNotFoundError: there is no checkpoint at `path`, or one of its data files is missing.
        ValueError: it is damaged.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = find_checkpoint(path)
        tf = import_tensorflow()
        try:
            self._reader = tf.train.load_checkpoint(self.path)
            self.shapes: dict[str, list[int]] = self._reader.get_variable_to_shape_map()
        except Exception as error:  # TensorFlow raises many kinds; whichever else it is, the files are at fault
            raise_machine_error(error, self.path)
            raise self._damaged(error) from None

    def read(self, name: str) -> np.ndarray:
        try:
            return self._reader.get_tensor(name)
        except Exception as error:  # as above
            raise_machine_error(error, self.path)
            raise self._damaged(error, f" {name} of") from None

    def _damaged(self, error: Exception, what: str = "") -> ValueError:
        return ValueError(
            f"TensorFlow cannot read{what} the checkpoint {self.path} ({_first_line(error)}): "
            "a file is damaged, cut short or missing; fetch all of them again"
        )


def read_blocks(path: str | os.PathLike) -> list[bytes]:
    """The records of a TFRecord file of blocks (`blocks.tfr`): each the UTF-8 text of one block.

    TensorFlow checks the masked CRC32C of every record's length and of its bytes. It takes a file that ends within a
    record's first 12 bytes for complete, so the size of the file is checked here.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a checksum is wrong, the file is cut short, holds no record or one that is not UTF-8 text.
    """
    path = Path(path)
    check_readable(path, f"{path} does not exist: give the TFRecord file of the blocks (blocks.tfr)")
    tf = import_tensorflow()
    blocks: list[bytes] = []
    try:
        for batch in tf.data.TFRecordDataset(str(path)).batch(1024).as_numpy_iterator():
            blocks += batch.tolist()
    except tf.errors.OpError as error:
        raise_machine_error(error, path)
        raise ValueError(f"{path} is damaged or cut short ({_first_line(error)}): fetch it again") from None
    framed = sum(len(block) + 16 for block in blocks)  # length, its checksum, the record, its checksum
    if framed != path.stat().st_size:
        raise ValueError(
            f"{path} is damaged or cut short (its {len(blocks)} records take {framed} of {path.stat().st_size} bytes): "
            "fetch it again"
        )
    if not blocks:
        raise ValueError(f"{path} holds no record: give the TFRecord file of the blocks (blocks.tfr)")
    for number, block in enumerate(blocks):
        try:
            block.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"record {number} of {path} is not UTF-8 text ({error}): give ORQA's blocks.tfr") from None
    return blocks


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
