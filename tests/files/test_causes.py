"""Wants of the machine are called by their names, wherever in reading a model they come; no good file is "damaged"."""

import errno
import io
import mmap
import os
import re
import shutil
import threading
import zipfile
from contextlib import contextmanager, suppress

import eight_capitals
import numpy as np
import pytest
import safetensors
import torch
from eight_capitals import BLOCKS, CONFIG

from realm_min import RealmConfig, RealmForOpenQA, RealmRetriever, RealmTokenizer
from realm_min.app import indexing
from realm_min.app.cli import main
from realm_min.files.checkpoint import read_state_dict
from realm_min.files.json_file import read_json_object
from realm_min.files.lfs import refuse_pointer
from realm_min.search.sharded_index import read_blocks
from realm_min.text.corpus import Document
from realm_min.text.leads import lead_documents
from realm_min.text.lines import open_plain, text_lines
from realm_min.text.tokenizer_files import read_json

NO_MEMORY = "out of memory"
ALLOCATOR = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "400000 bytes. Error code 12 (Cannot allocate memory)"
)
MAPPED = RuntimeError("unable to mmap 98 bytes from file </m/model.safetensors>: Cannot allocate memory (12)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = RealmForOpenQA(RealmConfig(**CONFIG, num_block_records=1), seed=1).eval()
    documents = [Document(*block) for block in BLOCKS]
    return indexing.index(documents, tmp_path_factory.mktemp("causes") / "m", model, eight_capitals.tokenizer())


@pytest.fixture(scope="module")
def pickled(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("pickled") / "m"
    RealmForOpenQA.from_pretrained(folder).save_pretrained(path, safe_serialization=False)
    RealmRetriever.from_pretrained(folder).save_pretrained(path)
    return path


def failing(real, error, of):
    """`real`, but that it raises `error` when it is asked for the file `of`."""

    def call(*given, **options):
        named = given and isinstance(given[0], (str, os.PathLike)) and os.path.basename(given[0]) == of
        if of is None or named:
            raise error
        return real(*given, **options)

    return call


def told(capsys, command):
    assert main(command) == 2
    err = capsys.readouterr().err.strip().split("\n")
    assert len(err) == 1 and err[0].startswith("realm-min: "), err
    assert (
        "damaged" not in err[0] and "again" not in err[0] and "not a" not in err[0].casefold().replace("not a dir", "")
    )
    return err[0]


def of_system(number, path=None):
    return OSError(number, os.strerror(number), *([path] if path else []))


# What fails, of which file, with which error; and what is said.
OPEN = [(number, os.strerror(number)) for number in (errno.EACCES, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOMEM)]
FILES = ("config.json", "model.safetensors", "block_records.npy", "vocab.txt")


@pytest.mark.parametrize("number, text", OPEN)
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_opened(folder, monkeypatch, capsys, name, number, text):
    error = of_system(number, str(folder / name))
    monkeypatch.setattr("builtins.open", failing(open, error, name))
    monkeypatch.setattr(io, "open", failing(io.open, error, name))
    expected = NO_MEMORY if number == errno.ENOMEM else f"{folder / name}: {text}"
    assert expected in told(capsys, ["ask", "why?", "--model", str(folder)])


@pytest.mark.parametrize(
    "module, name, of, error, expected",
    [
        (safetensors, "safe_open", "model.safetensors", MAPPED, "out of memory at .*model.safetensors: no file is at"),
        (safetensors, "safe_open", "model.safetensors", OSError("Cannot allocate memory (os error 12)"), NO_MEMORY),
        (safetensors, "safe_open", "model.safetensors", MemoryError(), NO_MEMORY),
        (safetensors, "safe_open", "model.safetensors",
         RuntimeError("unable to open file </m> in read-only mode: Too many open files (24)"),
         "model.safetensors: Too many open files"),
        (mmap, "mmap", None, of_system(errno.ENOMEM), "out of memory at .*block_records.npy"),
        (mmap, "mmap", None, of_system(errno.EACCES), "block_records.npy: Permission denied"),
        (torch, "empty", None, ALLOCATOR, NO_MEMORY),
        (np, "empty", None, MemoryError("Unable to allocate 8. GiB for an array"), NO_MEMORY),
        (RealmForOpenQA, "answer", None, RuntimeError("std::bad_alloc"), NO_MEMORY),
        (RealmForOpenQA, "answer", None, RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), NO_MEMORY),
    ],
)  # fmt: skip
def test_what_fails_within(folder, monkeypatch, capsys, module, name, of, error, expected):
    monkeypatch.setattr(module, name, failing(getattr(module, name), error, of))
    assert re.search(expected, told(capsys, ["ask", "why?", "--model", str(folder)]))


@pytest.mark.parametrize(
    "module, name, error",
    [
        (torch, "frombuffer", ALLOCATOR),
        (zipfile, "ZipFile", MemoryError()),
        (zipfile, "ZipFile", of_system(errno.EMFILE)),
    ],
)
def test_pickled_weights(pickled, monkeypatch, capsys, module, name, error):
    monkeypatch.setattr(module, name, failing(None, error, None))
    said = told(capsys, ["ask", "why?", "--model", str(pickled)])
    assert f"{pickled / 'pytorch_model.bin'}" in said and (NO_MEMORY in said or "Too many open files" in said)


def test_a_mapped_array(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", np.zeros((4, 2), np.float32))
    for error, kind in ((of_system(errno.ENOMEM), MemoryError), (of_system(errno.EMFILE), OSError)):
        with monkeypatch.context() as patch:
            patch.setattr(np, "memmap", failing(None, error, None))
            with pytest.raises(kind, match=r"x\.npy"):
                read_blocks(tmp_path / "x.npy")


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_the_place_of_a_file(folder, tmp_path, capsys, name):
    for path in folder.iterdir():
        if path.name == name:
            (tmp_path / name).mkdir()
        else:
            (tmp_path / path.name).symlink_to(path)
    if name == "vocab.txt":
        (tmp_path / "tokenizer.json").unlink()
    said = told(capsys, ["ask", "why?", "--model", str(tmp_path)])
    assert said == f"realm-min: {tmp_path / name} is a folder, where a file is to be read"


def test_a_pipe_in_the_place_of_a_file(folder, tmp_path):
    """To open one is to wait for ever."""
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(FileNotFoundError, match="model.safetensors is a device or a pipe, where a file is to be read"):
        read_state_dict(tmp_path)


@contextmanager
def fed_pipe(path):
    """A pipe that says {} to each that reads it."""
    over = threading.Event()

    def feed():
        while not over.is_set():
            with suppress(OSError):  # who read it has closed it
                path.write_text("{}")

    os.mkfifo(path)
    writer = threading.Thread(target=feed, daemon=True)
    writer.start()
    try:
        yield
    finally:
        over.set()
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a writer waits for one
        writer.join()
        os.close(reader)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("config.json", lambda path: RealmConfig.from_json_file(path)),
        ("config.json", lambda path: RealmConfig.from_pretrained(path.parent)),
        ("config.json", lambda path: RealmForOpenQA.from_pretrained(path.parent)),
        ("config.json", lambda path: read_json_object(path, "write it again")),
        ("tokenizer.json", lambda path: read_json(path)),
        ("vocab.txt", lambda path: RealmTokenizer.from_pretrained(path.parent)),
        ("leads.json", lambda path: lead_documents(path)),
    ],
)
def test_no_pipe_is_read(folder, tmp_path, name, read):
    """One that nobody writes to would be waited for, for ever."""
    shutil.copy(folder / "model.safetensors", tmp_path)
    with (
        fed_pipe(tmp_path / name),
        pytest.raises(FileNotFoundError, match=f"{name} is a device or a pipe, where a file is to be read"),
    ):
        read(tmp_path / name)


def test_a_name_that_is_too_long(capsys):
    name = "n" * 300
    assert f"{name}: File name too long" in told(capsys, ["ask", "why?", "--model", name])
    assert f"{name}: File name too long" in told(capsys, ["evaluate", name])


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="only Linux has a file that cannot be read")
def test_what_fails_as_a_file_is_read_has_the_files_name(folder, tmp_path, capsys):
    path = tmp_path / "eio" / "m.txt"
    path.parent.mkdir()
    path.symlink_to("/proc/self/mem")
    expected = f"realm-min: {path}: Input/output error"
    assert told(capsys, ["index", str(path.parent), "--out", str(tmp_path / "o"), "--model", str(folder)]) == expected
    with pytest.raises(OSError, match="m.txt"):
        refuse_pointer(path)


@pytest.mark.parametrize("read", [open_plain, text_lines])
def test_what_fails_after_a_files_beginning_has_the_files_name(tmp_path, monkeypatch, read):
    class Failing(io.BytesIO):
        def peek(self, size):
            return b"text"

        def read(self, size=-1):
            raise of_system(errno.EIO)

        def __next__(self):
            raise of_system(errno.EIO)

    path = tmp_path / "a.txt"
    path.write_text("text")
    monkeypatch.setattr("realm_min.text.lines.open", lambda *given: Failing(), raising=False)
    with pytest.raises(OSError, match="a.txt"):
        if read is text_lines:
            list(read(path))
        else:
            with read(path) as file:
                file.read()
