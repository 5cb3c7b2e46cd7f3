"""A journal of what a job has found: what is whole is kept, another job's is refused."""

import os
import sys

import pytest

from realm_min.jobs.journal import journal_line, journal_rows, open_journal

JOB = {"questions": "a", "model": "b"}


def test_whole_batches_are_kept(tmp_path):
    path = tmp_path / "out.partial"
    assert open_journal(path, JOB, 2) == 0
    rows = [{"i": i, "text": "é\ud800\u2028"} for i in range(5)]  # half a surrogate pair, a line separator
    with open(path, "ab") as file:
        file.writelines(map(journal_line, rows))
        file.write(b'{"i": 5')  # where it was killed
    assert open_journal(path, JOB, 2) == 4
    assert list(journal_rows(path)) == rows[:4]
    assert open_journal(path, JOB, 2) == 4 and open_journal(path, JOB, 8) == 0
    assert list(journal_rows(path)) == [] and [found.name for found in tmp_path.iterdir()] == ["out.partial"]


def test_a_journal_cut_before_its_first_line_begins_anew(tmp_path):
    (tmp_path / "j").write_bytes(journal_line(JOB)[:5])
    assert open_journal(tmp_path / "j", JOB) == 0
    assert (tmp_path / "j").read_bytes() == journal_line(JOB)


@pytest.mark.parametrize("data", [b"no newline here", journal_line({**JOB, "model": "c"})[:-4], b"{", b"\xff"])
def test_a_file_without_a_whole_line_goes_on_only_as_a_torn_first_one(tmp_path, data):
    (tmp_path / "j").write_bytes(data)
    if journal_line(JOB).startswith(data):
        assert open_journal(tmp_path / "j", JOB) == 0
        return
    with pytest.raises(FileExistsError, match="j is no journal of this job: move it away, or name another file"):
        open_journal(tmp_path / "j", JOB)
    assert (tmp_path / "j").read_bytes() == data


def test_an_empty_file_is_a_journal(tmp_path):
    (tmp_path / "j").touch()
    assert open_journal(tmp_path / "j", JOB) == 0 and (tmp_path / "j").read_bytes() == journal_line(JOB)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other pipes")
@pytest.mark.parametrize("kind", ["pipe", "folder", "link to nothing"])
def test_what_is_no_file_is_refused(tmp_path, kind):
    """A pipe is not waited for, and nothing is written where a link goes."""
    if kind == "pipe":
        os.mkfifo(tmp_path / "j")
    elif kind == "folder":
        (tmp_path / "j").mkdir()
    else:
        (tmp_path / "j").symlink_to("elsewhere")
    with pytest.raises(FileExistsError, match="j is no file, and what is found is kept there: move it away, or name"):
        open_journal(tmp_path / "j", JOB)
    assert os.listdir(tmp_path) == ["j"]


@pytest.mark.parametrize("data", [journal_line({**JOB, "model": "c"}), b"my own\nnotes\n", b"[1]\n", b"\xff\n"])
def test_another_file_is_refused_and_stays(tmp_path, data):
    (tmp_path / "j").write_bytes(data)
    with pytest.raises(ValueError, match="j was begun with another (questions, )?model: remove it to start anew"):
        open_journal(tmp_path / "j", JOB)
    assert (tmp_path / "j").read_bytes() == data


def test_what_follows_a_damaged_line_is_found_anew(tmp_path):
    """However it is damaged: a digit of a number changed, or a line gone, is JSON all the same."""
    path = tmp_path / "j"
    whole = [journal_line(value) for value in (JOB, {"measures": {"f1": 0.25}}, {"measures": {"f1": 0.5}})]
    for damaged in (whole[1].replace(b"0.25", b"0.75"), b"{}\n", b"\n", whole[1][:9] + b"\n", whole[1][9:], b"\xff\n"):
        path.write_bytes(whole[0] + whole[2] + damaged + whole[2])
        with pytest.raises(ValueError, match="j line 3 is damaged: give the same command again, which mends it"):
            list(journal_rows(path))
        assert open_journal(path, JOB) == 1
        assert list(journal_rows(path)) == [{"measures": {"f1": 0.5}}]
    path.write_bytes(whole[0].replace(b'"a"', b'"b"') + whole[1])
    with pytest.raises(ValueError, match="was begun with another questions, model"):
        open_journal(path, JOB)
