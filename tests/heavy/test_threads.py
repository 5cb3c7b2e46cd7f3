"""A thousand answers of one model and one tokenizer on eight threads: all right, and to the bit what one thread gives.

`make test-threads` runs this; the suite has a small part of it.
"""

import copy
import sys
from concurrent.futures import ThreadPoolExecutor

import eight_capitals
import pytest
import torch

from realm_min import RealmTokenizer

ANSWERS, THREADS = 1000, 8
TEXTS = ["Where is the capital?", "unaffable", "What is the capital of Peru? " * 9]
OPTIONS = [
    *(dict(padding="max_length", truncation=True, max_length=length) for length in range(3, 30)),
    *(dict(padding=padding, truncation=False) for padding in (True, False)),
    dict(padding=True, return_tensors="np", pad_to_multiple_of=8),
]


@pytest.fixture(autouse=True)
def often():
    """Threads take turns a thousand times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


def on_threads(work, times):
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, range(times)))


def test_a_thousand_answers():
    model = eight_capitals.open_qa().eval()
    questions = [f"What is the capital of {block.title}?" for block in eight_capitals.BLOCKS]
    alone = [model.answer([question]) for question in questions]
    tokenizer = model.retriever.tokenizer = copy.deepcopy(model.retriever.tokenizer)

    def answer(i):
        if i % 25 == 24:
            tokenizer.add_tokens([f"newword{i}"])  # in none of the texts
        return model.answer([questions[i % len(questions)]]) == alone[i % len(questions)]

    assert on_threads(answer, ANSWERS).count(True) == ANSWERS
    ids = tokenizer(questions[0], return_tensors="pt").input_ids
    scores = model.embedder(ids).projected_score
    assert all(torch.equal(model.embedder(ids).projected_score, scores) for _ in range(2))
    assert all(on_threads(lambda _: torch.equal(model.embedder(ids).projected_score, scores), ANSWERS))


@pytest.mark.parametrize("kind", ["fast", "by hand"])
def test_a_thousand_calls_that_ask_differently(kind, vocabulary):
    tokenizer = copy.deepcopy(eight_capitals.tokenizer()) if kind == "fast" else RealmTokenizer(vocabulary)
    alone = [{name: list(map(list, rows)) for name, rows in tokenizer(TEXTS, **given).items()} for given in OPTIONS]
    size = len(tokenizer)

    def call(i):
        if i % 10 == 9:
            return tokenizer.add_tokens([f"newword{i}", f"otherword{i}"]) == 2
        given = OPTIONS[i % len(OPTIONS)]
        found = {name: list(map(list, rows)) for name, rows in tokenizer(TEXTS, **given).items()}
        return found == alone[i % len(OPTIONS)]

    assert on_threads(call, ANSWERS).count(True) == ANSWERS
    added = [
        tokenizer.get_added_vocab()[f"{word}{i}"] for i in range(9, ANSWERS, 10) for word in ("newword", "otherword")
    ]
    assert sorted(added) == list(range(size, size + len(added)))
