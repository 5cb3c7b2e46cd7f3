"""Questions made from the Factbook's fields, and the slice of a file of questions that the Factbook answers."""

import json
import random
from collections import Counter

import factbook_questions as module
import pytest
from factbook_questions import ITEM_KINDS, KINDS, factbook_pages, factbook_questions, factbook_slice, main
from hypothesis import given, settings
from hypothesis import strategies as st
from sizes import LONG

from realm_min import RealmTokenizer
from realm_min.jobs.evaluation import Question, has_answer_span
from realm_min.text.corpus import Block, factbook_documents, record
from realm_min.text.questions import read_questions

# Pages whose questions are held to their blocks; at length, all 256: to cut and encode those takes half a minute.
SOME = [
    *["France", "Uruguay", "United States", "South Africa", "Canada", "Italy", "Germany", "Iran", "Philippines"],
    *["China", "Jamaica", "Ukraine", "Malaysia", "The Bahamas", "Czechia", "Niger", "Guam", "World"],
]


@pytest.fixture(scope="module", autouse=True)
def pages():
    """{title: page} of those whose blocks are cut."""
    pages, documents = factbook_pages(), list(factbook_documents())
    with pytest.MonkeyPatch.context() as patch:
        if not LONG:
            pages = {title: pages[title] for title in SOME}
            patch.setattr(module, "factbook_pages", lambda: pages)
            patch.setattr(module, "factbook_documents", lambda: [page for page in documents if page.title in SOME])
        yield pages


@pytest.fixture(scope="module")
def questions():
    return factbook_questions(0)


@pytest.fixture(scope="module")
def blocks():
    return module._blocks()


@pytest.fixture(scope="module")
def drafts():
    """Questions of all pages, whether a block holds their answers or not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "factbook_pages", factbook_pages)
        patch.setattr(module, "_learnable", lambda drafts: drafts)
        return factbook_questions(0)


def test_every_page_has_blocks(blocks, pages):
    assert {block.title for block in blocks} == set(pages)
    assert 30 < len(blocks) / len(pages) < 70
    assert not LONG or (8_000 < len(blocks) < 11_000 and len(pages) == 256)


def test_most_answers_are_learnt(questions, drafts, pages):
    assert 0.8 * sum(draft.title in pages for draft in drafts) < len(questions) < len(drafts)
    assert not LONG or len(questions) >= 20_000


def test_there_are_many_of_many_fields_and_no_kind_is_idle(drafts):
    questions, fields = drafts, Counter(question.field for question in drafts)
    assert len(questions) >= 20_000
    assert len(fields) >= 100
    assert set(fields) == {kind.field for kind in KINDS + ITEM_KINDS}
    assert len({question.title for question in questions}) >= 240
    # What WebQuestions asks for most comes most often; the long tail is a third or more.
    common = [field for field, _ in fields.most_common(8)]
    assert {"Location", "Government type", "Languages", "Exchange rates - Currency"} <= set(common)
    assert sum(fields.values()) - sum(n for _, n in fields.most_common(15)) > len(questions) / 3


def test_no_question_of_a_country_comes_twice_and_none_is_malformed(questions):
    assert len({(question.question, question.title) for question in questions}) == len(questions)
    for question in questions:
        text = question.question
        assert text == text.lower() and text.endswith("?") and "  " not in text, text
        assert not set("{}|") & set(text), text
        assert question.answers and len(set(question.answers)) == len(question.answers)


def test_every_answer_is_a_span_of_its_page_that_the_reader_scores(questions, blocks, vocab_tokenizer):
    tokens: dict[str, list[list[str]]] = {}
    for question in random.Random(1).sample(questions, 30):
        title = question.title
        if title not in tokens:
            records = [record(block).decode() for block in blocks if block.title == title]
            tokens[title] = [vocab_tokenizer.tokenize(text) for text in records]
        for answer in question.answers:
            span = [vocab_tokenizer.tokenize(answer)]
            assert any(has_answer_span(block, span, 10) for block in tokens[title]), (question, answer)


@pytest.fixture(scope="module")
def vocab_tokenizer():
    """The tokenizer by hand, a witness independent of the one that built the questions."""
    return RealmTokenizer(str(module.package_files("realm_min") / "assets" / "vocab.txt"))


def test_nearly_all_answers_stand_in_a_block_with_their_field(questions, blocks):
    of_title: dict[str, list[str]] = {}
    for block in blocks:
        of_title.setdefault(block.title, []).append(record(block).decode().lower())
    sample = random.Random(2).sample(questions, 800)
    found = sum(
        any(
            question.field.lower() in block and any(answer.lower() in block for answer in question.answers)
            for block in of_title[question.title]
        )
        for question in sample
    )
    assert found >= 0.98 * len(sample)


def test_seeds_differ(questions):
    other = factbook_questions(1)
    assert other != questions
    assert abs(len(other) - len(questions)) < 0.05 * len(questions)


@pytest.mark.parametrize(
    ("title", "field", "answers"),
    [
        ("France", "Capital - name", ["Paris"]),
        ("Uruguay", "Capital - name", ["Montevideo"]),
        ("United States", "Capital - name", ["Washington, D.C."]),
        ("South Africa", "Capital - name", ["Pretoria", "Cape Town", "Bloemfontein"]),
        ("Canada", "Government type", ["constitutional monarchy"]),
        ("Italy", "Government type", ["parliamentary republic"]),
        ("Germany", "Government type", ["federal republic", "parliamentary republic"]),
        ("Iran", "Government type", ["islamic republic"]),
        ("Philippines", "Government type", ["republic"]),
        ("Germany", "Exchange rates - Currency", ["euro", "euros"]),
        ("China", "Exchange rates - Currency", ["Renminbi"]),
        ("Jamaica", "Exchange rates - Currency", ["Jamaican dollars"]),
        ("Ukraine", "Land boundaries - border countries",
         ["Belarus", "Hungary", "Moldova", "Poland", "Romania", "Russia", "Slovakia"]),
        ("Jamaica", "Internet country code", ["jm"]),
        ("Malaysia", "Capital - time difference", ["UTC+8"]),
    ],
)  # fmt: skip
def test_answers_of_what_is_asked_most(questions, title, field, answers):
    found = [q.answers for q in questions if (q.title, q.field) == (title, field) and title not in q.answers]
    assert found and all(answer == answers for answer in found)


@pytest.mark.parametrize(
    ("answers", "value", "expected"),
    [
        (module._items, "Ukrainian (official) 67.5%, Russian (a (b) c) 29.6%, other 2.9% (2001 est.)",
         ["Ukrainian", "Russian"]),
        (module._cities, "3.017 million KYIV (capital), 942,000 Donetsk (2023)", ["KYIV", "Donetsk"]),
        (module._part_of_the_world, "Southern Africa, island in the Indian Ocean", ["Africa"]),
        (module._region, "Southern Africa, island in the Indian Ocean", ["Southern Africa"]),
        (module._waters, "Eastern Europe, bordering the Black Sea, between Poland", ["Black Sea"]),
        (module._person, "President Abdel Fattah EL-SISI (since 8 June 2014)", ["Abdel Fattah EL-SISI"]),
        (module._person, "King CHARLES III (since 2022); represented by Governor General X Y", ["CHARLES III"]),
        (module._person, "none", []),
        (module._holder("President"), "King CHARLES III (since 2022)", []),
        (module._rivers, "Dunay (Danube) (shared with Germany [s], Austria) - 2,888 km; Vistula - 1,213 km",
         ["Dunay", "Danube", "Vistula"]),
        (module._from_whom, "28 February 1922 (from UK protectorate status; the revolution)", ["UK"]),
        (module._date, "28 February 1922 (from UK protectorate status)", ["28 February 1922"]),
        (module._year, "28 February 1922 (from UK protectorate status)", ["1922"]),
        (module._official, "Arabic (official), French, Berber (official, since 2011)", ["Arabic", "Berber"]),
        (module._religions, "Muslim (predominantly Sunni) 90%, none 10%", ["Muslim", "Islam"]),
        (module._parts, "England: 24 counties, Devon; Scotland: 32 council areas", ["England", "Scotland"]),
        (module._divisions, "8 divisions; Barishal, Dhaka*", ["Barishal", "Dhaka"]),
        (module._peak, "Hora Hoverla 2,061 m", ["Hora Hoverla"]),
        (module._height, "Qattara Depression -133 m", ["-133 m"]),
        (module._owner, "overseas territory of the UK", ["UK"]),
        (module._time_zone, "UTC+5.75 (10.75 hours ahead)", ["UTC+5.75"]),
        (module._lyricist, "Francis Scott KEY/John Stafford SMITH", ["Francis Scott KEY"]),
        (module._composer, "Francis Scott KEY/John Stafford SMITH", ["John Stafford SMITH"]),
        (module._leaders, "In 2010 Viktor YANUKOVYCH beat President Vladimir PUTIN of NATO",
         ["Viktor YANUKOVYCH", "Vladimir PUTIN"]),
    ],
)  # fmt: skip
def test_a_value_becomes_answers(answers, value, expected):
    assert answers(value) == expected


def test_a_shared_river_is_answered_by_its_countries():
    value = "Niger (shared with Guinea [s], Mali, and Benin) - 4,200 km; Benue - 1,400 km"
    assert module._rivers_shared(value, "Nigeria") == [("Niger", ["Guinea", "Mali", "Benin", "Nigeria"])]


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.sampled_from([kind for kind in KINDS if kind.answers is not module._parts]), st.text(max_size=80))
def test_no_value_however_odd_is_refused(kind, value):
    answers = kind.answers(value)
    assert all(isinstance(answer, str) for answer in answers)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from(KINDS), st.booleans(), st.floats(0, 30))
def test_phrasings_are_drawn_evenly(seed, kind, has_adjective, mean):
    drawn = module._draw(random.Random(seed), kind.phrasings, mean, has_adjective)
    usable = [phrasing for phrasing in kind.phrasings.split(" / ") if has_adjective or "{adj}" not in phrasing]
    assert int(mean) <= len(drawn) <= int(mean) + 1
    assert set(drawn) <= set(usable)
    counts = [drawn.count(phrasing) for phrasing in usable]
    assert max(counts) - min(counts) <= 1


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from(KINDS))
def test_a_phrasing_becomes_one_question(seed, kind):
    rng = random.Random(seed)
    phrasing = rng.choice(kind.phrasings.split(" / "))
    text = module._phrase(rng, phrasing, c="the bahamas", adj="bahamian")
    assert "the bahamas" in text or "bahamian" in text
    assert text[-1] == "?" and not set("(){}|/") & set(text) and "the the" not in text


# ---- the slice


def test_pages_hold_fields():
    page = factbook_pages()["Ukraine"]
    assert page["Elevation - mean elevation"] == "175 m"
    assert page["Unemployment rate"].endswith("(2021 est.)") or "%" in page["Unemployment rate"]
    assert page["Key space-program milestones"].startswith("1995")
    assert "1997" in page["Key space-program milestones"]  # later paragraphs belong to the field before them


def test_the_slice_names_a_country_and_answers_from_its_page():
    pages = [
        Block("France", "Capital - name: Paris."),
        Block("The Bahamas", "Capital - name: Nassau."),
        Block("United States", "Capital - name: Washington, D.C."),
        Block("Czechia", "Location: Central Europe."),
        Block("Niger", "Capital - name: Niamey."),
    ]
    kept = [
        Question("what is the capital of france?", ["Lyon", "PARIS!"]),
        Question("what is france's capital?", ["the Paris"]),
        Question("what is the capital of bahamas?", ["Nassau"]),
        Question("what is the capital of the us?", ["Washington, D.C."]),
        Question("where is the czech republic?", ["Central Europe"]),
        Question("what country is paris in france?", ["France"]),  # the title is part of a block
    ]
    left_out = [
        Question("what is the capital of france?", ["Nassau"]),  # of another country
        Question("what is the capital of france?", ["Par", ""]),  # no whole word
        Question("what is the capital of nigeria?", ["Niamey"]),  # Niger is not named
        Question("who wrote candide?", ["Paris"]),
    ]
    assert factbook_slice(kept + left_out, pages) == kept
    assert factbook_slice([], pages) == []


# ---- the command


def test_the_command_writes_questions_that_evaluation_reads(tmp_path, questions, capsys):
    path = tmp_path / "questions.jsonl"
    main(["--out", str(path), "--seed", "0"])  # the same seed once more: the same questions in the same order
    assert str(len(questions)) in capsys.readouterr().out
    assert list(read_questions(path)) == [Question(q.question, q.answers) for q in questions]
    first = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    assert (first["title"], first["field"]) == questions[0][2:]
    assert [file.name for file in tmp_path.iterdir()] == ["questions.jsonl"]
