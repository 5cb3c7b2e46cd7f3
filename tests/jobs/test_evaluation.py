"""ORQA's measures on answers whose measure is known, and their properties."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from realm_min import RealmRetriever, RealmTokenizerFast
from realm_min.jobs.evaluation import (
    Question,
    Row,
    evaluate,
    exact_match,
    has_answer,
    has_answer_span,
    has_answer_words,
    means,
    measure,
    normalize_answer,
    official_exact_match,
    summary,
    token_f1,
)
from realm_min.jobs.statistics import wilson

texts = st.text(st.sampled_from("aAnN the.,-é\u0301 1中\n"), max_size=30)
check = settings(deadline=None, derandomize=True, max_examples=200)


@pytest.fixture(scope="module")
def tokenizer(vocabulary):
    return RealmTokenizerFast(vocabulary)


def tokenize(text):
    return text.lower().replace(",", " , ").replace(".", " . ").split()


# ---- fixed examples


@pytest.mark.parametrize(
    "text, normal",
    [
        ("The  Beatles!", "beatles"),
        ("an apple a day, the doctor", "apple day doctor"),
        ("U.S.A.", "usa"),
        ("theatre Anne a.b", "theatre anne ab"),
        ("São Paulo", "sa\u0303o paulo"),
        ("“quoted” – dash", "“quoted” – dash"),  # only ASCII punctuation goes
        ("the", ""),
    ],
)
def test_normal_form(text, normal):
    assert normalize_answer(text) == normal


def test_official_exact_match():
    assert official_exact_match("The Washington, D.C.", ["New York", "washington dc"])
    assert not official_exact_match("Washington", ["Washington, D.C."])
    assert official_exact_match("Sa\u0303o", ["são"])
    assert not official_exact_match("Sao", ["São"])


def test_regex_matches_the_start_as_orqa_does():
    assert official_exact_match("Neil Armstrong", ["(neil )?armstrong"], regex=True)
    assert official_exact_match("1969, July", [r"\d{4}"], regex=True)
    assert not official_exact_match("July 1969", [r"\d{4}"], regex=True)
    assert not official_exact_match("(unclosed", ["(unclosed"], regex=True)
    assert has_answer("in July 1969", [r"\d{4}"], regex=True)
    assert not has_answer("in July", [r"\d{4}", "("], regex=True)


def test_exact_match_is_of_wordpieces():
    assert exact_match("Washington, D.C.", ["Rome", "washington , d. c."], tokenize)
    assert not exact_match("Washington D.C.", ["Washington, D.C."], tokenize)  # the official one ignores the comma
    assert not exact_match("the Rome", ["Rome"], tokenize)


def test_token_f1():
    assert token_f1("the city of Rome", ["Rome"]) == 2 * 1 / (3 + 1)
    assert token_f1("a b c c", ["c c d", "x"]) == 2 * 2 / (3 + 3)  # the article "a" goes
    assert token_f1("Paris", ["Rome", "Paris, France"]) == 2 * 1 / (1 + 2)
    assert token_f1("Paris", ["Rome"]) == 0
    assert token_f1("the", ["a"]) == 1
    assert token_f1("the", ["Rome"]) == 0


@pytest.mark.parametrize(
    "block, answer, as_written, as_words, as_span",
    [
        ("1912-06-23", "1912", True, False, True),
        ("Oslo's port", "Oslo", True, False, True),
        ("the education", "cat", True, False, False),
        ("in oslo.", "Oslo", False, True, True),
        ("in the u.s.a.", "USA", False, True, False),
        ("Sa\u0303o Paulo", "São Paulo", False, True, True),
        ("北京是中国的首都", "北京", True, False, True),
        ("a port", "", False, False, False),
        ("a port", "the", False, False, False),
    ],
)
def test_what_a_block_holds_depends_on_the_sense(tokenizer, block, answer, as_written, as_words, as_span):
    """ORQA's substring, our words, the reader's spans; a reference alone is a list of one, never its letters."""
    for answers in ([answer], ["nowhere", answer], answer):
        assert has_answer(block, answers) == as_written
        assert has_answer_words(block, answers) == as_words
    assert has_answer_span(tokenizer.tokenize(block), [tokenizer.tokenize(answer)], 10) == as_span


def test_a_reference_alone_is_no_list_of_letters():
    assert official_exact_match("Oslo", "oslo") and not official_exact_match("o", "oslo")
    assert exact_match("Oslo", "oslo", tokenize) and not exact_match("o", "oslo", tokenize)
    assert token_f1("o", "oslo") == 0
    with pytest.raises(ValueError, match="3 is a int, not a text: give a str, or a list of them"):
        has_answer("block", [3])


def test_has_answer_words():
    block = "Uruguay. Capital - name: Montevideo (the port)."
    assert has_answer_words(block, ["montevideo"])
    assert has_answer_words(block, ["Rome", "capital name"])
    assert not has_answer_words(block, ["video"])
    assert not has_answer_words(block, ["the", "-", ""])


def test_composed_and_decomposed_accents_match(vocabulary):
    cased = RealmTokenizerFast(vocabulary, do_lower_case=False).tokenize
    for left, right in (("são", "sa\u0303o"), ("각", "\u1100\u1161\u11a8")):
        assert exact_match(left, [right], cased) and exact_match(right, [left], cased)
        assert official_exact_match(left, [right]) and token_f1(left, [right]) == 1


def test_has_answer_span():
    block = ["rio", "de", "la", "plata"]
    assert has_answer_span(block, [["x"], ["de", "la"]], max_span_width=2)
    assert not has_answer_span(block, [["de", "la", "plata"]], max_span_width=2)
    assert not has_answer_span(block, [["la", "de"], []], max_span_width=10)
    assert has_answer_span(block, [block], max_span_width=4)


def test_means():
    assert means([{"a": 1.0, "f1": None}, {"a": 0.0, "f1": None}]) == {"a": 0.5, "f1": None}
    assert means([{"a": 1.0}, {}, {"a": None}, {"a": 0.5}]) == {"a": 0.75}
    assert means([]) == {}


def test_summary_says_of_how_many_and_how_surely():
    found = summary([{"a": 1.0, "f1": None}, {"a": 0.0, "f1": None}, {}])
    assert found == {"a": 0.5, "f1": None, "n": {"a": 2, "f1": 0}, "interval_95": {"a": wilson(0.5, 2)}}


# ---- properties


@check
@given(texts)
def test_normal_form_is_stable(text):
    normal = normalize_answer(text)
    assert normalize_answer(normal) == normal
    assert normalize_answer(f" The {text.upper()} ") == normalize_answer(text.upper())


@check
@given(texts, st.lists(texts, min_size=1, max_size=4))
def test_measures_agree(prediction, answers):
    f1 = token_f1(prediction, answers)
    assert 0 <= f1 <= 1
    if official_exact_match(prediction, answers):
        assert f1 == 1
    assert f1 == max(token_f1(prediction, [answer]) for answer in answers)
    assert math.isclose(token_f1(prediction, answers[:1]), token_f1(answers[0], [prediction]))
    assert official_exact_match(prediction, [*answers, prediction])
    assert exact_match(prediction, [*answers, prediction], tokenize)


@check
@given(texts, texts, texts)
def test_a_block_has_what_was_put_into_it(before, answer, after):
    assert has_answer(f"{before}{answer}{after}", [answer]) == (answer != "")
    assert has_answer_words(f"{before} {answer} {after}", [answer]) == (normalize_answer(answer) != "")


@check
@given(st.lists(st.integers(0, 2), max_size=12), st.lists(st.lists(st.integers(0, 2), max_size=4), max_size=3))
def test_spans_are_found_like_substrings(block, answers):
    text = "".join(map(str, block))
    expected = any(0 < len(answer) <= 3 and "".join(map(str, answer)) in text for answer in answers)
    assert has_answer_span(block, answers, 3) == expected


# ---- the loop over questions


class ScriptedModel:
    """Retrieves as told and answers Paris: the loop is tested, not the model."""

    config = SimpleNamespace(reader_seq_len=12, max_span_width=2, reader_beam_size=2)

    def __init__(self, tokenizer, records=("France. Capital: Paris", "Italy. Capital: Rome", "Spain. Capital: Madrid")):
        self.retriever = RealmRetriever([record.encode() for record in records], tokenizer)

    def fault_of(self, question):
        return "the question is too long" if len(question) > 30 else ""

    def retrieve(self, questions, k):
        return torch.zeros(len(questions), k), torch.arange(k).expand(len(questions), k)

    def answer_from(self, question, scores, block_ids):
        if "unreadable" in question:
            raise ValueError("every block is empty")
        blocks = [SimpleNamespace(text=self.retriever.text(i)) for i in block_ids.tolist()]
        return SimpleNamespace(text="Paris", blocks=blocks)


@pytest.fixture
def scripted(tokenizer):
    return ScriptedModel(tokenizer)


def test_evaluate(scripted):
    questions = [
        Question("capital of France", ["Paris"]),
        Question("capital of Italy", ["rome"]),
        Question("capital of Spain", ["Madrid"]),
    ]
    results = list(evaluate(scripted, iter(questions), ks=(1, 2, 3, 5), batch_size=2))
    assert [result.question for result in results] == questions
    assert [result.prediction for result in results] == ["Paris"] * 3
    assert [result.measures["top_2_match"] for result in results] == [1, 0, 0]
    assert [result.retrieved for result in results] == [[(0, 0.0), (1, 0.0), (2, 0.0)]] * 3
    assert means(result.measures for result in results) == {
        "exact_match": 1 / 3,
        "official_exact_match": 1 / 3,
        "f1": 1 / 3,
        "reader_oracle": 2 / 3,
        **{"top_1_match": 1 / 3, "top_2_match": 1 / 3, "top_3_match": 2 / 3},  # "rome" is not written so
        **{"top_1_word_match": 1 / 3, "top_2_word_match": 2 / 3, "top_3_word_match": 1},
        **{"top_1_span_match": 1 / 3, "top_2_span_match": 2 / 3, "top_3_span_match": 1},
    }


def test_what_cannot_be_answered_costs_itself_alone(scripted):
    rows = [
        Row(1, Question("capital of France", ["Paris"])),
        Row(3, None, "x", "is not valid JSON"),
        Row(4, Question("why " * 20, ["Paris"])),
        Row(5, Question("unreadable", ["Paris"])),
        Row(6, Question("capital of France", [])),
        Row(7, Question("capital of France", ["Paris"])),
    ]
    alone = list(evaluate(scripted, [rows[0]]))[0].measures
    for batch_size in (1, 4, 8):
        results = list(evaluate(scripted, rows, batch_size=batch_size))
        assert [result.row for result in results] == rows
        assert [result.reason for result in results] == [
            "", "is not valid JSON", "the question is too long", "every block is empty", "", "",
        ]  # fmt: skip
        assert [result.measures for result in results] == [alone, {}, {}, {}, {}, alone]
        assert [result.answer is None for result in results] == [False, True, True, True, False, False]
    (without_depths,) = evaluate(scripted, [rows[0]], ks=())
    assert without_depths.measures == {name: alone[name] for name in list(alone)[:4]}
    with pytest.raises(ValueError, match="'c' is no Question"):
        list(evaluate(scripted, "capital?"))


def test_the_oracle_is_of_the_sense_of_span_match(tokenizer):
    """Where the blocks read are those retrieved and nothing is cut, they are the same; a substring is another."""
    model = ScriptedModel(tokenizer, ["Born: 1912-06-23", "Oslo's port"])
    for answer, expected in (("1912", 1), ("Oslo", 1), ("oslo", 1), ("port", 1), ("slo", 0)):
        (result,) = evaluate(model, [Question("which one?", [answer])], ks=(2,))
        assert result.measures["reader_oracle"] == result.measures["top_2_span_match"] == expected, answer
        assert result.measures["top_2_match"] == (answer != "oslo")


def test_reader_oracle_sees_only_what_the_reader_sees(scripted):
    question = Question("capital of France", ["Paris"])  # 12 - 3 - 3 = 6 wordpieces of the block
    assert measure(scripted, question, "x", ["France. Old capital: Paris"])["reader_oracle"] == 1
    assert measure(scripted, question, "x", ["France. The old capital: Paris"])["reader_oracle"] == 0
    assert measure(scripted, question, "x", ["Paris"] * 2)["reader_oracle"] == 1
    long = Question("why " * 30, ["Paris"])  # both are cut to the same length: the block has 4 wordpieces left
    assert measure(scripted, long, "x", ["to be in Paris, once or twice"])["reader_oracle"] == 1
    assert measure(scripted, long, "x", ["how to be in Paris, once or twice"])["reader_oracle"] == 0


def test_evaluate_regex(scripted):
    questions = [Question("capital of France", ["par.s$"]), Question("of Spain", ["madr(id"])]
    results = list(evaluate(scripted, questions, regex=True, ks=(1,)))
    assert results[0].measures == {
        "exact_match": 1.0,
        "official_exact_match": 1.0,
        "f1": None,
        "reader_oracle": 1.0,
        "top_1_match": 1.0,
    }
    assert results[1].measures["exact_match"] == 0
