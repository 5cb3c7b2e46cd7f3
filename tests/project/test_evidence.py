"""The figures that the documents claim are those of the recorded files, each with its n, its interval and its file."""

import re

import evidence
import pytest
from scale_model import fill

from realm_min.jobs.statistics import wilson

ROOT = evidence.ROOT
WORDS = 1500  # of README.md, outside code


@pytest.mark.parametrize("document", evidence.DOCUMENTS, ids=lambda path: path.name)
def test_the_documents_hold_the_tables_of_what_was_recorded(document):
    text = document.read_text(encoding="utf-8")
    assert "<!-- table: " in text
    assert fill(text, evidence.tables()) == text, "make tables writes them anew"


def test_shares_and_intervals():
    assert evidence.share(33, 52) == "63.5 [49.9, 75.2]" and wilson(33 / 52, 52) == pytest.approx(
        (0.499, 0.752), abs=1e-3
    )
    # Three values of mean 0.5 and standard deviation 0.1: 0.5 ± 4.303 · 0.1 / √3.
    assert evidence.over_seeds([0.4, 0.5, 0.6]) == "50.0 [25.2, 74.8]"
    assert evidence.over_seeds([0.9, 1.0, 1.0])[-6:] == "100.0]"
    # Exact McNemar, two-sided: 2 · ½³ where all three go one way.
    assert [evidence.at_best(n) for n in (0, 1, -3, 5)] == ["1", "1", "0.25", "0.062"]


def test_a_share_never_stands_without_its_n_and_interval():
    """In README and evidence.md: a per cent sign stands in a line of a table that has both, or in no claim of ours."""
    for document in evidence.DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        bare = [line for line in text.split("\n") if re.search(r"\d\s?%", line) and not re.search(r"95 %", line)]
        assert bare == [], document.name
    for line in evidence.front().split("\n")[2:]:
        what, figure, n, command = line.strip("| ").split(" | ")
        assert re.search(r"\[[−+]?[\d.]+, [−+]?[\d.]+\]", figure) and re.match(r"\d+", n), line
        assert re.fullmatch(r"`make [\w-]+`, `([\w/-]+\.csv)`", command), line
        assert (evidence.FOLDER / command.split("`")[3]).is_file()
    for line in evidence.speed().split("\n")[2:]:
        what, figure, repeats, command = line.strip("| ").split(" | ")
        assert re.match(r"[\d.]+", figure) and all(int(count) > 2 for count in repeats.split(" and "))
        assert (evidence.FOLDER / command.split("`")[3]).is_file()


def test_the_front_page_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert len(prose.split()) <= WORDS, f"{len(prose.split())} words"
    first = text[: text.index("[[Montevideo]]")]
    assert first.count("\n") <= 40  # one screen to the first answer
