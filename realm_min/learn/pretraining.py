"""REALM pre-training: a retriever that learns from masked words (REALM sections 3.2 to 3.4).

One step, for each text x of a batch with a name or date masked out:

1. Embed x, and search the index for the blocks of largest f(x, z); the block that x was cut from is barred.
2. Put the null document, an empty text, before them: what needs no evidence can take it from there.
3. Compute f(x, z) afresh, x and z embedded by the embedder as it is now, and p(z|x) = softmax f(x, z).
4. Read x and each z in one sequence, "[CLS] x [SEP] z [SEP]", and predict the masked words: p(y|z,x).
5. The loss is -log Σ_z p(y|z,x) p(z|x); its gradient reaches both encoders, and the embedder on both of its sides.

The index is some hundred steps old (`refresh`): it only chooses the candidates.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..files.atomic import write_atomically
from ..jobs import loop, options, refresh, warm_start
from ..jobs.refresh import INDEX_FOLDER, IndexRefresher
from ..jobs.settings import Pretrain as Settings
from ..jobs.settings import settings_from
from ..model import ops
from ..model.base import Inputs, RealmModel, checked_batch
from ..model.embedder import RealmEmbedder, embed, embed_backward
from ..model.knowledge_encoder import (
    IGNORED,
    RealmKnowledgeAugEncoder,
    marginal_loss,
    marginal_loss_backward,
    masked_words,
    masked_words_backward,
)
from ..model.scorer import relevance, relevance_backward
from ..ranks.devices import chosen_device
from ..ranks.distributed import split, world
from ..search.mips import BlockIndex
from ..search.sharded_index import ShardedBlockIndex
from ..text.corpus import Block, Document, corpus_hash, cut_blocks
from .masking import MASKINGS, SpanFinder, mask, passages, salient_span, salient_spans
from .optimizer import AdamW

PLOT_FILE = "training.png"
STAGE = "Pre-training"
AT_ONCE = 1024  # texts tokenized in one call
OF_A_DOCUMENT = 1 << 20  # the sequence, for `loop.dropout_seed`, of a block that a step embeds: no text has as many


DEFAULTS = Settings()

NO_BLOCK = -1


class Text(NamedTuple):
    """Sentences to be masked, and the number of the block they were cut from or NO_BLOCK."""

    block: int
    title: str
    text: str


class Example(NamedTuple):
    """x as wordpieces without special tokens, some of them masked; `labels` are the ids behind the masks."""

    ids: list[int]
    labels: list[int]
    block: int


def pretrain(
    folder: str | os.PathLike,
    blocks: list[Block],
    embedder: RealmEmbedder,
    knowledge_encoder: RealmKnowledgeAugEncoder,
    tokenizer: Any,
    settings: Settings = DEFAULTS,
    *,
    find: SpanFinder = salient_spans,
    texts: list[Text] | None = None,
    resume: bool = False,
    save_every: int = 100,
    evaluate: loop.Evaluate | None = None,
    evaluate_every: int = 0,
    refresh_ranks: int = 0,
    report: Callable[..., None] = lambda stage, done, total, note="": None,
) -> Path:
    """Train both models in place; write FOLDER/embedder and FOLDER/knowledge_encoder, and the tokenizer beside them.

    Their configurations say how much dropout they have.

    Args:
        folder: the run's, see `loop`; its log.csv has the columns of `learn`, `staleness` (steps), `seconds_waited`
            for an index, and `tokens_per_second` read.
        tokenizer: a RealmTokenizerFast.
        find: finds salient spans; a tagger can take its place.
        texts: X, the texts to mask, where they are not the blocks' own, as CC-News in the paper, whose blocks are
            Wikipedia's (section 4.3). Their `block` is NO_BLOCK.
        evaluate, evaluate_every, save_every, resume, report: as `loop.train`.
        refresh_ranks: so many ranks, the last, do nothing but build indexes; their models are not trained.

    Raises:
        ValueError: settings out of range, a corpus without anything to mask, or too few ranks.
        ChildProcessError: the index builder failed.
        FileExistsError, DivergedError, KeyboardInterrupt: as `loop.train`.
    """
    folder, everyone = Path(folder), world()
    training = everyone.size - refresh_ranks
    _check(settings, blocks, embedder, knowledge_encoder)
    loop.check_batch(settings.batch_size, refresh_ranks)
    with split(refresh_ranks):
        if everyone.rank >= training:
            refresh.build_on_ranks(folder, blocks, embedder, tokenizer, everyone)
        else:
            builders = refresh.builders(everyone, refresh_ranks)
            with loop.only_job(folder):
                _train(
                    folder, blocks, embedder, knowledge_encoder, tokenizer, settings, find, texts, builders,
                    resume=resume, save_every=save_every, evaluate=evaluate, evaluate_every=evaluate_every,
                    report=report,
                )  # fmt: skip
    return folder


def _train(
    folder: Path,
    blocks: list[Block],
    embedder: RealmEmbedder,
    knowledge_encoder: RealmKnowledgeAugEncoder,
    tokenizer: Any,
    settings: Settings,
    find: SpanFinder,
    texts: list[Text] | None,
    builders: refresh.NewBuilder,
    *,
    report: Callable[..., None],
    **given: Any,
) -> None:
    choose = MASKINGS[settings.masking]
    if choose is salient_span:
        choose = lambda text, rng: salient_span(text, rng, find)  # noqa: E731
    if texts is None:
        texts = cut_texts(blocks, tokenizer, settings.max_passage, choose, report)
    else:
        texts = with_something_to_mask(texts, tokenizer, choose)
        if not texts:
            raise ValueError("no text has anything to mask: give others, or another masking")
    optimizer = AdamW(settings.learning_rate, settings.steps, warmup_steps=int(settings.warmup * settings.steps))
    models: dict[str, RealmModel] = {"embedder": embedder, "knowledge_encoder": knowledge_encoder}
    trained: dict[str, RealmModel] = {"knowledge_encoder": knowledge_encoder} if settings.encoder_alone else models
    for model in models.values():
        model.train(model in trained.values())
    loop.take_from_first({name: model for name, model in models.items() if name not in trained})
    at = 0  # the step
    every = settings.steps if settings.encoder_alone or settings.freeze_documents else settings.refresh_every

    def waiting(done: int, total: int) -> None:
        report(STAGE, at, settings.steps, f"waiting for the index: {done:,} of {total:,} blocks")

    refresher = IndexRefresher(
        folder, blocks, embedder, tokenizer, every=every, steps=settings.steps, waiting=waiting, builders=builders
    )
    embeddings = index = None

    def step(number: int) -> dict[str, float]:
        nonlocal at, embeddings, index
        at = number
        found = refresher.embeddings(number)
        if index is None or found is not embeddings:
            embeddings, index = found, refresh.searchable(found, embedder.device)
        started = time.perf_counter()
        picked = loop.batch(number, settings.batch_size, len(texts), settings.seed)
        share, own = loop.share(settings.seed, number, [texts[i] for i in picked])
        examples = hide(own, tokenizer, choose, [share.random(place) for place in share.places])
        logged = learn(embedder, knowledge_encoder, tokenizer, blocks, index, examples, settings, share)
        tokens = logged.pop("tokens")
        return logged | {
            "staleness": loop.once(refresher.staleness(number)),
            "seconds_waited": loop.once(refresher.seconds_waited),
            "tokens_per_second": tokens / (time.perf_counter() - started),
        }

    identity = {
        "task": "pretrain",
        "corpus": corpus_hash(blocks),
        "texts": corpus_hash(Block(text.title, text.text) for text in texts),
        "embedder": embedder.config.to_dict(),
        "knowledge_encoder": knowledge_encoder.config.to_dict(),
    }
    with refresher:
        loop.train(
            folder, trained, optimizer, step, settings={**identity, **settings._asdict()}, seed=settings.seed,
            frozen=loop.frozen(settings.freeze_word_embeddings),
            stage=STAGE, report=report, **given,
        )  # fmt: skip
    loop.write_models(folder, models, tokenizer)
    world().on_first(lambda: shutil.rmtree(folder / INDEX_FOLDER, ignore_errors=True))


def _check(
    settings: Settings, blocks: list[Block], embedder: RealmEmbedder, knowledge_encoder: RealmKnowledgeAugEncoder
) -> None:
    settings.check()
    if settings.num_candidates > len(blocks):
        raise ValueError(
            f"num_candidates={settings.num_candidates} must lie in 2..{len(blocks)}: the null document and some of the "
            f"other {len(blocks) - 1} blocks"
        )
    positions = min(embedder.config.max_position_embeddings, knowledge_encoder.config.max_position_embeddings)
    if not settings.max_passage < positions:
        raise ValueError(
            f"max_passage={settings.max_passage} leaves no room for evidence: the models read {positions} tokens"
        )


# ---- texts


def cut_texts(
    blocks: list[Block],
    tokenizer: Any,
    max_wordpieces: int,
    choose: Callable[..., list[int]],
    report: Callable[..., None] = lambda stage, done, total: None,
) -> list[Text]:
    """Cut blocks into texts of whole sentences; those in which `choose` finds nothing to mask are left out.

    Each carries the title of its block, without which "Capital - name: Oslo." could be anyone's.

    Raises:
        ValueError: nothing is left.
    """

    def letters(text: str) -> int:
        return sum(map(len, text.split()))

    texts, pending = [], []
    number, left = -1, 0  # the block that is being cut, and its letters still to come
    for cut in cut_blocks(map(Document._make, blocks), tokenizer, max_wordpieces):
        while left == 0:
            number += 1
            left = letters(blocks[number].text)
        left -= letters(cut.text)
        pending.append(Text(number, *cut))
        if len(pending) == AT_ONCE or (left == 0 and number == len(blocks) - 1):
            texts += with_something_to_mask(pending, tokenizer, choose)
            pending = []
            report("Cutting blocks into texts", number + 1, len(blocks))
    texts += with_something_to_mask(pending, tokenizer, choose)  # where the last blocks have no text
    if not texts:
        raise ValueError("no text of the corpus has anything to mask: give a larger corpus, or another masking")
    return texts


def with_something_to_mask(texts: list[Text], tokenizer: Any, choose: Callable[..., list[int]]) -> list[Text]:
    found = passages([(text.title, text.text) for text in texts], tokenizer)
    rng = np.random.default_rng(0)  # whether there is something to choose does not depend on what is drawn
    return [text for text, one in zip(texts, found, strict=True) if choose(one, rng)]


def hide(
    texts: list[Text], tokenizer: Any, choose: Callable[..., list[int]], random: list[np.random.Generator]
) -> list[Example]:
    """Mask what `choose` draws of each text, with a generator of its own."""
    found = passages([(text.title, text.text) for text in texts], tokenizer)
    return [
        Example(*mask(one.ids, choose(one, rng), tokenizer.mask_token_id), text.block)
        for text, one, rng in zip(texts, found, random, strict=True)
    ]


# ---- one step


def learn(
    embedder: RealmEmbedder,
    knowledge_encoder: RealmKnowledgeAugEncoder,
    tokenizer: Any,
    blocks: list[Block],
    index: BlockIndex | ShardedBlockIndex,
    examples: list[Example],
    settings: Settings,
    share: loop.Share,
) -> dict[str, float]:
    """Add the gradients of a batch's loss to both models, which are in training mode; `Settings` says what is frozen.

    Args:
        examples: this rank's part of the batch, as `share` says.

    Returns what adds up over the ranks to:
        loss: -log p(y|x) a masked wordpiece.
        retrieval_utility: Σ_z p(z|x) [log p(y|z,x) - log p(y|∅,x)], how much better than the null document the
            retrieved ones predict y, in nats a text, averaged over the batch (REALM appendix D).
        null_probability: p(∅|x), averaged. Neither is there without a null document.
        tokens: how many were read.
    """

    query_inputs = pad([[*sequence(tokenizer, example.ids)] for example in examples], embedder)
    p, config = embedder.p, embedder.config
    (queries, _), kept_x = embed(
        p, config, checked_batch(config, Inputs(**query_inputs)), embedder.run_to_learn(share.dropout_seeds())
    )
    own = torch.tensor([example.block for example in examples], device=index.device)
    found = retrieve(index, queries.to(index.device), own, settings.num_candidates - settings.null_document).tolist()

    distinct = sorted({block for row in found for block in row})
    rows = {block: row for row, block in enumerate(distinct, start=1)}  # row 0 is the null document
    first = [0] if settings.null_document else []
    candidates = torch.tensor([first + [rows[block] for block in row] for row in found], device=queries.device)
    evidence = [blocks[block] for block in distinct]
    frozen = settings.encoder_alone or settings.freeze_documents
    # Frozen blocks are as the index has them: the null document alone, which is in no index, is embedded.
    embedded = [] if frozen else evidence
    document_inputs = pad(document_sequences(tokenizer, embedded, embedder, settings.max_block), embedder)
    # A block has the same masks for all texts that retrieve it, and so on all ranks.
    numbers = [0] if frozen else [0, *(1 + block for block in distinct)]
    run = embedder.run_to_learn(
        [loop.dropout_seed(share.seed, share.step, number, OF_A_DOCUMENT) for number in numbers]
    )
    (documents, _), kept_z = embed(p, config, checked_batch(config, Inputs(**document_inputs)), run)
    if frozen:
        documents = torch.cat([documents, index.rows(torch.tensor(distinct)).to(documents)])
    relevance_score, kept_relevance = relevance(queries, documents[candidates])  # [batch, candidates]

    joint, labels = joint_inputs(tokenizer, examples, candidates.tolist(), evidence, knowledge_encoder, settings)
    repeated = labels.repeat_interleave(settings.num_candidates, 0)  # the same y for each z
    log_likelihood, kept_words = masked_words(
        knowledge_encoder.p, knowledge_encoder.config, checked_batch(knowledge_encoder.config, Inputs(**joint)),
        repeated, knowledge_encoder.run_to_learn(share.dropout_seeds(1, settings.num_candidates)),
    )  # fmt: skip
    log_likelihood = log_likelihood.view(*candidates.shape, -1)  # [batch, candidates, tokens]

    masked, whole_span = labels != IGNORED, settings.marginal == "span"
    # The loss is a mean over the masked words of the whole batch.
    count = int(masked.sum())
    weight = count / max(share.total(count), 1)
    loss = weight * marginal_loss(log_likelihood, relevance_score, masked, whole_span)
    dlog_likelihood, drelevance = marginal_loss_backward(
        torch.full_like(loss, weight), log_likelihood, relevance_score, masked, whole_span
    )
    with knowledge_encoder.own_grads.last_pass():
        masked_words_backward(dlog_likelihood.flatten(0, 1), kept_words, knowledge_encoder.own_grads)
    dqueries, dpicked = relevance_backward(drelevance, kept_relevance)
    if not frozen:
        ddocuments = torch.zeros_like(documents).index_add_(0, candidates.flatten(), dpicked.flatten(0, 1))
        embed_backward(ddocuments, kept_z, embedder.own_grads)
    if not settings.encoder_alone:
        with embedder.own_grads.last_pass():
            embed_backward(dqueries, kept_x, embedder.own_grads)

    read = (query_inputs, document_inputs, joint)
    logged = {"loss": float(loss), "tokens": float(sum(inputs["attention_mask"].sum() for inputs in read))}
    if settings.null_document:
        prior = ops.softmax(relevance_score)
        span_log_likelihood = log_likelihood.sum(2)  # [batch, candidates]
        utility = span_log_likelihood - span_log_likelihood[:, :1]
        part = len(examples) / share.count
        logged["retrieval_utility"] = part * float((prior * utility).sum(1).mean())
        logged["null_probability"] = part * float(prior[:, 0].mean())
    return logged


def retrieve(index: BlockIndex | ShardedBlockIndex, queries: Tensor, barred: Tensor, count: int) -> Tensor:
    """The `count` blocks of largest inner product with each query, without its barred one.

    queries [batch, proj], barred [batch] int64 -> [batch, count] int64, best first. One more is searched for, so that
    the answer is exact.
    """
    _, ids = index.search(queries.float(), count + 1)
    kept = ids != barred[:, None]
    kept[:, -1] &= ~kept.all(1)  # where the barred block is not among them, the last is one too many
    return ids[kept].view(len(queries), count)


def sequence(tokenizer: Any, first: Iterable[int], second: Iterable[int] | None = None) -> list[tuple[int, int]]:
    """(id, type) of "[CLS] first [SEP]" or "[CLS] first [SEP] second [SEP]"."""
    of_first = [(token, 0) for token in (tokenizer.cls_token_id, *first, tokenizer.sep_token_id)]
    return of_first if second is None else [*of_first, *((token, 1) for token in (*second, tokenizer.sep_token_id))]


def pad(sequences: list[list[tuple[int, int]]], model: Any) -> dict[str, Tensor]:
    """`input_ids`, `token_type_ids` and `attention_mask` [sequences, tokens] for `model`."""
    tokens = max(map(len, sequences))
    padded = torch.full((len(sequences), tokens, 3), 0)
    padded[:, :, 0] = model.config.pad_token_id
    for row, values in zip(padded, sequences, strict=True):
        row[: len(values)] = torch.tensor([(token, kind, 1) for token, kind in values])
    ids, types, attention = padded.to(model.device).unbind(2)
    return {"input_ids": ids, "token_type_ids": types, "attention_mask": attention}


def document_sequences(
    tokenizer: Any, evidence: list[Block], embedder: RealmEmbedder, max_wordpieces: int
) -> list[list[tuple[int, int]]]:
    """What Embed_doc reads, "[CLS] title [SEP] text [SEP]", of the null document "[CLS] [SEP] [SEP]" and each block."""
    null = sequence(tokenizer, (), ())
    if not evidence:
        return [null]
    encoded = tokenizer(
        [block.title for block in evidence], [block.text for block in evidence], truncation="only_second",
        max_length=min(max_wordpieces, embedder.config.max_position_embeddings),
    )  # fmt: skip
    pairs = zip(encoded["input_ids"], encoded["token_type_ids"], strict=True)
    return [null, *(list(zip(ids, types, strict=True)) for ids, types in pairs)]


def joint_inputs(
    tokenizer: Any,
    examples: list[Example],
    candidates: list[list[int]],
    evidence: list[Block],
    knowledge_encoder: RealmKnowledgeAugEncoder,
    settings: Settings,
) -> tuple[dict[str, Tensor], Tensor]:
    """What the knowledge-augmented encoder reads, "[CLS] x [SEP] title. text [SEP]" for each candidate.

    Args:
        candidates: [batch, candidates], 0 for the null document, i for evidence[i - 1].

    Returns:
        Inputs [batch * candidates, tokens], and the labels [batch, tokens].
    """
    encoded = tokenizer([f"{block.title}. {block.text}" for block in evidence], add_special_tokens=False)
    documents = [[], *(ids[: settings.max_block - 3] for ids in encoded["input_ids"])]
    positions = knowledge_encoder.config.max_position_embeddings
    sequences = [
        sequence(tokenizer, example.ids, documents[candidate])[: positions - 1]
        for example, row in zip(examples, candidates, strict=True)
        for candidate in row
    ]
    for values in sequences:
        if values[-1][0] != tokenizer.sep_token_id:  # cut short
            values.append((tokenizer.sep_token_id, 1))
    inputs = pad(sequences, knowledge_encoder)
    labels = torch.full((len(examples), inputs["input_ids"].shape[1]), IGNORED)
    for row, example in zip(labels, examples, strict=True):
        row[1 : 1 + len(example.labels)] = torch.tensor(example.labels)
    return inputs, labels.to(knowledge_encoder.device)


# ---- the plot


def plot(folder: str | os.PathLike) -> Path:
    """Draw loss, retrieval utility and staleness of a run's log.csv against its steps, into training.png beside it.

    Raises:
        ModuleNotFoundError: matplotlib is not installed (the extra `plot`).
        FileNotFoundError: there is no log.
    """
    from matplotlib.figure import Figure

    log = loop.read_log(Path(folder) / loop.LOG_FILE)
    steps = np.array(log["step"])
    width = max(1, len(steps) // 40)
    shown = {
        "loss": "loss,\nnats a masked wordpiece",
        "retrieval_utility": "retrieval utility,\nnats a text",
        "null_probability": "p(∅|x)",
        "staleness": "age of the index,\nsteps",
    }
    shown = {column: label for column, label in shown.items() if column in log}
    figure = Figure(figsize=(8, 1 + 2 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), 1, sharex=True)
    for axis, (column, label) in zip(axes, shown.items(), strict=True):
        values = np.array(log[column])
        averaged = np.convolve(values, np.ones(width) / width, "valid") if column != "staleness" else values
        axis.plot(steps, values, color="0.8", linewidth=0.7)
        axis.plot(steps[len(steps) - len(averaged) :], averaged, linewidth=1.3)
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        if column == "retrieval_utility":
            axis.axhline(0, color="0.4", linewidth=0.8)
    axes[0].set_title(f"Pre-training; bold: mean of {width} steps" if width > 1 else "Pre-training")
    axes[-1].set_xlabel("step")
    path = Path(folder) / PLOT_FILE
    with write_atomically(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return path


# ---- command line


def run(given: argparse.Namespace) -> None:
    """Run `realm-min pretrain`."""
    from ..app.cli import progress_report

    device = chosen_device(given.device)
    embedder = warm_start.embedder(given.model, given.seed, **options.dropout(given)).to(device)
    knowledge_encoder = warm_start.knowledge_encoder(given.model, given.seed, **options.dropout(given)).to(device)
    tokenizer = warm_start.tokenizer(given.model)
    with progress_report() as report:
        limit = min(given.max_block, embedder.config.max_position_embeddings)
        blocks = options.read_blocks(given.corpus, tokenizer, limit, report)
        pretrain(
            given.out, blocks, embedder, knowledge_encoder, tokenizer, settings_from(given, DEFAULTS),
            resume=given.resume, save_every=given.save_every, refresh_ranks=given.refresh_ranks, report=report,
        )  # fmt: skip
    if importlib.util.find_spec("matplotlib"):
        drawn = world().on_first(lambda: plot(given.out))
        options.remark(f"The course of the training is drawn in {drawn}")
    else:
        options.remark('No plot: it needs matplotlib, pip install "realm-min[plot]"')
    options.remark(f"Ready: realm-min finetune QUESTIONS.jsonl {given.corpus} --model {given.out} --out FOLDER")
