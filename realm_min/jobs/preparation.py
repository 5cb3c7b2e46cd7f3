"""What a run makes of its corpus and its questions before the first step, so that no step has to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..interface.open_qa import MAX_QUESTION_WORDPIECES
from ..learn.finetuning import EncodedQuestion
from ..learn.masking import MASKINGS, Passage, SpanFinder, passages, salient_span
from ..learn.pretraining import NO_BLOCK, Text
from ..text.corpus import Block, Document, cut_documents, split_sentences
from ..text.questions import TrainingQuestion
from ..text.sequences import EncodedBlock
from .settings import Pretrain

AT_ONCE = 1024  # texts tokenized in one call


class PretrainingCorpus(NamedTuple):
    """X and Z of REALM section 4.3: texts, what chooses the wordpieces of one that are hidden, and the blocks."""

    texts: list[Text]
    choose: Callable[[Passage, np.random.Generator], list[int]]
    blocks: list[EncodedBlock]  # Z


def pretraining_corpus(
    blocks: list[Block],
    tokenizer: Any,
    settings: Pretrain,
    find: SpanFinder,
    texts: list[Text] | None,
    report: Callable[..., None],
) -> PretrainingCorpus:
    """X, from the blocks themselves where no texts are given; `find` finds the salient spans.

    Raises:
        ValueError: no text has anything to mask.
    """
    choose = MASKINGS[settings.masking]
    if choose is salient_span:
        choose = partial(salient_span, find=find)
    if texts is None:
        texts = cut_texts(blocks, tokenizer, settings.max_passage, choose, report)
    elif not (texts := with_something_to_mask(texts, tokenizer, choose)):
        raise ValueError("no text has anything to mask: give others, or another masking")
    others = len(blocks) - (settings.num_candidates - settings.null_document)
    texts = with_copies(texts, blocks, others)
    if not texts:
        raise ValueError(
            f"each text stands in more than {others} of the {len(blocks)} blocks, all barred as its evidence, which "
            f"leaves fewer than num_candidates={settings.num_candidates} asks for: give a larger corpus"
        )
    return PretrainingCorpus(texts, choose, encode_evidence(blocks, tokenizer, report))


def with_copies(texts: list[Text], blocks: list[Block], most: int) -> list[Text]:
    """Texts with the numbers of all other blocks that hold each: equal ones, and those with all of its sentences.

    Upper and lower case apart, and white space. A block that holds x gives away what is masked in it, whatever its
    number or title is (REALM section 3.4, "prohibiting trivial retrievals"). Texts that more than `most` blocks hold
    are left out: nothing is left to be their evidence.
    """
    equal, holding = defaultdict(set), defaultdict(set)
    for number, block in enumerate(blocks):
        equal[plain(block.text)].add(number)
        for sentence in split_sentences(block.text):
            holding[plain(sentence)].add(number)
    found: list[tuple[Text, list[int]]] = []
    for text in texts:
        holders = [holding.get(plain(sentence), set()) for sentence in split_sentences(text.text)]
        held = set.intersection(*holders) if holders else set()
        held |= equal[plain(blocks[text.block].text)] if text.block != NO_BLOCK else set()
        if len(held) <= most:
            found.append((text, sorted(held - {text.block})))
    width = max((len(copies) for _, copies in found), default=0)
    return [text._replace(copies=(*copies, *[NO_BLOCK] * (width - len(copies)))) for text, copies in found]


def plain(text: str) -> str:
    """A text without the differences that change no word: case and white space."""
    return " ".join(text.casefold().split())


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
    texts, pending = [], []
    documents = (Document(*block, str(number)) for number, block in enumerate(blocks))
    for cut, source in cut_documents(documents, tokenizer, max_wordpieces):
        pending.append(Text(int(source.document), *cut))
        if len(pending) == AT_ONCE:
            texts += with_something_to_mask(pending, tokenizer, choose)
            pending = []
            report("Cutting blocks into texts", int(source.document), len(blocks))
    texts += with_something_to_mask(pending, tokenizer, choose)
    report("Cutting blocks into texts", len(blocks), len(blocks))
    if not texts:
        raise ValueError("no text of the corpus has anything to mask: give a larger corpus, or another masking")
    return texts


def with_something_to_mask(texts: list[Text], tokenizer: Any, choose: Callable[..., list[int]]) -> list[Text]:
    found = passages([(text.title, text.text) for text in texts], tokenizer)
    rng = np.random.default_rng(0)  # whether there is something to choose does not depend on what is drawn
    return [text for text, one in zip(texts, found, strict=True) if choose(one, rng)]


def encode_questions(
    questions: Iterable[TrainingQuestion], tokenizer: Any, max_span_width: int
) -> list[EncodedQuestion]:
    """Questions as wordpieces; those without an answer that a span of `max_span_width` can be are left out.

    Raises:
        ValueError: none is left; a question is empty or overlong.
    """
    questions = list(questions)
    found = []
    for question, ids in zip(questions, question_pieces(questions, tokenizer), strict=True):
        answers = [answer for answer in question.answers if answer.strip()]
        pieces = tokenizer(answers, add_special_tokens=False)["input_ids"] if answers else []
        spans = [np.array(piece) for piece in pieces if 0 < len(piece) <= max_span_width]
        if spans:
            found.append(EncodedQuestion(np.array(ids), spans, question.title, question.evidence))
    if not found:
        raise ValueError(f"no question has an answer of 1 to {max_span_width} wordpieces: nothing to train on")
    return found


def question_pieces(
    questions: Sequence[TrainingQuestion], tokenizer: Any, lines: Sequence[str] = ()
) -> list[list[int]]:
    """Questions as wordpieces; `lines` are what an error is to call each, "q.jsonl line 3" say.

    Raises:
        ValueError: there is none; one is empty or overlong.
    """
    if not questions:
        raise ValueError("there is no question to train on: give some")
    found = tokenizer([question.question for question in questions])["input_ids"]
    for number, (question, ids) in enumerate(zip(questions, found, strict=True)):
        if not 2 < len(ids) <= MAX_QUESTION_WORDPIECES:
            raise ValueError(
                f"{lines[number] + ': ' if lines else ''}the question {question.question[:60]!r} has {len(ids)} "
                f"wordpieces: give one of 3 to {MAX_QUESTION_WORDPIECES}"
            )
    return found


def encode_evidence(
    blocks: Sequence[Block],
    tokenizer: Any,
    report: Callable[..., None] = lambda stage, done, total, note="": None,
) -> list[EncodedBlock]:
    """Every block's title and text as wordpieces, so that no step has to tokenise any."""
    titles, texts = ([block[i].encode() for block in blocks] for i in (0, 1))
    of_titles = encode_blocks(titles, tokenizer)
    return [EncodedBlock(*pieces) for pieces in zip(of_titles, encode_blocks(texts, tokenizer, report), strict=True)]


def encode_blocks(
    records: Sequence[bytes] | np.ndarray,
    tokenizer: Any,
    report: Callable[..., None] = lambda stage, done, total, note="": None,
) -> list[np.ndarray]:
    """The wordpieces of every block, without special tokens, so that no step has to tokenise any."""
    found: list[np.ndarray] = []
    for start in range(0, len(records), AT_ONCE):
        texts = [bytes(record).decode() for record in records[start : start + AT_ONCE]]
        pieces = tokenizer(texts, add_special_tokens=False, return_token_type_ids=False)["input_ids"]
        found += [np.array(piece, dtype=np.int32) for piece in pieces]
        report("Reading blocks", len(found), len(records))
    return found
