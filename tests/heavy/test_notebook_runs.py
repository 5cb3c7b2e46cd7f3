"""Every notebook runs, and prints and draws what is stored: `make test-notebooks`, some minutes."""

import base64
import io
import math
import os
import re
from pathlib import Path

import matplotlib
import matplotlib.image
import nbformat
import numpy as np
import pytest
import ranks
from run_notebooks import SOURCES, execute, read_source

NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")

by_name = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)


@pytest.fixture(scope="session")
def environment(default_cache) -> dict[str, str]:
    """For the kernels: a cache that holds the default model, and one with Matplotlib's list of fonts."""
    own = {"OMP_WAIT_POLICY": "passive", "MPLCONFIGDIR": matplotlib.get_configdir()}
    return {**os.environ, "XDG_CACHE_HOME": str(default_cache), **own}


def stored(source: Path) -> nbformat.NotebookNode:
    return nbformat.read(source.with_suffix(".ipynb"), as_version=4)


@by_name
def test_a_run_gives_the_stored_outputs(source, environment):
    """And the solutions of the exercises run, in the notebook's own kernel, after it."""
    notebook, expected = read_source(source), stored(source)
    notebook.cells += solutions(notebook)
    [outcome] = ranks.finish(ranks.start(execute, 1, notebook, environment, None), seconds=600)
    assert outcome.error is None, outcome.error
    for found, cell in zip(outcome.value.cells[: len(expected.cells)], expected.cells, strict=True):
        if found.cell_type == "code":
            assert_same_outputs(found, cell, compare="varies" not in found.metadata.get("tags", []))


def solutions(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    hidden = "\n".join(re.findall(r"<details>.*?</details>", text, re.DOTALL))
    return [nbformat.v4.new_code_cell(code) for code in re.findall(r"^```python\n(.*?)^```", hidden, re.DOTALL | re.M)]


def assert_same_outputs(found, expected, compare: bool) -> None:
    assert [kind(output) for output in found.outputs] == [kind(output) for output in expected.outputs], found.source
    for one, other in zip(found.outputs, expected.outputs, strict=True) if compare else ():
        if one.output_type == "stream":
            assert_same_text(one.text, other.text)
            continue
        for form, data in one.data.items():
            if form == "image/png":
                assert_same_picture(data, other.data[form])
            else:
                assert_same_text(data, other.data[form])


def kind(output) -> list[str]:
    return [output.output_type, *sorted(output.get("data", {}))]


def assert_same_text(one: str, other: str) -> None:
    """White space aside, and each number to one unit of the last digit printed or a thousandth."""
    assert NUMBER.sub("#", one).split() == NUMBER.sub("#", other).split()
    for a, b in zip(NUMBER.findall(one), NUMBER.findall(other), strict=True):
        assert a == b or math.isclose(value(a), value(b), rel_tol=1e-3, abs_tol=1.01 * max(unit(a), unit(b))), (a, b)


def value(number: str) -> float:
    return float(number.replace(",", ""))


def unit(number: str) -> float:
    """Of the last digit printed; whole numbers have none to spare."""
    digits, _, exponent = number.partition("e")
    decimals = len(digits.partition(".")[2])
    return 10.0 ** (int(exponent or 0) - decimals) if decimals or exponent else 0.0


def assert_same_picture(one: str, other: str) -> None:
    """The size to a few pixels, and the mean brightness in each of 8 x 8 tiles."""
    a, b = (matplotlib.image.imread(io.BytesIO(base64.b64decode(data)))[..., :3] for data in (one, other))
    assert np.allclose(a.shape, b.shape, atol=4)
    assert np.allclose(tiles(a), tiles(b), atol=0.1)


def tiles(picture: np.ndarray) -> list[float]:
    return [tile.mean() for rows in np.array_split(picture, 8) for tile in np.array_split(rows, 8, axis=1)]


def test_text_comparison_can_fail():
    assert_same_text("a 1.25  b 3", "a 1.26 b\n3")
    assert_same_text("loss 1.2345e-03", "loss 1.2346e-03")
    for one, other in (("1.25", "1.28"), ("3 blocks", "4 blocks"), ("a", "b"), ("1.5", "x"), ("1e-3", "3e-3")):
        with pytest.raises(AssertionError):
            assert_same_text(one, other)
