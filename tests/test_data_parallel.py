"""Training on several ranks: what they learn is what one learns, and a run outlives the ranks that it began with."""

import numpy as np
import pytest
import ranks
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from realm_min import RealmConfig, RealmEmbedder, RealmForOpenQA, RealmKnowledgeAugEncoder, RealmRetriever, indexing
from realm_min.corpus import Block, record
from realm_min.evaluation import Question
from realm_min.training import exchange, finetuning, ict, loop, mlm, pretraining, warm_start
from realm_min.training.finetuning import TrainingQuestion

SMALL = dict(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, retriever_proj_size=8,
    span_hidden_size=8, max_position_embeddings=128, initializer_range=0.2,
)  # fmt: skip
COUNTRIES = ["Norway", "Peru", "Kenya", "Japan", "Chad", "Cuba", "Laos", "Oman"]
CITIES = ["Oslo", "Lima", "Nairobi", "Tokyo", "Paris", "Havana", "London", "Berlin"]
CLIMATES = ["cold", "dry in summer", "hot", "mild near the sea and dry in the mountains"] * 2
BLOCKS = [
    Block(country, f"Capital: {city}. The climate of {country} is {climate}. Its people like music and food.")
    for country, city, climate in zip(COUNTRIES, CITIES, CLIMATES, strict=True)
]
QUESTIONS = [
    TrainingQuestion(f"what is the capital of {country.lower()}?", [city], country)
    for country, city in zip(COUNTRIES, CITIES, strict=True)
]
COMMON = dict(steps=20, learning_rate=1e-4, freeze_word_embeddings=False, seed=3)


def train_ict(folder, dtype, **values):
    embedder = RealmEmbedder(RealmConfig(**SMALL), seed=2).to(dtype)
    chosen = ict.Settings(batch_size=8, **COMMON)._replace(**values)
    ict.warm_up(folder, BLOCKS, embedder, warm_start.tokenizer(None), chosen)
    return {"embedder": embedder}


def train_mlm(folder, dtype, **values):
    encoder = RealmKnowledgeAugEncoder(RealmConfig(**SMALL), seed=2).to(dtype)
    chosen = mlm.Settings(batch_size=8, **COMMON)._replace(**values)
    mlm.warm_up(folder, BLOCKS, encoder, warm_start.tokenizer(None), chosen)
    return {"encoder": encoder}


def train_pretraining(folder, dtype, refresh_ranks=0, **values):
    """Indexes of steps 0 and 8 are searched; ranks retrieve blocks that others retrieve too."""
    config = RealmConfig(**SMALL)
    embedder, encoder = RealmEmbedder(config, seed=2).to(dtype), RealmKnowledgeAugEncoder(config, seed=3).to(dtype)
    chosen = pretraining.Settings(
        batch_size=4, num_candidates=3, refresh_every=8, max_passage=24, max_block=40, masking="tokens", **COMMON
    )._replace(**values)
    pretraining.pretrain(
        folder, BLOCKS, embedder, encoder, warm_start.tokenizer(None), chosen, refresh_ranks=refresh_ranks
    )
    return {"embedder": embedder, "encoder": encoder}


def train_finetuning(folder, dtype, refresh_ranks=0, **values):
    tokenizer = warm_start.tokenizer(None)
    config = RealmConfig(**SMALL, num_block_records=8, searcher_beam_size=6, reader_beam_size=2)
    model = RealmForOpenQA(config, retriever=RealmRetriever([record(block) for block in BLOCKS], tokenizer), seed=1)
    model.eval().block_emb = indexing.embed_blocks(model.embedder, tokenizer, BLOCKS)
    model.to(dtype)
    chosen = finetuning.Settings(batch_size=4, refresh_every=8, **COMMON)._replace(**values)
    dev = [Question(question.question, question.answers) for question in QUESTIONS[:5]]
    finetuning.finetune(
        folder, model, QUESTIONS, chosen, blocks=BLOCKS, dev=dev, evaluate_every=8, refresh_ranks=refresh_ranks
    )
    return {"model": model}


JOBS = {"ict": train_ict, "mlm": train_mlm, "pretrain": train_pretraining, "finetune": train_finetuning}
PRECISIONS = {"float64": 1e-12, "float32": 1e-6}  # and how far several ranks may be from one
# No loss depends on them, since a softmax does not: their gradient is nothing but rounding, which Adam makes larger.
KEY_BIAS, KEY_BIAS_TOLERANCE = "self.key.bias", 1e-5


def learn(job, folder, precision, **values):
    """All weights after a run of `job`, as arrays."""
    models = JOBS[job](folder, getattr(torch, precision), **values)
    return {
        f"{name}.{key}": value.numpy().copy()
        for name, model in models.items()
        for key, value in model.state_dict().items()
    }


def learn_all(folder):
    return {
        (job, precision): learn(job, folder / f"{job}-{precision}", precision)
        for job in JOBS
        for precision in PRECISIONS
    }


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """What each rank has after 20 steps of every job, by the number of ranks."""
    folder = tmp_path_factory.mktemp("runs")
    return {size: ranks.run(learn_all, size, folder / str(size)) for size in (1, 2, 3)}


def largest_difference(a, b, only=lambda key: True):
    assert a.keys() == b.keys()
    return max(float(np.abs(a[key] - b[key]).max()) for key in a if only(key))


@pytest.mark.parametrize("precision", list(PRECISIONS))
@pytest.mark.parametrize("job", list(JOBS))
def test_any_number_of_ranks_learns_the_same(learnt, job, precision):
    """With dropout 0.1, and of three ranks one with a smaller share of a batch of 8."""
    alone = learnt[1][0][job, precision]
    for size in (2, 3):
        first, *others = (found[job, precision] for found in learnt[size])
        assert largest_difference(first, alone, lambda key: KEY_BIAS not in key) <= PRECISIONS[precision]
        assert largest_difference(first, alone) <= KEY_BIAS_TOLERANCE
        assert all(largest_difference(other, first) == 0 for other in others)


@pytest.mark.parametrize("job", list(JOBS))
def test_twenty_steps_move_the_weights(tmp_path, learnt, job):
    begun = learn(job, tmp_path / "run", "float64", steps=1)
    assert largest_difference(begun, learnt[1][0][job, "float64"]) > 5e-4


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 3), st.sampled_from([4, 8, 12]), st.booleans(), st.integers(10, 2000))
def test_buckets_hold_what_is_trained_once_and_last_first(layers, hidden, frozen_words, size):
    config = RealmConfig(**SMALL | dict(num_hidden_layers=layers, hidden_size=hidden, vocab_size=30))
    encoder = RealmKnowledgeAugEncoder(config)
    _, trained = loop._trainable({"knowledge_encoder": encoder}, loop.frozen(frozen_words))
    assert 0 < len(trained) < len(encoder.grads)
    found = exchange.buckets(encoder.own_grads, {grad.data_ptr() for grad in trained.values()}, size)
    assert found == sorted(found, reverse=True)
    for start, stop in found:
        assert 0 < stop - start <= size
        encoder.own_grads.flat[start:stop] += 1
    for key, grad in encoder.grads.items():
        assert bool((grad == float(f"knowledge_encoder.{key}" in trained)).all()), key
