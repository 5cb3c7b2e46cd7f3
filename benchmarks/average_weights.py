"""The mean of a part's weights at two times of its training.

    python benchmarks/average_weights.py EARLIER.safetensors LATER.safetensors OUT.safetensors [--later 0.7]

The last updates swing about a place that is better than any of them; a mean lies nearer to it (Izmailov et al. 2018,
*Averaging Weights Leads to Wider Optima and Better Generalization*). The two are what `tune_default.py` keeps of a
stage, a copy made before it went on and the end; OUT is as `pack_default.py` reads a part. Where the part is the
retriever's, blocks are to be embedded anew: OUT's folder must have no blocks.npy.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from realm_min.files.atomic import write_atomically

KEPT = "free/"  # what `tune_default.py` has before the key of a weight


def weights_of(path: Path) -> dict[str, Tensor]:
    """The float32 weights of a stage's checkpoint, by key."""
    found = {key.removeprefix(KEPT): tensor for key, tensor in load_file(path).items() if key.startswith(KEPT)}
    if not found:
        raise ValueError(f"{path} has no weights of a stage: give embedder.safetensors of tune_default.py's --out")
    return found


def mean_of(earlier: dict[str, Tensor], later: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """share times the later weights and 1 - share times the earlier.

    Raises:
        ValueError: a share outside of 0 to 1; other keys or shapes.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"--later {share}: give a share from 0 to 1")
    shapes = [{key: tuple(tensor.shape) for key, tensor in weights.items()} for weights in (earlier, later)]
    if shapes[0] != shapes[1]:
        other = sorted(key for key in shapes[0] | shapes[1] if shapes[0].get(key) != shapes[1].get(key))
        raise ValueError(f"the two are of different models: {other[0]} differs, one of {len(other)}")
    return {key: earlier[key].mul(1 - share).add_(later[key], alpha=share) for key in earlier}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("earlier", type=Path, metavar="EARLIER.safetensors")
    parser.add_argument("later", type=Path, metavar="LATER.safetensors")
    parser.add_argument("out", type=Path, metavar="OUT.safetensors")
    parser.add_argument("--later", type=float, default=0.7, dest="share", metavar="SHARE", help="of the later weights")
    given = parser.parse_args()
    try:
        found = mean_of(weights_of(given.earlier), weights_of(given.later), given.share)
    except ValueError as error:
        parser.error(str(error))
    with write_atomically(given.out) as temporary:
        save_file(found, temporary)


if __name__ == "__main__":
    main()
