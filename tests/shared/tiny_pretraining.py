"""A pre-training run small enough to be killed and repeated, for tests in this process and in another."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor

import realm_min
from realm_min.jobs import runs
from realm_min.jobs.embedding import Report
from realm_min.jobs.settings import Pretrain, TrainingRun, silent
from realm_min.text.corpus import Block

CONFIG = dict(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, retriever_proj_size=8,
    max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_candidates=4,
)  # fmt: skip
SETTINGS = Pretrain(
    steps=12, batch_size=3, num_candidates=4, learning_rate=2e-2, refresh_every=4, max_passage=24, max_block=40
)
CAPITALS = {"Uruguay": "Montevideo", "Norway": "Oslo", "Kenya": "Nairobi", "Japan": "Tokyo", "Peru": "Lima"}
BLOCKS = [
    Block(country, text)
    for country, capital in CAPITALS.items()
    for text in (
        f"Capital - name: {capital}. Capital - note: founded by {country[::-1].title()} in 1{len(capital)}04.",
        f"Its largest town is {capital}. Treaties were signed in {capital} on 4 March 19{len(country)}2.",
        f"no name stands here. The war with Ruritania ended in {capital}.",
    )
]


def new_models(seed: int = 0, **values: float) -> tuple[realm_min.RealmEmbedder, realm_min.RealmKnowledgeAugEncoder]:
    config = realm_min.RealmConfig(**CONFIG | values)
    return realm_min.RealmEmbedder(config, seed=seed), realm_min.RealmKnowledgeAugEncoder(config, seed=seed + 1)


def run(folder: Path, vocabulary: Path, resume: bool = False, report: Report = silent) -> list[Tensor]:
    """Train on one thread, with dropout, and a checkpoint every third step; returns all weights."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        models = new_models(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
        tokenizer = realm_min.RealmTokenizerFast(str(vocabulary))
        chosen = TrainingRun(folder, resume, save_every=3, report=report)
        runs.pretrain(chosen, BLOCKS, *models, tokenizer, SETTINGS)
    finally:
        torch.set_num_threads(threads)
    return [tensor.clone() for model in models for tensor in model.state_dict().values()]


def run_until_killed(folder: Path, vocabulary: Path) -> None:
    """Go on with the run, but never take its last step, so that the kill comes before."""
    last = SETTINGS.steps - 1
    run(folder, vocabulary, True, report=lambda stage, done, *_: time.sleep(10_000 if done == last else 0))
