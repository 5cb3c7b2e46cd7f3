"""The small REALM that the page's Learn view shows, trained from masked words alone and stopped half-way.

    python benchmarks/train_small.py --out realm_min/assets/small-realm.safetensors

Its world is that of `realm_min.app.learn`: 120 lines of the CIA World Factbook, three for each of 40 countries, and
sentences that share no word with their line but the country's name. First the encoder learns to use a document, from
facts dealt anew; then retriever and encoder learn together, by the library's own pre-training step, with the null
document among the candidates. It stops early: a retriever that is half right has most to show of what a step does.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from realm_min import RealmEmbedder, RealmKnowledgeAugEncoder
from realm_min.app import learn
from realm_min.interface.inputs import Inputs, checked_batch
from realm_min.jobs.draws import Draws
from realm_min.jobs.preparation import encode_evidence
from realm_min.learn.mlm import mlm_step
from realm_min.learn.optimizer import AdamW
from realm_min.learn.pretraining import NO_BLOCK, Example, gather_evidence, labels_of, pretrain_step
from realm_min.page.learned import SETTINGS
from realm_min.page.small_realm import SmallRealm, index_of, save
from realm_min.text.sequences import join, pad

COPY_STEPS, COPY_BATCH, COPY_RATE = 300, 64, 5e-3
STEPS = 120  # of learning to retrieve; then
NULL_STEPS, NULL_RATE, BATCH = 10, 3e-4, 4  # with the null document
# What is hidden while the encoder learns to copy: the answer, the country, any other word; or the answer, with no
# document to copy from, so that the null document means something.
HIDDEN, SHARES = ("answer", "country", "other", "nothing to read"), (0.55, 0.15, 0.15, 0.15)


def place_of(kind: str, ids: list[int], answer: int, country: int, rng: np.random.Generator) -> int:
    """Which wordpiece of a sentence is hidden; the last is its full stop."""
    if kind in ("answer", "nothing to read"):
        return ids.index(answer)
    if kind == "country":
        return ids.index(country)
    others = [i for i, word in enumerate(ids[:-1]) if word not in (answer, country)]
    return others[rng.integers(len(others))]


def hidden(ids: list[int], place: int, mask_id: int) -> Example:
    labels = [-100] * len(ids)
    labels[place] = ids[place]
    return Example([mask_id if i == place else word for i, word in enumerate(ids)], labels, (NO_BLOCK,))


def sentence_with(question: list[int], answer: int, mask_id: int) -> list[int]:
    return [answer if word == mask_id else word for word in question]


def learn_to_use_a_document(task: learn.Task, encoder: RealmKnowledgeAugEncoder, seed: int) -> None:
    """The encoder's warm-up, in place: facts are dealt anew at each step, so that there is nothing to remember."""
    rng = np.random.default_rng([seed, 2])
    optimizer = AdamW(COPY_RATE, COPY_STEPS, warmup_steps=COPY_STEPS // 10)
    documents, mask_id = learn.evidence_ids(task), task.tokenizer.mask_token_id
    field = len(task.facts) // len(learn.FIELDS)  # facts lie field by field
    for step in range(COPY_STEPS):
        examples, sequences = [], []
        for i in rng.integers(len(task.facts), size=COPY_BATCH).tolist():
            dealt = task.answers[i - i % field + int(rng.integers(field))]
            question = task.questions[i][rng.integers(len(task.questions[i]))]
            ids, kind = sentence_with(question, dealt, mask_id), str(rng.choice(HIDDEN, p=SHARES))
            place = place_of(kind, ids, dealt, documents[i][0], rng)
            document = [dealt if word == task.answers[i] else word for word in documents[i]]
            examples.append(hidden(ids, place, mask_id))
            sequences.append(join(task.tokenizer, examples[-1].ids, [] if kind == HIDDEN[-1] else document))
        inputs = pad(sequences, encoder)
        labels = labels_of(examples, inputs["input_ids"].shape[1])
        encoder.zero_grads()
        found = mlm_step(encoder, checked_batch(encoder.config, Inputs(**inputs)), labels, [0] * COPY_BATCH)["loss"]
        optimizer.update(encoder.state_dict(), encoder.grads, found.count)
        if step % 20 == 0:
            print(f"copying, step {step}: loss {found.total / found.count:.3f}", flush=True)


def learn_to_retrieve(task: learn.Task, realm: SmallRealm, seed: int) -> None:
    """Equation 1 summed over all documents, in place: `realm_min.app.learn`, ended early."""
    for record in learn.learn(task, realm.encoder, realm.embedder, learn.DEFAULTS, seed=seed):
        say(record)
        if record.step == STEPS:
            return


def learn_with_null(task: learn.Task, realm: SmallRealm, seed: int, keep: Callable[[int], None]) -> None:
    """The pre-training step as the page takes it, in place: the null document and the best of the others.

    It comes in late. While the retriever knows nothing, the null document is better than what is found, and takes all
    of p(z|x) to itself: then nothing is learnt.
    """
    rng = np.random.default_rng([seed, 3])
    optimizers = tuple(AdamW(NULL_RATE, 4 * NULL_STEPS) for _ in range(2))
    mask_id, models = task.tokenizer.mask_token_id, (realm.encoder, realm.embedder)
    blocks = encode_evidence(realm.documents, task.tokenizer)
    for step in range(NULL_STEPS):
        keep(step)
        examples = []
        for i in rng.choice(task.trained, BATCH).tolist():
            question = task.questions[i][rng.integers(len(task.questions[i]))]
            ids = sentence_with(question, task.answers[i], mask_id)
            examples.append(hidden(ids, ids.index(task.answers[i]), mask_id))
        draws = Draws(seed, step, list(range(BATCH)))
        for model in models:
            model.zero_grads()
        batch = gather_evidence(models[::-1], task.tokenizer, blocks, index_of(realm), examples, draws, SETTINGS)
        loss = pretrain_step(models[::-1], batch, SETTINGS)["loss"]
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.update(model.state_dict(), model.grads, loss.count)
        if step % 5 == 4:
            say(learn.measure(task, realm.embedder, step + 1, loss.total / loss.count))


def say(record: learn.Record) -> None:
    print(
        f"step {record.step}: loss {record.loss:.2f}, found first {record.trained_r1:.2f} of what was asked about and "
        f"{record.held_out_r1:.2f} of the rest, among five {record.trained_r5:.2f} and {record.held_out_r5:.2f}, "
        f"p(z|x) {record.evidence_probability:.2f}", flush=True,
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.safetensors")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep-every", type=int, default=0, metavar="STEPS", help="keep these states, too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    task = learn.make_task(learn.DEFAULTS.countries, options.seed)
    config = learn.configuration(task, learn.DEFAULTS)
    realm = SmallRealm(
        task.tokenizer, RealmEmbedder(config, seed=options.seed + 1),
        RealmKnowledgeAugEncoder(config, seed=options.seed), [fact.block for fact in task.facts],
        [[text.format(fact.block.title).replace("[MASK]", fact.answer) for text in learn.FIELDS[fact.field][1]]
         for fact in task.facts],
        task.held_out,
    )  # fmt: skip
    learn_to_use_a_document(task, realm.encoder, options.seed)
    learn_to_retrieve(task, realm, options.seed)

    def keep(step: int) -> None:
        if options.keep_every and step % options.keep_every == 0:
            save(realm, options.out.with_name(f"{options.out.stem}-{step}{options.out.suffix}"))

    learn_with_null(task, realm, options.seed, keep)
    save(realm, options.out)


if __name__ == "__main__":
    main()
