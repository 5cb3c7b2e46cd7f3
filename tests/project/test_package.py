"""What is built to be given away: the source distribution is complete, and the page of the package has no dead link."""

import configparser
import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def files():
    """The project's files: those that git tracks, or, where an archive was unpacked, those of the archive."""
    if (ROOT / ".git").exists():
        found = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        return [Path(name) for name in found.split("\0") if name and (ROOT / name).is_file()]
    (sources,) = ROOT.glob("*.egg-info/SOURCES.txt")
    return [Path(line) for line in sources.read_text(encoding="utf-8").split("\n") if line and ".egg-info" not in line]


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """The source distribution of the project's files, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    for name in files():
        (folder / "project" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / "project" / name)
    code = "import setuptools.build_meta as backend; print(backend.build_sdist('..'))"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-c", code], cwd=folder / "project", env=environment, check=True, capture_output=True
    )
    (packed,) = folder.glob("*.tar.gz")
    with tarfile.open(packed) as opened:
        opened.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return unpacked


def test_the_source_distribution_holds_every_file(archive):
    left_out = [str(name) for name in files() if not (archive / name).is_file() and name.name != ".gitignore"]
    assert left_out == []


def test_every_wing_is_installed():
    """What a wheel holds is named in setup.cfg."""
    listed = configparser.ConfigParser()
    listed.read(ROOT / "setup.cfg", encoding="utf-8")
    wings = {f"realm_min.{path.parent.name}" for path in (ROOT / "realm_min").glob("*/__init__.py")}
    kernels = {"realm_min.kernels", "realm_min.kernels.ladder"}
    assert set(listed["options"]["packages"].split()) == {"realm_min", *kernels, *wings}


def test_the_page_of_the_package(archive):
    head = email.message_from_string((archive / "PKG-INFO").read_text(encoding="utf-8"))
    page = head.get_payload()
    targets = re.findall(r"\]\(([^)\s]+)\)", page)
    assert targets and all(target.startswith("https://") for target in targets)
    assert "From the paper to the code (`docs/paper-to-code.md`)" in page and "![" not in page
    assert head["Version"] == "0.1.0"
    assert head["Author"] and head["Keywords"] and head["License-File"]
    pythons = [line for line in head.get_all("Classifier") if re.search(r":: 3\.\d+$", line)]
    assert [line.rpartition(".")[2] for line in pythons] == ["10", "11", "12", "13", "14"]
