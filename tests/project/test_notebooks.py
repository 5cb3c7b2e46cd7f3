"""What is stored of every notebook belongs to its source. `make test-notebooks` runs them (tests/heavy)."""

import ast
import base64
import csv
import importlib.util
import re
import struct
import subprocess
from pathlib import Path

import matplotlib
import nbformat
import pytest
from run_notebooks import FOLDER, SOURCES, read_source

from realm_min.app.figures import DPI, POINTS, for_a_room

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


@by_name
def test_a_notebook_says_what_it_takes_and_gives_and_runs_by_itself(source):
    head, install, *cells = read_source(source).cells
    for words in ("**Needed before:**", "**After it you can**", "colab.research.google.com"):
        assert head.source.count(words) == 1, words
    assert install.source == read_source(SOURCES[0]).cells[1].source
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    for what in ('".."', "../", "open(", "plt.show(", "fontsize"):  # files beside it, figures without words
        assert what not in code, what


def test_the_first_cell_installs_the_package_beside_the_notebook(tmp_path, monkeypatch):
    """No registry has realm-min: what Colab installs is the file that `make sdist` packs."""
    calls, first = [], read_source(SOURCES[0]).cells[1].source
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", lambda command, check: calls.append(command))
    exec(first, {})  # realm_min is here
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"upload the package .* first: `make sdist` leaves it in dist/"):
        exec(first, {})
    assert not calls
    for name in ("realm_min-0.1.0.tar.gz", "realm_min-0.2.0.tar.gz"):
        (tmp_path / name).touch()
    exec(first, {})
    assert [call[1:] for call in calls] == [["-m", "pip", "install", "--quiet", "realm_min-0.2.0.tar.gz[demo]"]]


@by_name
def test_figures_can_be_read_in_a_room_and_aloud(source):
    outputs = [output for cell in stored(source).cells for output in cell.get("outputs", [])]
    assert not re.search(r"\bnan\b", "".join(output.get("text", "") for output in outputs))
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert pictures
    for picture in pictures:
        assert len(picture.metadata["image/png"]["alt"].split()) >= 12
        png = base64.b64decode(picture.data["image/png"])
        dots, _, unit = struct.unpack(">IIB", png[png.index(b"pHYs") + 4 :][:9])  # dots a metre
        assert unit == 1 and round(dots * 0.0254) == DPI == 144


def test_letters_of_figures_are_large_enough():
    with matplotlib.rc_context():
        for_a_room()
        parts = (
            "font.size",
            "axes.labelsize",
            "axes.titlesize",
            "legend.fontsize",
            "xtick.labelsize",
            "ytick.labelsize",
        )
        assert {matplotlib.rcParams[part] for part in parts} == {POINTS} == {11}
        assert matplotlib.rcParams["figure.dpi"] == DPI


def test_recorded_figures_are_those_of_the_benchmarks():
    """Notebooks hold what they draw of them, for they may be opened without the repository."""
    held = {**literals("03-retrieval.py", "BLOCKS", "SECONDS"),
            **literals("06-kernels.py", "BANDWIDTH", "RATES", "MEASURED", "RECORDED")}  # fmt: skip
    of_cpu, of_gpu = benchmark("kernels-cpu.csv")[1], benchmark("kernels-nvidia-h200.csv")[1]
    for contender, seconds in held["SECONDS"].items():
        found = times(of_cpu, "time against blocks", contender, "blocks")
        assert [found[blocks] for blocks in held["BLOCKS"]] == list(seconds)
    for contender, seconds in held["RECORDED"].items():
        found = times([row for row in of_gpu if row["k"] == "5"], "search", contender, "queries")
        assert [found[queries] for queries in (1, 16, 64, 512)] == list(seconds)
    heading = benchmark("kernels-nvidia-h200.csv")[0]
    assert held["BANDWIDTH"] == float(heading["copy bandwidth, GB/s read and written"]) * 1e9
    assert held["RATES"] == {name: float(heading[f"matrix rate, GFLOP/s {name}"]) * 1e9 for name in held["RATES"]}
    columns = ("predicted_ms", "scan_ms", "measured_ms", "wrong_random", "wrong_close")
    ladder = [row for row in benchmark("ladder-nvidia-h200.csv")[1] if row["ladder"] == "search"]
    expected = {row["rung"]: tuple(round(float(row[column]), 3) for column in columns) for row in ladder}
    assert held["MEASURED"] == expected


def literals(name: str, *wanted: str) -> dict:
    """What a notebook assigns to each name, a literal."""
    tree = ast.parse((FOLDER / name).read_text(encoding="utf-8"))
    assigned = {ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)}
    return {name: ast.literal_eval(assigned[name]) for name in wanted}


def times(rows: list[dict[str, str]], section: str, contender: str, column: str) -> dict[int, float]:
    chosen = [row for row in rows if (row["section"], row["contender"]) == (section, contender)]
    return {int(row[column]): float(row["seconds"]) for row in chosen}


def benchmark(name: str) -> tuple[dict[str, str], list[dict[str, str]]]:
    lines = (FOLDER.parent / "benchmarks" / name).read_text(encoding="utf-8").splitlines()
    heading = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# ") and ": " in line)
    return heading, list(csv.DictReader(line for line in lines if not line.startswith("#")))
