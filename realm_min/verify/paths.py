"""Five ways to compute a checkpoint's stages: the book in float64, the torch path in float32 and float64, the Triton
kernels, and transformers.

A path has one method for each operation of `stages.py`. Values go in and come out as NumPy arrays; what the path does
in between is its own affair. Parts of a model are loaded one at a time: two trunks in float64 are 2 GB.

Read `reference_path.py` first, which all others are measured against; then `measured_path.py`, what these share, and
`torch_path.py`, `triton_path.py`, `transformers_path.py`.
"""

from __future__ import annotations

import os

import torch

from ..config import RealmConfig
from .measured_path import MeasuredPath
from .stages import StateDict
from .torch_path import TorchPath
from .transformers_path import TransformersPath
from .triton_path import TritonPath


def available_paths(
    kind: str, config: RealmConfig, state_dict: StateDict, against: StateDict | None = None
) -> tuple[list[MeasuredPath], dict[str, str]]:
    """The paths that this machine has, and for each of the others why not.

    The weights of another checkpoint, `against`, are the last path, by torch in float32.
    """
    paths: list[MeasuredPath] = [
        TorchPath(kind, config, state_dict),
        TorchPath(kind, config, state_dict, torch.float64),
    ]
    left_out = {}
    if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1":
        paths.append(TritonPath(kind, config, state_dict))
    else:
        left_out["triton"] = "no GPU here"
    try:
        import transformers
    except ImportError:
        left_out["transformers"] = "not installed; pip install transformers==4.40.2 to compare with it"
    else:
        if transformers.__version__ == "4.40.2":
            paths.append(TransformersPath(kind, config, state_dict))
        else:
            left_out["transformers"] = f"{transformers.__version__} is installed; 4.40.2 is what is compared with"
    if against is not None:
        paths.append(TorchPath(kind, config, against, name="against"))
    return paths, left_out
