"""Corpora as people have them, to documents: a folder of files, one file, records of many kinds, installed corpora.

A document keeps its id, so that an answer can name it and an index can let go of it: a file's path within its folder,
or what a record gives as `_id`, `id` and the like. What is no document is left out, and named: `skip(why, which)` is
called for each. A corpus is read as its documents are asked for: a file at a time, files of records a line at a time.
"""

from __future__ import annotations

import codecs
import json
import os
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..files.causes import check_readable
from ..kinds import checked
from .corpus import FACTBOOK, Document, factbook, factbook_documents
from .html_text import title_and_text
from .leads import LEADS, lead_documents, leads_file
from .lines import GZIPPED, encoding_of, json_lines, open_plain, text_lines

Skip = Callable[[str, str], None]  # called as skip(why, which)

GIVE = (
    f'give "{FACTBOOK}", "{LEADS}", a folder, or a file that ends in .txt, .md, .html, .jsonl, .json or .tsv (.gz too)'
)

# What a folder that this package writes holds, and a key of it: a model or an index, one in the making, a training run.
_OURS = {"config.json": "model_type", "manifest.json": "corpus", "run.json": "seed"}
_LOCKS = (".lock", ".owner")  # beside a folder that is being written
_BEIR_CORPUS, _BEIR_QUESTIONS = "corpus.jsonl", "queries.jsonl"


class NotADocument(ValueError):
    """A file that can be no document, whole; in a folder it is skipped, alone it is refused."""

    def __init__(self, why: str, path: Path, remedy: str) -> None:
        super().__init__(f"{path} {why}: {remedy}")
        self.why = why


def name_skipped(why: str, which: str) -> None:
    """Warn of what is skipped; the command line counts it instead."""
    warnings.warn(f"{which} {why}: it is skipped", stacklevel=2)


@checked
def read_documents(corpus: str | os.PathLike, skip: Skip = name_skipped) -> Iterator[Document]:
    """The documents of a corpus, each with its id, in the order of their paths and lines.

    Args:
        corpus: "factbook"; "leads", the first paragraphs of Wikipedia articles; a folder, with those in it; or one
            file. Files are text (.txt, .md), .html, records {"_id" or "id", "title", "text" or "contents"}, a line each
            (.jsonl) or in an array (.json), or columns (.tsv: as a header names them, else id, text and maybe title).
            Of these only a text is needed. Each file may be gzipped.
        skip: called as skip(why, which) for what is in a folder and no document, and for documents without text.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: it is no corpus, or a line or file of it cannot be read.
        ModuleNotFoundError: the Factbook or the leads are asked for and not installed.
    """
    path = Path(corpus)
    if str(corpus) == FACTBOOK:
        factbook()  # is it there? The documents are read as they are asked for
        return factbook_documents()
    if str(corpus) == LEADS:
        leads_file()
        return iter(lead_documents())
    if path.is_dir():
        if _is_ours(path):
            raise ValueError(f"{path} holds a model, an index or a run, no documents: name the folder of your texts")
        return _with_text(folder_documents(path, skip), skip)
    check_readable(path, f"{path} does not exist: {GIVE}")
    if _kind(path) is None:
        raise ValueError(f"{path} is no corpus: {GIVE}")
    return _with_text(file_documents(path, _id(path.name)), skip)


def folder_documents(folder: str | os.PathLike, skip: Skip = name_skipped) -> Iterator[Document]:
    """The documents of all files of a folder and of those in it, by their paths; see `read_documents`."""
    folder = Path(folder)
    for path, name in _files(folder, skip):
        try:
            yield from file_documents(path, name)
        except NotADocument as error:
            skip(error.why, name)


def file_documents(path: Path, name: str) -> Iterator[Document]:
    """The documents of one file, whose path within the corpus is `name`."""
    kind = _kind(path)
    assert kind is not None
    return _READERS[kind](path, name)


def _with_text(documents: Iterator[Document], skip: Skip) -> Iterator[Document]:
    for document in documents:
        if _has_text(document.text):
            yield document
        else:
            skip("has no text", document.id)


def _has_text(text: str) -> bool:
    """Whether it holds a character that stands for itself: no white space, none that is not seen, no mark on others."""
    return any(unicodedata.category(character)[0] not in "CMZ" for character in text)


# ---- the files of a folder


def _files(folder: Path, skip: Skip) -> Iterator[tuple[Path, str]]:
    """Every file of a folder that may hold documents, and its path within the folder; in the order of these paths."""
    waiting = [(folder, "")]
    while waiting:
        path, name = waiting.pop()
        if path.name.endswith(_LOCKS):
            continue
        if name and path.name.startswith("."):
            skip("is hidden", name)
        elif path.is_dir():
            waiting += reversed(_entries(path, name, skip))
        elif not path.is_file():
            skip("is no file", name)
        elif _kind(path) is None:
            skip("is of a kind that is not read", name)
        elif path.name.lower().startswith(_BEIR_QUESTIONS) and any(path.parent.glob(f"{_BEIR_CORPUS}*")):
            skip("holds BEIR's questions", name)
        elif os.access(path, os.R_OK):
            yield path, name
        else:
            skip("may not be read", name)


def _entries(folder: Path, name: str, skip: Skip) -> list[tuple[Path, str]]:
    """What stands in a folder, by name; nothing where it is not to be entered."""
    if name and folder.is_symlink():
        why = "is a link to a folder"
    elif name and _is_ours(folder):
        why = "holds a model, an index or a run"
    else:
        try:
            found = sorted(folder.iterdir(), key=lambda path: path.name)
            return [(path, f"{name}/{_id(path.name)}" if name else _id(path.name)) for path in found]
        except PermissionError:
            if not name:
                raise
            why = "may not be read"
    skip(why, f"{name}/")
    return []


def _is_ours(folder: Path) -> bool:
    """Whether this package, or another that writes models, has written a folder."""
    for name, key in _OURS.items():
        if not (folder / name).is_file():  # nor a pipe, on which to wait, nor a device without end
            continue
        try:
            value = json.loads((folder / name).read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(value, dict) and key in value:
            return True
    return False


def _id(name: str) -> str:
    """A file's name as text; bytes that are not UTF-8 are written out, as \\xe9."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _title(path: Path) -> str:
    """A file's name without its ending; one that is not UTF-8 is taken for Latin-1."""
    name = Path(path.stem).stem if path.suffix.lower() == GZIPPED else path.stem
    try:
        return os.fsencode(name).decode()
    except UnicodeDecodeError:
        return os.fsencode(name).decode("latin-1")


def _kind(path: Path) -> str | None:
    """The ending that says how a file is read, lower-cased and without .gz; None if it is not."""
    endings = [ending.lower() for ending in path.suffixes]
    if endings[-1:] == [GZIPPED]:
        endings.pop()
    return endings[-1] if endings and endings[-1] in _READERS else None


# ---- a file that is one document


def _read_text(path: Path, name: str) -> Iterator[Document]:
    with open_plain(path) as file:
        data = file.read()
    yield Document(_title(path), _decoded(path, data, encoding_of(data[:4])), name)


def _read_html(path: Path, name: str) -> Iterator[Document]:
    with open_plain(path) as file:
        data = file.read()
    encoding = encoding_of(data[:4])
    if encoding == "utf-8-sig":
        encoding = _stated_encoding(data[:1024]) or encoding
    title, text = title_and_text(_decoded(path, data, encoding))
    yield Document(title or _title(path), text, name)


def _stated_encoding(start: bytes) -> str | None:
    """What a page says that it is written in; None where it does not say, or cannot be."""
    stated = _CHARSET.search(start)
    if stated is None:
        return None
    try:
        encoding = codecs.lookup(stated[1].decode()).name
        possible = stated[0].decode(encoding) == stated[0].decode("ascii")  # of UTF-16 this tag itself is not
    except (LookupError, UnicodeError):
        return None
    return encoding if possible and encoding not in NO_ENCODINGS and encoding != "utf-8" else None


def _decoded(path: Path, data: bytes, encoding: str) -> str:
    named = encoding.upper().removesuffix("-SIG")
    try:
        text = data.decode(encoding)
    except UnicodeError as error:
        raise NotADocument(f"is not {named} text", path, f"convert it or take it out ({error})") from None
    if "\0" in text:
        raise NotADocument("is not text (it holds NUL bytes)", path, "take it out")
    return text


_CHARSET = re.compile(rb"<meta[^>]{,200}?charset\s*=\s*[\"']?\s*([\w:.-]+)", re.IGNORECASE)
NO_ENCODINGS = ("utf-7", "unicode-escape", "raw-unicode-escape")  # of a page: they read ASCII as something else


# ---- a file of records


def _read_jsonl(path: Path, name: str) -> Iterator[Document]:
    for number, value in json_lines(path):
        yield _document(value, f"{path} line {number}", f"{name}:{number}")


def _read_json(path: Path, name: str) -> Iterator[Document]:
    with open_plain(path) as file:
        data = file.read()
    try:
        found = json.loads(_decoded(path, data, encoding_of(data[:4])))
    except (ValueError, RecursionError) as error:
        remedy = "name it .jsonl if each line is a record, or mend it"
        raise NotADocument("is not valid JSON", path, f"{remedy} ({error})") from None
    records = found if isinstance(found, list) else [found]
    if not all(isinstance(value, dict) and _text_of(value) is not None for value in records):
        raise NotADocument("holds no documents", path, 'each needs a "text" or "contents"')
    for number, value in enumerate(records, start=1):
        yield _document(value, f"{path} record {number}", f"{name}:{number}")


def _read_tsv(path: Path, name: str) -> Iterator[Document]:
    """Columns as the first line names them, DPR's `id text title` say; without such a line id, text and maybe title."""
    columns: list[str] = []
    for number, line in enumerate(text_lines(path), start=1):
        where = f"{path} line {number}"
        try:
            cells = [_cell(cell) for cell in line.decode().rstrip("\r\n").split("\t")]
        except UnicodeDecodeError as error:
            raise ValueError(f"{where} is not UTF-8 text ({error}): convert the file") from None
        if cells == [""]:
            continue
        if not columns:
            named = [cell.strip().lower() for cell in cells]
            if "corpus-id" in named:
                raise NotADocument("holds BEIR's judgements", path, "give the corpus")
            if "text" in named or "contents" in named:
                columns = named
                continue
            columns = ["id", "text", "title"][: len(cells)]
        if len(cells) != len(columns) or len(cells) < 2:
            raise ValueError(
                f"{where} has {len(cells)} columns, not {' and '.join(columns)} alone: give id, text and maybe title, "
                "with a tab between, or name the columns in a first line"
            )
        yield _document(dict(zip(columns, cells, strict=True)), where, f"{name}:{number}")


def _cell(cell: str) -> str:
    """What a cell says; spreadsheets, and DPR, put it in quotes and double those within."""
    return cell[1:-1].replace('""', '"') if _QUOTED.fullmatch(cell) else cell


_QUOTED = re.compile(r'"[^"]*(?:""[^"]*)*"')


def _text_of(value: dict[str, Any]) -> Any:
    return value["text"] if value.get("text") is not None else value.get("contents")


_IDS = ("_id", "id", "docid", "doc_id", "pid")  # as BEIR, DPR and pyserini, and collections of TREC have it


def _document(value: dict[str, Any], where: str, unnamed: str) -> Document:
    """A record's document; `unnamed` is the id of one that has none. ValueError names what is wrong with it."""
    title, text = value.get("title"), _text_of(value)
    title = "" if title is None else title
    for key, given in (("title", title), ("text", text)):
        if not isinstance(given, str):
            raise ValueError(
                f'{where} has no string "{key}": each needs "text" (or "contents"), and may have "title" and "id"'
            )
    number = next((value[key] for key in _IDS if value.get(key) is not None), None)
    if isinstance(number, bool) or not isinstance(number, (str, int, type(None))):
        raise ValueError(f"{where} has an id that is neither text nor a whole number: {str(number)[:60]!r}")
    document = Document(title, text, unnamed if number in (None, "") else str(number))
    try:
        "".join(document).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} holds half a surrogate pair ({error}): mend the text") from None
    return document


_READERS: dict[str, Callable[[Path, str], Iterator[Document]]] = {
    ".txt": _read_text, ".text": _read_text, ".md": _read_text, ".markdown": _read_text,
    ".html": _read_html, ".htm": _read_html, ".xhtml": _read_html,
    ".jsonl": _read_jsonl, ".ndjson": _read_jsonl, ".json": _read_json, ".tsv": _read_tsv,
}  # fmt: skip
