"""The four kinds of training, each a loop around its step: what it trains on, with which index, and what it leaves."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..interface.base import RealmModel
from ..interface.embedder import RealmEmbedder
from ..interface.inputs import check_span_width
from ..interface.knowledge_encoder import RealmKnowledgeAugEncoder
from ..interface.open_qa import RealmForOpenQA
from ..kinds import checked
from ..learn.finetuning import EncodedQuestion, Evidence, finetune_step
from ..learn.ict import cloze, ict_step, sentences_and_blocks
from ..learn.mlm import masked_blocks, mlm_step
from ..learn.pretraining import Text, gather_evidence, hide, pretrain_step
from ..learn.steps import Sum
from ..ranks.distributed import world
from ..ranks.share import share_of
from ..text.corpus import Block, corpus_hash, record, split_sentences
from ..text.names_and_dates import SpanFinder
from ..text.questions import Question, TrainingQuestion
from ..text.tokenizer import RealmTokenizerFast
from ..text.tokenizer_base import BaseTokenizer
from . import loop, refresh
from .draws import Draws
from .embedding import embed_on_ranks
from .evaluation import evaluate, means
from .preparation import PretrainingCorpus, encode_blocks, encode_questions, pretraining_corpus
from .refresh import INDEX_FOLDER, IndexRefresher
from .run_checkpoints import weights_checksum
from .settings import BLOCK_EMBEDDINGS, Finetune, Ict, Mlm, Pretrain, TrainingRun
from .tagging import tagger
from .warm_start import EMBEDDER, KNOWLEDGE_ENCODER

# A run's own defaults: those of its settings.
ICT, MLM, PRETRAIN, FINETUNE = Ict(), Mlm(), Pretrain(), Finetune()


@checked
def ict(
    run: TrainingRun, blocks: list[Block], embedder: RealmEmbedder, tokenizer: BaseTokenizer, settings: Ict = ICT
) -> Path:
    """Train `embedder` in place and write it to FOLDER/embedder, with the tokenizer in FOLDER.

    Raises:
        ValueError: no block has two sentences; settings out of range; ranks that are to build indexes.
        FileExistsError, DivergedError, KeyboardInterrupt: as `loop.train`.
    """
    settings.check()
    usable = [block for block in blocks if len(split_sentences(block.text)) > 1]
    if len(usable) < 2:
        raise ValueError("the Inverse Cloze Task needs two blocks of two sentences or more: give a larger corpus")
    loop.check_batch(settings.batch_size)
    groups = [usable[i : i + settings.group] for i in range(0, len(usable) - settings.group + 1, settings.group)]
    if not groups:
        raise ValueError(f"{len(usable)} blocks are fewer than group={settings.group}: give a smaller group")

    def step(number: int) -> dict[str, Sum]:
        picked = loop.batch(number, settings.batch_size // settings.group, len(groups), settings.seed)
        share, own = share_of([block for i in picked for block in groups[i]])
        draws = Draws(settings.seed, number, share.places)
        examples = [cloze(block, random, settings) for block, random in zip(own, draws.generators(), strict=True)]
        read = sentences_and_blocks(examples, tokenizer, embedder, settings)
        seeds = draws.dropout_seeds(0), draws.dropout_seeds(1)
        return ict_step(embedder, *read, seeds, share.places, share.of_all)

    identity = {"task": "ict", "corpus": corpus_hash(blocks), "config": embedder.config.to_dict()}
    job = loop.new_job("Inverse Cloze Task", {EMBEDDER: embedder}, step, settings, identity)
    return loop.train_one(run, job, tokenizer)


@checked
def mlm(
    run: TrainingRun,
    blocks: list[Block],
    encoder: RealmKnowledgeAugEncoder,
    tokenizer: BaseTokenizer,
    settings: Mlm = MLM,
) -> Path:
    """Train `encoder` in place and write it to FOLDER/knowledge_encoder, with the tokenizer in FOLDER.

    Raises:
        ValueError: a batch of fewer blocks than there are ranks; evidence that does not hold the text, or that the
            encoder has no positions for; ranks that are to build indexes.
        FileExistsError, DivergedError, KeyboardInterrupt: as `loop.train`.
    """
    loop.check_batch(settings.batch_size)
    check_mlm(settings, encoder)
    find = tagger(settings.tagger)

    def step(number: int) -> dict[str, Sum]:
        picked = loop.batch(number, settings.batch_size, len(blocks), settings.seed)
        share, own = share_of([blocks[i] for i in picked])
        draws = Draws(settings.seed, number, share.places)
        read, labels = masked_blocks(own, tokenizer, draws.generators(), encoder, settings, find)
        return mlm_step(encoder, read, labels, draws.dropout_seeds())

    identity = {"task": "mlm", "corpus": corpus_hash(blocks), "config": encoder.config.to_dict()}
    job = loop.new_job("Masked language modelling", {KNOWLEDGE_ENCODER: encoder}, step, settings, identity)
    return loop.train_one(run, job, tokenizer)


def check_mlm(settings: Mlm, encoder: RealmKnowledgeAugEncoder) -> None:
    settings.check()
    if not settings.evidence:
        return
    tokens, positions = settings.max_wordpieces + settings.evidence + 1, encoder.config.max_position_embeddings
    if tokens > positions:
        raise ValueError(
            f"max_wordpieces={settings.max_wordpieces} and evidence={settings.evidence} are {tokens} tokens with the "
            f"last [SEP], and the encoder reads {positions}: give fewer"
        )


STAGE = "Pre-training"


@checked
def pretrain(
    run: TrainingRun,
    blocks: list[Block],
    embedder: RealmEmbedder,
    knowledge_encoder: RealmKnowledgeAugEncoder,
    tokenizer: RealmTokenizerFast,
    settings: Pretrain = PRETRAIN,
    *,
    find: SpanFinder | None = None,
    texts: list[Text] | None = None,
) -> Path:
    """Train both models in place; write FOLDER/embedder and FOLDER/knowledge_encoder, and the tokenizer beside them.

    Their configurations say how much dropout they have. The run's log.csv has the columns of `learn`, `staleness`
    (steps), `seconds_waited` for an index, and `tokens_per_second` read.

    Args:
        tokenizer: a RealmTokenizerFast.
        find: finds salient spans in the place of `settings.tagger`.
        texts: X, the texts to mask, where they are not the blocks' own, as CC-News in the paper, whose blocks are
            Wikipedia's (section 4.3). Their `block` is NO_BLOCK.

    Raises:
        ValueError: settings out of range, a corpus without anything to mask, or too few ranks.
        ChildProcessError: the index builder failed.
        FileExistsError, DivergedError, KeyboardInterrupt: as `loop.train`.
    """
    _check_pretrain(settings, blocks, embedder, knowledge_encoder)
    loop.check_batch(settings.batch_size, run.refresh_ranks)
    find = find or tagger(settings.tagger)
    with refresh.builders(run, blocks, embedder, tokenizer) as builders:
        if builders is not None:
            with loop.only_job(run.folder):
                corpus = pretraining_corpus(blocks, tokenizer, settings, find, texts, run.report)
                _pretrain(run, blocks, embedder, knowledge_encoder, tokenizer, settings, corpus, builders)
    return run.folder


def _pretrain(
    run: TrainingRun,
    blocks: list[Block],
    embedder: RealmEmbedder,
    knowledge_encoder: RealmKnowledgeAugEncoder,
    tokenizer: Any,
    settings: Pretrain,
    corpus: PretrainingCorpus,
    builders: refresh.NewBuilder,
) -> None:
    """`pretrain` on the ranks that train."""
    models: dict[str, RealmModel] = {"embedder": embedder, "knowledge_encoder": knowledge_encoder}
    trained: dict[str, RealmModel] = {"knowledge_encoder": knowledge_encoder} if settings.encoder_alone else models
    for model in models.values():
        model.train(model in trained.values())
    beside = {name: model for name, model in models.items() if name not in trained}
    loop.take_from_first(beside)

    def waiting(step: int, done: int, total: int) -> None:
        run.report(STAGE, step, settings.steps, f"waiting for the index: {done:,} of {total:,} blocks")

    every = settings.steps if settings.encoder_alone or settings.freeze_documents else settings.refresh_every
    refresher = IndexRefresher(
        run.folder, blocks, embedder, tokenizer, every=every, steps=settings.steps, waiting=waiting, builders=builders
    )
    step = _pretraining_step(embedder, knowledge_encoder, tokenizer, corpus, refresher, settings)
    identity = {
        "task": "pretrain",
        "corpus": corpus_hash(blocks),
        "texts": corpus_hash(Block(text.title, text.text) for text in corpus.texts),
        "embedder": embedder.config.to_dict(),
        "knowledge_encoder": knowledge_encoder.config.to_dict(),
    }
    with refresher:
        loop.train(run, loop.new_job(STAGE, trained, step, settings, identity)._replace(beside=beside))
    loop.write_models(run.folder, models, tokenizer)
    world().on_first(lambda: shutil.rmtree(run.folder / INDEX_FOLDER, ignore_errors=True))


def _pretraining_step(
    embedder: RealmEmbedder,
    knowledge_encoder: RealmKnowledgeAugEncoder,
    tokenizer: Any,
    corpus: PretrainingCorpus,
    refresher: IndexRefresher,
    settings: Pretrain,
) -> loop.Step:
    """The step that masks texts of the corpus, and finds their evidence in the refresher's latest index."""
    texts, choose, blocks = corpus

    def step(number: int) -> dict[str, Sum]:
        index = refresher.index(number)
        started = time.perf_counter()
        picked = loop.batch(number, settings.batch_size, len(texts), settings.seed)
        share, own = share_of([texts[i] for i in picked])
        draws = Draws(settings.seed, number, share.places)
        examples = hide(own, tokenizer, choose, draws.generators())
        both = embedder, knowledge_encoder
        found = gather_evidence(both, tokenizer, blocks, index, examples, draws, settings)
        sums = pretrain_step(both, found, settings)
        tokens = sums.pop("tokens").total
        rate = Sum(tokens / (time.perf_counter() - started), 1 / world().size)  # of all ranks
        return sums | refresher.sums(number) | {"tokens_per_second": rate}

    return step


def _check_pretrain(
    settings: Pretrain, blocks: list[Block], embedder: RealmEmbedder, knowledge_encoder: RealmKnowledgeAugEncoder
) -> None:
    settings.check()
    if len(blocks) < 2:
        raise ValueError(f"the corpus has {len(blocks)} block, its own text's, which is barred: give a larger corpus")
    others, null = len(blocks) - 1, settings.null_document  # its own block is barred
    if settings.num_candidates > others + null:
        raise ValueError(
            f"num_candidates={settings.num_candidates} must lie in 2..{others + null}: "
            f"{'the null document and ' if null else ''}some of the other {others} blocks"
        )
    positions = min(embedder.config.max_position_embeddings, knowledge_encoder.config.max_position_embeddings)
    if not settings.max_passage < positions:
        raise ValueError(
            f"max_passage={settings.max_passage} leaves no room for evidence: the models read {positions} tokens"
        )


@checked
def finetune(
    run: TrainingRun,
    model: RealmForOpenQA,
    questions: Sequence[TrainingQuestion],
    settings: Finetune = FINETUNE,
    *,
    blocks: Sequence[Block] | None = None,
    dev: Sequence[Question] = (),
) -> RealmForOpenQA:
    """Train `model`, its embedder and its reader, in place. Ranks that build indexes have rank 0's in the end.

    Args:
        model: with its retriever and the embeddings of its blocks.
        blocks: the evidence as titles and texts, which `refresh_blocks` needs; with them a question that knows its
            title, or words of its evidence, takes evidence from nowhere else.
        dev: questions to measure the model by, in place of the run's own `evaluate`.

    Raises:
        ValueError: no question has an answer that can be a span; an empty or overlong question;
            other blocks than the retriever has; too few ranks, or some to build indexes without `refresh_blocks`.
        FileExistsError, DivergedError, KeyboardInterrupt: as `loop.train`.
    """
    settings.check(run.refresh_ranks)
    check_span_width(model.config)
    _check_blocks(blocks, model, settings)
    loop.check_batch(settings.batch_size, run.refresh_ranks)
    tokenizer, known_blocks = model.retriever.tokenizer, list(blocks or ())
    with refresh.builders(run, known_blocks, model.embedder, tokenizer) as builders:
        if builders is not None:
            with loop.only_job(run.folder):
                _finetune(run, model, questions, settings, known_blocks, dev, builders)
    model.eval()
    if run.refresh_ranks:
        loop.take_from_first({"embedder": model.embedder, "reader": model.reader})
    if settings.refresh_blocks:  # the index of the finished embedder
        model.block_emb = embed_on_ranks(model.embedder, tokenizer, known_blocks).to(model.block_emb.device)
    return model


def _check_blocks(blocks: Sequence[Block] | None, model: RealmForOpenQA, settings: Finetune) -> None:
    records = model.retriever.block_records
    if blocks is not None and [record(block) for block in blocks] != [bytes(found) for found in records]:
        raise ValueError("the blocks given are not those of the model's retriever: give the corpus it was indexed with")
    if settings.refresh_blocks and blocks is None:
        raise ValueError("refresh_blocks embeds the blocks anew: give them, with their titles")


def _finetune(
    run: TrainingRun,
    model: RealmForOpenQA,
    questions: Sequence[TrainingQuestion],
    settings: Finetune,
    blocks: list[Block],
    dev: Sequence[Question],
    builders: refresh.NewBuilder,
) -> None:
    """`finetune` on the ranks that train."""
    tokenizer, records = model.retriever.tokenizer, model.retriever.block_records
    encoded = encode_questions(questions, tokenizer, model.config.max_span_width)
    evidence = Evidence(encode_blocks(records, tokenizer, run.report), blocks)
    refresher = None
    if settings.refresh_blocks:
        refresher = IndexRefresher(
            run.folder, blocks, model.embedder, tokenizer, every=settings.refresh_every, steps=settings.steps,
            builders=builders,
        )  # fmt: skip

    def measured() -> dict[str, float | None]:
        return means(result.measures for result in evaluate(model, dev, world=world()))

    if len(dev):
        run = replace(run, evaluate=measured)
    model.train()
    step = _finetuning_step(model, encoded, evidence, refresher, settings)
    identity = {"task": "finetune", "config": model.config.to_dict()}
    identity |= {"questions": _digest(questions), "blocks": _digest(records)}
    if not settings.refresh_blocks:  # else they are made of the weights
        identity[BLOCK_EMBEDDINGS] = weights_checksum({BLOCK_EMBEDDINGS: model.block_emb})
    models = {"embedder": model.embedder, "reader": model.reader}
    with _searching_together(model), refresher or nullcontext():
        loop.train(run, loop.new_job("Fine-tuning", models, step, settings, identity))


def _finetuning_step(
    model: RealmForOpenQA,
    encoded: list[EncodedQuestion],
    evidence: Evidence,
    refresher: IndexRefresher | None,
    settings: Finetune,
) -> loop.Step:
    """The step that answers a batch of the questions, from the refresher's latest embeddings where there is one."""
    latest = None  # of these embeddings

    def step(number: int) -> dict[str, Sum]:
        nonlocal latest
        stale = {}
        if refresher is not None:
            embeddings = refresher.embeddings(number)
            if embeddings is not latest:
                latest = embeddings
                model.block_emb = embeddings.to(model.block_emb.device)
            stale = refresher.sums(number)
        picked = loop.batch(number, settings.batch_size, len(encoded), settings.seed)
        share, own = share_of([encoded[i] for i in picked])
        return finetune_step(model, own, evidence, settings, Draws(settings.seed, number, share.places)) | stale

    return step


@contextmanager
def _searching_together(model: RealmForOpenQA) -> Iterator[None]:
    """Let the ranks, where there are several, search as one until the block ends."""
    sharded, model.sharded = model.sharded, world().size > 1
    try:
        yield
    finally:
        model.sharded = sharded


def _digest(items: Iterable[Any]) -> str:
    """sha256 (hexadecimal) of some records or questions, in order."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(repr(item).encode())
    return digest.hexdigest()
