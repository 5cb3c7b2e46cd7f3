"""What is stored of every notebook belongs to its source. `make test-notebooks` runs them (tests/heavy)."""

import re
from pathlib import Path

import nbformat
import pytest
from run_notebooks import SOURCES, read_source

NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
LARGEST_FILE = 1_000_000  # bytes

by_name = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)


def stored(source: Path) -> nbformat.NotebookNode:
    return nbformat.read(source.with_suffix(".ipynb"), as_version=4)


@by_name
def test_stored_cells_are_those_of_the_source(source):
    cells, stored_cells = (
        [(cell.cell_type, cell.source, cell.metadata.get("tags")) for cell in notebook.cells]
        for notebook in (read_source(source), stored(source))
    )
    assert cells == stored_cells, f"{source.name} was changed: make notebooks-run"
    assert source.with_suffix(".ipynb").stat().st_size < LARGEST_FILE


@by_name
def test_three_exercises_with_hidden_solutions(source):
    text = "\n".join(cell.source for cell in read_source(source).cells if cell.cell_type == "markdown")
    assert re.findall(r"^\*\*(\d)\.\*\*", text, re.MULTILINE) == ["1", "2", "3"]
    assert text.count("<details>") == text.count("</details>") == 3
