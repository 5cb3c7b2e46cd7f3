"""Where results go: files complete or absent, one writer a folder, and what cannot be written refused at first."""

import errno
import os
import stat
import threading
import time
import zlib
from collections import namedtuple

import filelock
import misuse_cases
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from realm_min import RealmConfig, RealmEmbedder
from realm_min.files import atomic, output
from realm_min.files.atomic import only_writer, remove_temporaries, write_atomically
from realm_min.files.causes import check_readable, machine_error, raise_machine_error
from realm_min.files.output import check_file, check_folder, check_room, put_in_place, refuse_existing, workplace
from realm_min.search.mips import BlockIndex


def full(*given, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# ---- one file


def test_many_threads_write_one_file(tmp_path):
    path, errors = tmp_path / "x", []

    def write(letter):
        try:
            for _ in range(20):
                with write_atomically(path) as temporary:
                    temporary.write_bytes(letter * 5000)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b", b"c", b"d")]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert errors == [] and [found.name for found in tmp_path.iterdir()] == ["x"]
    assert len(path.read_bytes()) == 5000 and len(set(path.read_bytes())) == 1


def test_a_link_at_the_temporary_name_is_not_followed(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("dear")
    monkeypatch.setattr(atomic.secrets, "token_hex", lambda size: "0" * 16)
    for link in (tmp_path / f".x.{'0' * 16}.tmp", tmp_path / f".run.owner.{'0' * 16}.tmp", tmp_path / "run.owner"):
        link.symlink_to(victim)
    with pytest.raises(FileExistsError), write_atomically(tmp_path / "x"):
        pass
    with only_writer(tmp_path / "run"):
        pass
    monkeypatch.undo()
    (tmp_path / "run.owner").symlink_to(victim)
    with only_writer(tmp_path / "run"):
        assert not (tmp_path / "run.owner").is_symlink()
    (tmp_path / "link").symlink_to(victim)
    with write_atomically(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert victim.read_text() == "dear" and (tmp_path / "link").read_text() == "new"


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002])
def test_permissions_are_those_of_the_umask(tmp_path, umask):
    """Also where a library makes the file anew, as safetensors does for its owner alone."""
    writers = {
        "text": lambda path: path.write_text("x"),
        "safetensors": lambda path: save_file({"a": torch.zeros(3)}, path),
        "torch": lambda path: torch.save({"a": torch.zeros(3)}, path),
    }
    before = os.umask(umask)
    try:
        for name, write in writers.items():
            with write_atomically(tmp_path / name) as temporary:
                write(temporary)
    finally:
        os.umask(before)
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in writers} == {0o666 & ~umask}


def test_names_as_long_as_names_may_be(tmp_path):
    for name in ("x" * 255, "é" * 127, "国" * 85):
        with write_atomically(tmp_path / name) as temporary:
            temporary.write_text("x")
        assert (tmp_path / name).read_text() == "x"
    with pytest.raises(OSError, match="File name too long") as raised, write_atomically(tmp_path / ("x" * 256)):
        pass
    assert raised.value.filename == str(tmp_path / ("x" * 256))


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path):
    left = [f".x.{'a' * 16}.tmp", ".x.17.tmp", f".y.{'0' * 16}.tmp"]
    kept = ["x", ".x.tmp", ".x.notes.tmp", "x.0123456789abcdef.tmp", f".x.{'a' * 16}.tmp.txt"]
    for name in left + kept:
        (tmp_path / name).write_text("x")
    remove_temporaries(tmp_path / "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, left[2]])
    remove_temporaries(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
def test_what_fails_is_named_with_its_file(tmp_path, monkeypatch, call, number):
    path = tmp_path / "x"
    path.write_text("old")

    def fail(*given, **options):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, call, fail)
        with pytest.raises(OSError) as raised, write_atomically(path) as temporary:
            temporary.write_text("new")
    assert (raised.value.errno, raised.value.filename) == (number, str(path))
    assert path.read_text() == "old" and [found.name for found in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize(
    "error",
    [
        OSError("100000 requested and 16352 written"),  # NumPy's, of a full disk
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),  # torch's
        type("SafetensorError", (Exception,), {})(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        ),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
)
def test_libraries_that_hide_a_full_disk(tmp_path, monkeypatch, error):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda path: usage(9, 9, 0))
    with pytest.raises(OSError) as raised, write_atomically(tmp_path / "x"):
        raise error
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(tmp_path / "x"))
    assert list(tmp_path.iterdir()) == []


def test_other_failures_within_are_left_as_they_are(tmp_path):
    """A model may answer while its answers are written: its failures are not the file's."""
    errors = ValueError("x"), OSError("x"), OSError(errno.EMFILE, "Too many open files"), MemoryError("x")
    errors += RuntimeError("DefaultCPUAllocator: can't allocate memory"), FileNotFoundError(2, "no", "y")
    for error in errors:
        with pytest.raises(type(error)) as raised, write_atomically(tmp_path / "x"):
            raise error
        assert raised.value is error and getattr(error, "filename", None) in (None, "y")


# ---- one writer


def test_a_folder_has_one_writer_whatever_it_is_called(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    for first in ("../run", "../link", "."):
        with only_writer(first):
            for second in (tmp_path / "run", tmp_path / "link", ".", "../link/"):
                with pytest.raises(FileExistsError, match=rf"is being written by process {os.getpid()} on "):
                    with only_writer(second):
                        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "run"] and not os.listdir(tmp_path / "run")


def test_two_threads_take_turns(tmp_path):
    """The second is refused, or waits, as it asks for."""
    inside, seen, waits = [], [], []

    def work():
        with only_writer(tmp_path / "run", waits.append):
            inside.append(1)
            seen.append(len(inside))
            time.sleep(0.05)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert seen == [1] * 4 and waits and all(wait.startswith(("process ", "another job")) for wait in waits)
    assert list(tmp_path.iterdir()) == []


def test_the_lock_lies_within_where_nothing_can_be_written_around(tmp_path, monkeypatch):
    (tmp_path / "mount").mkdir()
    acquire = filelock.FileLock.acquire

    def refuse(self, *given, **options):
        if "mount/" not in self.lock_file:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), self.lock_file)
        return acquire(self, *given, **options)

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with only_writer(tmp_path / "mount"):
        assert sorted(os.listdir(tmp_path / "mount")) == [".lock", ".owner"]
        refuse_existing(tmp_path / "mount")  # it is empty all the same
        with pytest.raises(FileExistsError, match="mount is being written by process"), only_writer(tmp_path / "mount"):
            pass
    assert os.listdir(tmp_path / "mount") == []
    with pytest.raises(OSError, match="Read-only file system"), only_writer(tmp_path / "new"):
        pass


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "No locks available"), NotImplementedError("no flock")])
def test_a_file_system_without_locks_is_said_so(tmp_path, monkeypatch, error):
    def refuse(*given, **options):
        raise error

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with pytest.warns(UserWarning, match="run.lock cannot be locked .*: see that no other job writes .*run"):
        with only_writer(tmp_path / "run"):
            pass


def test_a_full_disk_still_has_one_writer(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic.os, "fsync", full)
    with only_writer(tmp_path / "run"):
        with pytest.raises(FileExistsError, match="is being written by another job"), only_writer(tmp_path / "run"):
            pass


# ---- refused before the work


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("kind", ["pipe", "socket", "character device", "block device"])
def test_what_is_no_file_is_never_replaced(tmp_path, monkeypatch, kind, linked):
    """As the superuser a rename puts a regular file in the place of /dev/full."""
    path = tmp_path / "out"
    os.mkfifo(tmp_path / "other")
    path.symlink_to(tmp_path / "other") if linked else (tmp_path / "other").rename(path)
    modes = {"socket": stat.S_IFSOCK, "character device": stat.S_IFCHR, "block device": stat.S_IFBLK}
    stat_of = os.stat

    def as_kind(where, **options):
        found = stat_of(where, **options)
        is_it = stat.S_ISFIFO(found.st_mode) and kind in modes
        return os.stat_result((modes[kind] | 0o644, *found[1:])) if is_it else found

    monkeypatch.setattr(os, "stat", as_kind)
    model = RealmEmbedder(RealmConfig(**misuse_cases.SIZES), initialize=False)
    for write in (
        lambda: BlockIndex(torch.ones(2, 4)).save(path),
        lambda: model.config.to_json_file(path),
        lambda: write_atomically(path).__enter__(),
        lambda: check_file("--plot", path),
    ):
        with pytest.raises(FileExistsError, match="out is a device or a pipe, which would be replaced: name a file"):
            write()
    assert stat.S_ISFIFO(stat_of(path).st_mode) and path.is_symlink() == linked
    assert len(list(tmp_path.iterdir())) == 1 + linked


def test_a_folder_is_never_replaced_and_a_link_to_nothing_is(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name in ("folder", "link"):
        with pytest.raises(IsADirectoryError, match=f"{name} is a folder: name a file"):
            write_atomically(tmp_path / name).__enter__()
    with write_atomically(tmp_path / "dangling") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "dangling").read_text() == "new" and not (tmp_path / "nothing").exists()
    assert (tmp_path / "link").is_symlink() and len(list(tmp_path.iterdir())) == 3


def test_folders_that_will_not_do(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for path, error in {
        "file": "file is a file: name a folder",
        "file/within": "Not a directory: '.*file'",
        "dangling": "dangling is a link to .*nothing, which is not there: make that, or name another folder",
        "loop": "loop is a link to .*loop, which is not there",
        "x" * 300: "File name too long",
    }.items():
        with pytest.raises(OSError, match=error):
            check_folder(tmp_path / path)
    for path in ("empty", "link", "new", "new/of/new", "."):
        check_folder(tmp_path / path)
    assert sorted(os.listdir(tmp_path)) == ["dangling", "empty", "file", "link", "loop"]  # as before
    assert os.listdir(tmp_path / "empty") == []


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES, errno.EDQUOT])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch, number):
    def fail(*given, **options):
        raise OSError(number, os.strerror(number), "something/else")

    for call in ("open", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(output.os, call, fail)
            for check in (check_folder, lambda path: check_file("--plot", path)):
                with pytest.raises(OSError) as raised:
                    check(tmp_path / "out")
                assert (raised.value.errno, raised.value.filename) == (number, str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_files_that_will_not_do(tmp_path):
    (tmp_path / "link").symlink_to(os.devnull)
    for path, error in {
        tmp_path: "--predictions .* is a folder: name a file",
        tmp_path / "none" / "x": "there is no folder .*none; make it, or name another file",
        os.devnull: "--predictions /dev/null is a device or a pipe, which would be replaced: name a file",
        tmp_path / "link": "is a device",
    }.items():
        with pytest.raises(OSError, match=error):
            check_file("--predictions", output.Path(path))


def test_a_disk_without_room(tmp_path):
    check_room(tmp_path / "new" / "of", 1)
    with pytest.raises(OSError, match="No space left on device: 9,000,000,000,000,000,000 bytes are to be") as raised:
        check_room(tmp_path / "new", 9 * 10**18)
    assert raised.value.errno == errno.ENOSPC and raised.value.filename == str(tmp_path / "new")


# ---- into place


def test_work_goes_on_beside_or_within(tmp_path):
    assert workplace(tmp_path / "new") == tmp_path / "new.partial"
    assert workplace(tmp_path) == tmp_path / ".partial"


def ready_at(path):
    path.mkdir(parents=True)
    for name in ("config.json", "manifest.json", "a", "z"):
        (path / name).write_text(name)
    return path


def test_into_a_folder_that_is_there_files_are_moved_one_by_one(tmp_path, monkeypatch):
    """As a mount point needs, onto which nothing is renamed. After a kill half-way it is no model, and may go on."""
    out = tmp_path / "out"
    ready = ready_at(out / ".partial" / "ready")
    moved, replace = [], os.replace

    def watch(source, target):
        moved.append(os.path.basename(target))
        if len(moved) == 4:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(output.os, "replace", watch)
    with pytest.raises(KeyboardInterrupt):
        put_in_place(ready, out, ("manifest.json", "config.json"))
    assert sorted(moved[:2]) == ["a", "z"] and moved[2:] == ["manifest.json", "config.json"]
    assert not (out / "config.json").exists()
    refuse_existing(out)
    monkeypatch.undo()
    put_in_place(ready, out, ("manifest.json", "config.json"))
    assert sorted(os.listdir(out)) == [".partial", "a", "config.json", "manifest.json", "z"]
    put_in_place(ready_at(tmp_path / "more"), tmp_path / "new")
    assert sorted(os.listdir(tmp_path / "new")) == ["a", "config.json", "manifest.json", "z"]


def test_what_is_in_the_way(tmp_path):
    refuse_existing(tmp_path / "new")
    (tmp_path / "lost+found").mkdir()  # a new file system
    refuse_existing(tmp_path)
    (tmp_path / ".partial").mkdir()
    refuse_existing(tmp_path)
    (tmp_path / "letter.txt").write_text("dear")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for path in (tmp_path, tmp_path / "letter.txt", tmp_path / "dangling"):
        with pytest.raises(FileExistsError, match="exists already: name another folder, or remove it if"):
            refuse_existing(path)


# ---- causes


def np_memory_error():
    with pytest.raises(MemoryError) as raised:
        np.zeros(1 << 58, np.int8)
    return raised.value


CAUSES = {
    errno.ENOMEM: [
        MemoryError(), MemoryError("std::bad_alloc"), np_memory_error(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you "
                     "tried to allocate 8 bytes. Error code 12 (Cannot allocate memory)"),
        RuntimeError("std::bad_alloc"), RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("unable to mmap 8 bytes from file </x>: Cannot allocate memory (12)"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        zlib.error("Error -4 while decompressing data"),
    ],
    errno.EACCES: [PermissionError(errno.EACCES, "Permission denied"), RuntimeError("Permission denied (os error 13)")],
    errno.EMFILE: [RuntimeError("unable to open file </x> in read-only mode: Too many open files (24)")],
    errno.EDQUOT: [OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))],
    errno.EISDIR: [IsADirectoryError(errno.EISDIR, "Is a directory")],
}  # fmt: skip


@pytest.mark.parametrize("number, error", [(number, error) for number, errors in CAUSES.items() for error in errors])
def test_causes_are_called_by_their_names(number, error):
    found = machine_error(error, "model/x.bin")
    if number == errno.ENOMEM:
        assert isinstance(found, MemoryError) and str(found).startswith("out of memory at model/x.bin: no file is at")
        assert machine_error(found) is found  # its file is not forgotten
    else:
        assert (found.errno, found.filename) == (number, "model/x.bin") and found.strerror == os.strerror(number)
    with pytest.raises((OSError, MemoryError)):
        raise_machine_error(error)


def test_other_errors_are_no_causes():
    errors = ValueError("Permission denied"), KeyError("out of memory"), OSError(errno.EINVAL, "Invalid argument")
    errors += RuntimeError("PytorchStreamReader failed"), FileNotFoundError(2, "No such file"), EOFError()
    for error in errors:
        assert machine_error(error, "x") is None
        raise_machine_error(error, "x")


def test_a_folder_in_the_place_of_a_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} is a folder, where a file is to be read"):
        check_readable(tmp_path)
    with pytest.raises(FileNotFoundError):
        check_readable(tmp_path / "none")
