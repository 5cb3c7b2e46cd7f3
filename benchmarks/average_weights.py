"""The mean of a part's weights at two times of its training.

    python benchmarks/average_weights.py EARLIER.safetensors LATER.safetensors OUT.safetensors [--share 0.7]

The last updates swing about a place that is better than any of them; a mean lies nearer to it (Izmailov et al. 2018,
*Averaging Weights Leads to Wider Optima and Better Generalization*). All three are parts as `tune_default.py --free`
leaves them in OUT/free and `pack_default.py` reads them; a copy of the earlier one is made before its run goes on. The
blocks are to be embedded anew: OUT.safetensors goes to a folder without blocks.npy, beside the other part.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from realm_min.files.atomic import write_atomically


def mean_of(earlier: dict[str, Tensor], later: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """share times the later weights and 1 - share times the earlier.

    Raises:
        ValueError: a share outside of 0 to 1; other keys or shapes.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"--share {share}: give a number from 0 to 1")
    shapes = [{key: tuple(tensor.shape) for key, tensor in weights.items()} for weights in (earlier, later)]
    if shapes[0] != shapes[1]:
        other = sorted(key for key in shapes[0] | shapes[1] if shapes[0].get(key) != shapes[1].get(key))
        raise ValueError(f"the two are of different models: {other[0]} differs, one of {len(other)}")
    return {key: (1 - share) * earlier[key] + share * later[key] for key in earlier}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("earlier", type=Path, metavar="EARLIER.safetensors")
    parser.add_argument("later", type=Path, metavar="LATER.safetensors")
    parser.add_argument("out", type=Path, metavar="OUT.safetensors")
    parser.add_argument("--share", type=float, default=0.7, help="of the later weights")
    given = parser.parse_args()
    try:
        found = mean_of(load_file(given.earlier), load_file(given.later), given.share)
    except ValueError as error:
        parser.error(str(error))
    with write_atomically(given.out) as temporary:
        save_file(found, temporary)


if __name__ == "__main__":
    main()
