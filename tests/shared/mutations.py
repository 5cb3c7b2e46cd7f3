"""Damage to a file's bytes, drawn: what disks, networks and hands do to files."""

import numpy as np

PAGE = 512


def mutated(whole: bytes, other: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """What was done, and the bytes after it; `other` is a file of the same kind, to splice a header of."""
    kind = rng.choice(
        ["flip", "flip", "flips", "cut", "insert", "delete", "swap pages", "rotate", "zero", "splice", "noise"]
    )
    at = int(rng.integers(len(whole)))
    length = int(rng.integers(1, 64))
    data = bytearray(whole)
    if kind in ("flip", "flips"):
        for place in rng.integers(0, len(data), 1 if kind == "flip" else 5):
            data[place] ^= 1 << int(rng.integers(8))
    elif kind == "cut":
        del data[at:]
    elif kind == "insert":
        data[at:at] = rng.bytes(length)
    elif kind == "delete":
        del data[at : at + length]
    elif kind == "swap pages":
        size = min(PAGE, len(data) // 4)
        a, b = (int(place) * size for place in rng.choice(len(data) // size, 2, replace=False))
        data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]
    elif kind == "rotate":
        part = data[at : at + 256]
        data[at : at + 256] = part[4:] + part[:4]
    elif kind == "zero":
        data[at : at + length] = bytes(len(data[at : at + length]))
    elif kind == "splice":
        data[:at] = other[:at]
    else:
        data[at : at + length] = rng.bytes(len(data[at : at + length]))
    return f"{kind} at {at}", bytes(data)
