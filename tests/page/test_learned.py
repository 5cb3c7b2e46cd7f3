"""The Learn view's numbers are the book's: equation 1, its gradient, and the step that follows it."""

import numpy as np
import pytest
import torch

from realm_min import textbook
from realm_min.page import learned, small_realm

TEXT, HIDDEN = learned.FIRST["text"], learned.FIRST["hidden"]


@pytest.fixture(scope="module")
def realm():
    return small_realm.load()


@pytest.fixture(scope="module")
def lesson(realm):
    return learned.lesson(realm, TEXT, HIDDEN)


def book(models, lesson):
    """The book's step: loss and gradients, for the same weights, texts and documents."""
    p = {
        "embedder": {name: x.numpy() for name, x in models.embedder.p.items()},
        "encoder": {name: x.numpy() for name, x in models.encoder.p.items()},
    }
    texts, documents, pairs = (
        tuple(x.numpy() for x in (batch.words, batch.mask, batch.types))
        for batch in (lesson.retrieved.texts, lesson.retrieved.documents, lesson.retrieved.pairs)
    )
    examples = texts, documents, lesson.retrieved.candidates.numpy(), pairs, lesson.retrieved.labels.numpy()
    loss, _, g = textbook.pretrain_step(p, models.embedder.config, examples)
    x, z = (textbook.embed(p["embedder"], models.embedder.config, batch)[0] for batch in (texts, documents))
    relevance = np.take_along_axis(x @ z.T, examples[2], 1)
    return float(loss), g, relevance[0]


@pytest.mark.parametrize("hidden", [HIDDEN, [2, 5]])
def test_what_is_seen_is_equation_1_and_its_gradient(realm, hidden):
    of, models = learned.lesson(realm, TEXT, hidden), learned.models_of(realm)
    seen = learned.look(realm, models, of)
    loss, _, relevance = book(models, of)
    assert seen["log_p"] == pytest.approx(-loss, abs=1e-4)
    assert seen["relevance"] == pytest.approx(relevance, abs=1e-3)
    likelihood = np.array(seen["likelihood"])[None, :, None]
    marginal, kept = textbook.marginal_log_likelihood(np.log(likelihood), relevance[None])
    dlog_likelihood, drelevance = textbook.marginal_log_likelihood_backward(np.ones_like(marginal), kept)
    assert seen["log_p"] == pytest.approx(float(marginal[0, 0]), abs=1e-4)
    assert seen["prior"] == pytest.approx(np.exp(relevance - textbook.logsumexp(relevance)), abs=1e-4)
    assert seen["posterior"] == pytest.approx(dlog_likelihood[0, :, 0], abs=1e-4)
    assert seen["r"] == pytest.approx(drelevance[0], abs=1e-4)
    assert len(seen["r"]) == 8 and len(of.numbers) == 7 and sum(seen["r"]) == pytest.approx(0, abs=1e-5)


def test_the_first_lesson_has_something_to_teach(realm, lesson):
    seen = learned.look(realm, learned.models_of(realm), lesson)
    place = 1 + lesson.numbers.index(next(i for i, text in enumerate(realm.sentences) if TEXT in text))
    assert seen["prior"][place] < 0.2 < 0.8 < seen["posterior"][place]
    assert seen["guesses"][place]["word"] == "ao" and seen["guesses"][place]["probability"] == pytest.approx(
        seen["likelihood"][place], abs=1e-4
    )


def test_a_step_follows_the_books_gradient(realm, lesson):
    models = learned.models_of(realm)
    _, g, _ = book(models, lesson)
    before = {name: x.clone() for name, x in models.embedder.p.items()}
    seen = learned.look(realm, models, lesson)
    assert learned.step(models, lesson, True) == pytest.approx(-seen["log_p"], abs=1e-5)
    grads = models.embedder.grads
    largest = max(np.abs(x).max() for x in g["embedder"].values())
    for name, gradient in g["embedder"].items():
        if name in grads and not name.startswith("cls.predictions"):
            assert np.abs(grads[name].numpy() - gradient).max() <= 1e-4 * largest, name
    name = "cls.dense.weight"  # AdamW's first update is the rate long, against the gradient
    moved = (models.embedder.p[name] - before[name])[grads[name].abs() > 1e-3 * largest]
    against = -torch.sign(grads[name])[grads[name].abs() > 1e-3 * largest]
    assert torch.equal(torch.sign(moved), against)
    assert learned.look(realm, models, lesson)["log_p"] > seen["log_p"]


def test_without_its_gradient_the_retriever_stays(realm, lesson):
    models = learned.models_of(realm)
    before = learned.look(realm, models, lesson)
    for _ in range(3):
        learned.step(models, lesson, False)
    after = learned.look(realm, models, lesson)
    assert after["prior"] == before["prior"] and after["relevance"] == before["relevance"]
    assert after["likelihood"] != before["likelihood"]
    assert all(torch.equal(x, realm.embedder.p[name]) for name, x in models.embedder.p.items())


def test_the_models_that_are_shown_are_copies(realm, lesson):
    before = {name: x.clone() for name, x in realm.encoder.p.items()}
    learned.step(learned.models_of(realm), lesson, True)
    assert all(torch.equal(x, before[name]) for name, x in realm.encoder.p.items())


def test_what_is_hidden(realm, lesson):
    mask = realm.tokenizer.mask_token_id
    assert lesson.retrieved.texts.words[0, 1:-1].tolist() == [
        mask if i in HIDDEN else word for i, word in enumerate(learned.pieces_of(realm, TEXT).ids)
    ]
    words = learned.words_of(realm, "Oslo is governed from Xyzzy.")
    assert [word["known"] for word in words][1:] == [True, True, True, False, True]
    for seed in range(4):
        (place,) = learned.salient(realm, TEXT, seed)
        assert TEXT[slice(*learned.pieces_of(realm, TEXT).offsets[place])] == "Angola"


@pytest.mark.parametrize(
    ("text", "hidden", "said"),
    [
        (" ", [0], "the sentence is empty: type one, or take another"),
        ("oslo " * 31, [0], "the sentence has 31 words and marks, the limit is 30: shorten it"),
        (TEXT, [], "no word is hidden: click one"),
        (TEXT, [7], "there is no word 7: give numbers from 0 to 6"),
        (TEXT, [-1], "there is no word -1"),
        (TEXT, [True], "there is no word True"),
        ("Xyzzy is it.", [0], "the small model has no word for 'Xyzzy': hide another"),
    ],
)
def test_what_cannot_be_hidden(realm, text, hidden, said):
    with pytest.raises(ValueError, match=said):
        learned.lesson(realm, text, hidden)


def test_no_name_no_salient_span(realm):
    with pytest.raises(ValueError, match="finds no name or date here: click a word to hide it"):
        learned.salient(realm, "the domain belongs to it.", 0)


def test_the_file_of_the_small_model(realm, tmp_path):
    small_realm.save(realm, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == small_realm.FILE.read_bytes()
    assert len(realm.documents) == len(realm.sentences) == 120 and len(realm.never_asked) == 30
    (tmp_path / "cut.safetensors").write_bytes(small_realm.FILE.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"cut\.safetensors cannot be read"):
        small_realm.load(tmp_path / "cut.safetensors")
