"""Run the notebooks and store what they print and draw: `make notebooks-run`, or name some of their .py files.

`NN-name.py` (Jupytext's percent format) is the source, made to be read in a diff; `NN-name.ipynb` is made from it here
and holds the outputs. A cell tagged "varies" prints what depends on the machine, such as times: the suite runs it and
does not compare what it prints.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).resolve().parent
SOURCES = sorted(FOLDER.glob("[0-9][0-9]-*.py"))
SECONDS = 600  # a cell may take, and the kernel to start


def read_source(source: Path) -> NotebookNode:
    """The notebook of a .py file, without outputs; the same text gives the same bytes."""
    notebook = jupytext.read(source, fmt="py:percent")
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
    return notebook


def execute(notebook: NotebookNode, environment: dict[str, str], seconds: int | None = SECONDS) -> NotebookNode:
    """Fill in the outputs, but for what goes to standard error: progress, which is another each time.

    Args:
        seconds: a cell may take; None: it may take its time.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised.
    """
    client = NotebookClient(
        notebook,
        timeout=seconds,
        startup_timeout=SECONDS,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": FOLDER}},
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
    )
    client.execute(env=environment)
    notebook.metadata["language_info"] = {"name": "python"}  # without the version
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def main(sources: list[Path]) -> None:
    # Threads that wait for work must not spin: a machine with other work on it would be many times slower.
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
    for source in sources:
        start = time.perf_counter()
        notebook = execute(read_source(source), environment)
        path = source.with_suffix(".ipynb")
        temporary = path.with_name(f".{path.name}.tmp")
        nbformat.write(notebook, temporary)
        temporary.replace(path)
        print(f"{path.name}: {time.perf_counter() - start:.1f} s, {path.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]] or SOURCES)
