"""The four kinds of training, each a loop around its step: what it trains on, with which index, and what it leaves."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ..interface.base import RealmModel
from ..interface.embedder import RealmEmbedder
from ..interface.knowledge_encoder import RealmKnowledgeAugEncoder
from ..interface.open_qa import RealmForOpenQA
from ..learn.finetuning import Evidence, finetune_step
from ..learn.ict import cloze, ict_step, sentences_and_blocks
from ..learn.masking import MASKINGS, SpanFinder, salient_span, salient_spans
from ..learn.mlm import masked_blocks, mlm_step
from ..learn.optimizer import AdamW
from ..learn.pretraining import Text, gather_evidence, hide, masked_texts, pretrain_step
from ..learn.steps import Sum
from ..ranks.distributed import split, world
from ..ranks.share import share_of
from ..text.corpus import Block, corpus_hash, record, split_sentences
from ..text.questions import Question, TrainingQuestion
from . import loop, refresh
from .draws import Draws
from .embedding import embed_on_ranks
from .evaluation import evaluate, means
from .preparation import cut_texts, encode_blocks, encode_questions, with_something_to_mask
from .refresh import INDEX_FOLDER, IndexRefresher
from .settings import Finetune, Ict, Mlm, Pretrain
from .warm_start import EMBEDDER, KNOWLEDGE_ENCODER

# A run's own defaults: those of its settings.
ICT, MLM, PRETRAIN, FINETUNE = Ict(), Mlm(), Pretrain(), Finetune()


def ict(
    folder: str | os.PathLike,
    blocks: list[Block],
    embedder: RealmEmbedder,
    tokenizer: Any,
    settings: Ict = ICT,
    **given: Any,
) -> Path:
    """Train `embedder` in place and write it to FOLDER/embedder, with the tokenizer in FOLDER.

    Args:
        given: `loop.train`'s resume, save_every, evaluate, evaluate_every and report.

    Raises:
        ValueError: no block has two sentences; settings out of range.
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

    return loop.train_one(
        folder, EMBEDDER, embedder, step, settings, blocks, tokenizer, task="ict", stage="Inverse Cloze Task", **given
    )


def mlm(
    folder: str | os.PathLike,
    blocks: list[Block],
    encoder: RealmKnowledgeAugEncoder,
    tokenizer: Any,
    settings: Mlm = MLM,
    **given: Any,
) -> Path:
    """Train `encoder` in place and write it to FOLDER/knowledge_encoder, with the tokenizer in FOLDER.

    Args:
        given: `loop.train`'s resume, save_every, evaluate, evaluate_every and report.

    Raises:
        ValueError: a batch of fewer blocks than there are ranks; evidence that does not hold the text, or that the
            encoder has no positions for.
        FileExistsError, DivergedError, KeyboardInterrupt: as `loop.train`.
    """
    loop.check_batch(settings.batch_size)
    check_mlm(settings, encoder)

    def step(number: int) -> dict[str, Sum]:
        picked = loop.batch(number, settings.batch_size, len(blocks), settings.seed)
        share, own = share_of([blocks[i] for i in picked])
        draws = Draws(settings.seed, number, share.places)
        read, labels = masked_blocks(own, tokenizer, draws.generators(), encoder, settings)
        return mlm_step(encoder, read, labels, draws.dropout_seeds())

    return loop.train_one(
        folder, KNOWLEDGE_ENCODER, encoder, step, settings, blocks, tokenizer, task="mlm",
        stage="Masked language modelling", **given,
    )  # fmt: skip


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


def pretrain(
    folder: str | os.PathLike,
    blocks: list[Block],
    embedder: RealmEmbedder,
    knowledge_encoder: RealmKnowledgeAugEncoder,
    tokenizer: Any,
    settings: Pretrain = PRETRAIN,
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
    _check_pretrain(settings, blocks, embedder, knowledge_encoder)
    loop.check_batch(settings.batch_size, refresh_ranks)
    with split(refresh_ranks):
        if everyone.rank >= training:
            refresh.build_on_ranks(folder, blocks, embedder, tokenizer, everyone)
        else:
            builders = refresh.builders(everyone, refresh_ranks)
            with loop.only_job(folder):
                _pretrain(
                    folder, blocks, embedder, knowledge_encoder, tokenizer, settings, find, texts, builders,
                    resume=resume, save_every=save_every, evaluate=evaluate, evaluate_every=evaluate_every,
                    report=report,
                )  # fmt: skip
    return folder


def _pretrain(
    folder: Path,
    blocks: list[Block],
    embedder: RealmEmbedder,
    knowledge_encoder: RealmKnowledgeAugEncoder,
    tokenizer: Any,
    settings: Pretrain,
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

    def step(number: int) -> dict[str, Sum]:
        nonlocal at, embeddings, index
        at = number
        found = refresher.embeddings(number)
        if index is None or found is not embeddings:
            embeddings, index = found, refresh.searchable(found, embedder.device)
        started = time.perf_counter()
        picked = loop.batch(number, settings.batch_size, len(texts), settings.seed)
        share, own = share_of([texts[i] for i in picked])
        draws = Draws(settings.seed, number, share.places)
        examples = hide(own, tokenizer, choose, draws.generators())
        both = embedder, knowledge_encoder
        evidence_of = gather_evidence(both, tokenizer, blocks, index, examples, draws, settings)
        read = masked_texts(tokenizer, examples, embedder)
        sums = pretrain_step(both, read, draws.dropout_seeds(), evidence_of, settings)
        tokens = sums.pop("tokens").total
        return sums | {
            "staleness": Sum(refresher.staleness(number), 1),
            "seconds_waited": Sum(refresher.seconds_waited, 1),
            "tokens_per_second": Sum(tokens / (time.perf_counter() - started), 1 / world().size),  # of all ranks
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


def _check_pretrain(
    settings: Pretrain, blocks: list[Block], embedder: RealmEmbedder, knowledge_encoder: RealmKnowledgeAugEncoder
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


def finetune(
    folder: str | os.PathLike,
    model: RealmForOpenQA,
    questions: Sequence[TrainingQuestion],
    settings: Finetune = FINETUNE,
    *,
    blocks: Sequence[Block] | None = None,
    dev: Sequence[Question] = (),
    evaluate_every: int = 0,
    resume: bool = False,
    save_every: int = 100,
    refresh_ranks: int = 0,
    report: Callable[..., None] = lambda stage, done, total, note="": None,
) -> RealmForOpenQA:
    """Train `model`, its embedder and its reader, in place.

    Args:
        folder: the run's, for checkpoints and logs.
        model: with its retriever and the embeddings of its blocks.
        blocks: the evidence as titles and texts, which `refresh_blocks` needs; with them a question that knows its
            title, or words of its evidence, takes evidence from nowhere else.
        dev: questions to measure the model by, every `evaluate_every` steps and at the end.
        refresh_ranks: with `refresh_blocks`, so many ranks, the last, do nothing but build indexes. In the end they
            have rank 0's model too.

    Raises:
        ValueError: no question has an answer that can be a span; an empty or overlong question;
            other blocks than the retriever has; too few ranks.
        FileExistsError, DivergedError, KeyboardInterrupt: as `loop.train`.
    """
    settings.check(refresh_ranks)
    records = model.retriever.block_records
    if blocks is not None and [record(block) for block in blocks] != [bytes(found) for found in records]:
        raise ValueError("the blocks given are not those of the model's retriever: give the corpus it was indexed with")
    if settings.refresh_blocks and blocks is None:
        raise ValueError("refresh_blocks embeds the blocks anew: give them, with their titles")
    loop.check_batch(settings.batch_size, refresh_ranks)
    known_blocks = list(blocks or ())
    everyone = world()
    training = everyone.size - refresh_ranks
    with split(refresh_ranks):
        if everyone.rank >= training:
            refresh.build_on_ranks(folder, known_blocks, model.embedder, model.retriever.tokenizer, everyone)
        else:
            builders = refresh.builders(everyone, refresh_ranks)
            with loop.only_job(folder):
                _finetune(
                    folder, model, questions, settings, known_blocks, dev, builders,
                    evaluate_every=evaluate_every, resume=resume, save_every=save_every, report=report,
                )  # fmt: skip
    model.eval()
    if refresh_ranks:
        loop.take_from_first({"embedder": model.embedder, "reader": model.reader})
    if settings.refresh_blocks:  # the index of the finished embedder
        embeddings = embed_on_ranks(model.embedder, model.retriever.tokenizer, known_blocks)
        model.block_emb = embeddings.to(model.block_emb.device)
    return model


def _finetune(
    folder: str | os.PathLike,
    model: RealmForOpenQA,
    questions: Sequence[TrainingQuestion],
    settings: Finetune,
    blocks: list[Block],
    dev: Sequence[Question],
    builders: refresh.NewBuilder,
    *,
    report: Callable[..., None],
    **given: Any,
) -> None:
    tokenizer, records = model.retriever.tokenizer, model.retriever.block_records
    evidence = Evidence(encode_blocks(records, tokenizer, report), blocks)
    encoded = encode_questions(questions, tokenizer, model.config.max_span_width)
    optimizer = AdamW(settings.learning_rate, settings.steps, warmup_steps=int(settings.warmup * settings.steps))
    refresher = latest = None  # who builds indexes, and the last of these
    if settings.refresh_blocks:
        refresher = IndexRefresher(
            folder, blocks, model.embedder, tokenizer, every=settings.refresh_every, steps=settings.steps,
            builders=builders,
        )  # fmt: skip

    def step(number: int) -> dict[str, Sum]:
        nonlocal latest
        stale = {}
        if refresher is not None:
            embeddings = refresher.embeddings(number)
            if embeddings is not latest:
                latest = embeddings
                model.block_emb = embeddings.to(model.block_emb.device)
            stale = {
                "staleness": Sum(refresher.staleness(number), 1),
                "seconds_waited": Sum(refresher.seconds_waited, 1),
            }
        picked = loop.batch(number, settings.batch_size, len(encoded), settings.seed)
        share, own = share_of([encoded[i] for i in picked])
        return finetune_step(model, own, evidence, settings, Draws(settings.seed, number, share.places)) | stale

    def measured() -> dict[str, float | None]:
        return means(result.measures for result in evaluate(model, dev, world=world()))

    model.train()
    sharded, model.sharded = model.sharded, world().size > 1  # these ranks search together
    identity = {"task": "finetune", "config": model.config.to_dict()}
    identity |= {"questions": _digest(questions), "blocks": _digest(records)}
    try:
        with refresher or nullcontext():
            loop.train(
                folder, {"embedder": model.embedder, "reader": model.reader}, optimizer, step,
                settings={**identity, **settings._asdict()}, seed=settings.seed,
                frozen=loop.frozen(settings.freeze_word_embeddings),
                evaluate=measured if dev else None, stage="Fine-tuning", report=report, **given,
            )  # fmt: skip
    finally:
        model.sharded = sharded


def _digest(items: Iterable[Any]) -> str:
    """sha256 (hexadecimal) of some records or questions, in order."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(repr(item).encode())
    return digest.hexdigest()
