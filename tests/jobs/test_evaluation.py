"""ORQA's measures on answers whose measure is known, and their properties."""

import json
import math
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realm_min.jobs.evaluation import (
    Question,
    evaluate,
    exact_match,
    has_answer,
    has_answer_span,
    means,
    measure,
    normalize_answer,
    official_exact_match,
    token_f1,
    top_k_match,
)
from realm_min.text.questions import read_questions

texts = st.text(st.sampled_from("aAnN the.,-é\u0301 1中\n"), max_size=30)
check = settings(deadline=None, derandomize=True, max_examples=200)


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


def test_has_answer_is_of_whole_words():
    block = "Uruguay. Capital - name: Montevideo (the port)."
    assert has_answer(block, ["montevideo"])
    assert has_answer(block, ["Rome", "capital name"])
    assert not has_answer(block, ["video"])
    assert not has_answer(block, ["the", "-", ""])


def test_has_answer_span():
    block = ["rio", "de", "la", "plata"]
    assert has_answer_span(block, [["x"], ["de", "la"]], max_span_width=2)
    assert not has_answer_span(block, [["de", "la", "plata"]], max_span_width=2)
    assert not has_answer_span(block, [["la", "de"], []], max_span_width=10)
    assert has_answer_span(block, [block], max_span_width=4)


def test_top_k_match():
    assert top_k_match([False, False, True, False], (1, 2, 3, 4)) == {
        "top_1_match": 0.0,
        "top_2_match": 0.0,
        "top_3_match": 1.0,
        "top_4_match": 1.0,
    }
    assert top_k_match([False], (1, 5)) == {"top_1_match": 0.0, "top_5_match": 0.0}


def test_means():
    assert means([{"a": 1.0, "f1": None}, {"a": 0.0, "f1": None}]) == {"a": 0.5, "f1": None}
    assert means([]) == {}


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
    assert has_answer(f"{before} {answer} {after}", [answer]) == (normalize_answer(answer) != "")


@check
@given(st.lists(st.integers(0, 2), max_size=12), st.lists(st.lists(st.integers(0, 2), max_size=4), max_size=3))
def test_spans_are_found_like_substrings(block, answers):
    text = "".join(map(str, block))
    expected = any(0 < len(answer) <= 3 and "".join(map(str, answer)) in text for answer in answers)
    assert has_answer_span(block, answers, 3) == expected


@check
@given(st.lists(st.booleans(), min_size=1, max_size=20))
def test_top_k_match_counts_the_first_k(hits):
    ks = range(1, len(hits) + 3)
    assert top_k_match(hits, ks) == {f"top_{k}_match": float(any(hits[:k])) for k in ks}


# ---- questions and the loop over them


def test_read_questions(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text('{"question": "who?", "answer": ["A", "b"]}\n', encoding="utf-8")
    assert list(read_questions(path)) == [Question("who?", ["A", "b"])]


@pytest.mark.parametrize(
    "value, message",
    [
        ({"answer": ["a"]}, 'line 2 has no "question"'),
        ({"question": "  ", "answer": ["a"]}, 'line 2 has no "question"'),
        ({"question": "who?"}, 'line 2 has no "answer"'),
        ({"question": "who?", "answer": []}, 'line 2 has no "answer"'),
        ({"question": "who?", "answer": "a"}, 'line 2 has no "answer"'),
        ({"question": "who?", "answer": [1]}, 'line 2 has no "answer"'),
    ],
)
def test_malformed_question_is_named(tmp_path, value, message):
    path = tmp_path / "questions.jsonl"
    path.write_text('{"question": "who?", "answer": ["A"]}\n' + json.dumps(value), encoding="utf-8")
    questions = read_questions(path)
    next(questions)
    with pytest.raises(ValueError, match=message):
        next(questions)


class ScriptedModel:
    """Answers and retrieves as told: the loop is tested, not the model."""

    def __init__(self):
        self.config = SimpleNamespace(reader_seq_len=11, max_span_width=2)
        records = [b"France. Capital: Paris", b"Italy. Capital: Rome", b"Spain. Capital: Madrid"]
        self.retriever = SimpleNamespace(block_records=records, tokenizer=SimpleNamespace(tokenize=tokenize))

    def answer(self, questions):
        blocks = [SimpleNamespace(text=record.decode()) for record in self.retriever.block_records[:2]]
        return [SimpleNamespace(text="Paris", blocks=blocks) for _ in questions]

    def retrieve(self, questions, k):
        import torch

        ids = torch.tensor([[0, 1, 2][:k]] * len(questions))
        return torch.zeros(ids.shape), ids


def test_evaluate():
    questions = [
        Question("capital of France", ["paris"]),
        Question("capital of Italy", ["Rome"]),
        Question("capital of Spain", ["Madrid"]),
    ]
    results = list(evaluate(ScriptedModel(), iter(questions), ks=(1, 2, 3, 5), batch_size=2))
    assert [result.question for result in results] == questions
    assert [result.measures["top_2_match"] for result in results] == [1, 1, 0]
    assert means(result.measures for result in results) == {
        "exact_match": 1 / 3,
        "official_exact_match": 1 / 3,
        "f1": 1 / 3,
        "reader_oracle": 2 / 3,
        "top_1_match": 1 / 3,
        "top_2_match": 2 / 3,
        "top_3_match": 1.0,
    }


def test_reader_oracle_sees_only_what_the_reader_sees():
    model = ScriptedModel()  # 11 - 3 - 3 = 5 wordpieces of the block: "france . capital: paris"
    question = Question("capital of France", ["Paris"])
    assert measure(model, question, "x", ["France. Capital: Paris"])["reader_oracle"] == 1
    assert measure(model, question, "x", ["France. The old capital: Paris"])["reader_oracle"] == 0
    assert measure(model, question, "x", ["Paris"] * 2)["reader_oracle"] == 1


def test_evaluate_regex():
    questions = [Question("capital of France", ["par.s$"]), Question("of Spain", ["madr(id"])]
    results = list(evaluate(ScriptedModel(), questions, regex=True, ks=(1,)))
    assert results[0].measures == {
        "exact_match": 1.0,
        "official_exact_match": 1.0,
        "f1": None,
        "reader_oracle": 1.0,
        "top_1_match": 1.0,
    }
    assert results[1].measures["exact_match"] == 0
