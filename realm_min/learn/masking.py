"""What to hide in a text, so that finding it again teaches something (REALM section 3.4 and table 2).

Salient span masking hides one name or date: most of them need knowledge of the world, and so a retrieved document,
where a word drawn at random mostly needs the rest of its sentence. The two other ways are those of the paper's
ablation, BERT's random tokens and SpanBERT's random spans.

Each way is a function `(passage, rng) -> positions`: the wordpieces to replace by [MASK].
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..jobs.settings import Masking
from ..model.realm import NO_LABEL
from ..text.names_and_dates import Span, SpanFinder, salient_spans

MASKED_SHARE = 0.15  # of a passage's wordpieces, for random tokens and spans (Devlin et al. 2018, section 3.1)
SPAN_STOP, LONGEST_SPAN = 0.2, 10  # words of a random span ~ min(Geometric(0.2), 10) (Joshi et al. 2020, section 3.1)


class Passage(NamedTuple):
    """A text as wordpieces. Only those from `first` on may be masked: before them stands the title."""

    text: str
    ids: list[int]  # no special tokens
    offsets: list[Span]  # characters of `text`, for each wordpiece
    begins_word: list[bool]
    first: int


def passage(title: str, text: str, tokenizer: Any) -> Passage:
    """`title. text` as wordpieces of a tokenizer that gives offsets."""
    return passages([(title, text)], tokenizer)[0]


def passages(texts: list[tuple[str, str]], tokenizer: Any) -> list[Passage]:
    """The `passage` of each (title, text)."""
    if not texts:
        return []
    wholes = [f"{title}. {text}" for title, text in texts]
    encoded = tokenizer(wholes, add_special_tokens=False, return_offsets_mapping=True)
    found = []
    for i, (title, _) in enumerate(texts):
        ids, offsets = encoded["input_ids"][i], [tuple(offset) for offset in encoded["offset_mapping"][i]]
        begins_word = [not piece.startswith("##") for piece in tokenizer.convert_ids_to_tokens(ids)]
        first = bisect_left([start for start, _ in offsets], len(title) + len(". "))
        found.append(Passage(wholes[i], ids, offsets, begins_word, first))
    return found


def mask(ids: list[int], positions: list[int], mask_id: int) -> tuple[list[int], list[int]]:
    """`ids` with `mask_id` at `positions`, and the labels: the ids that stood there, `NO_LABEL` elsewhere."""
    masked, labels = list(ids), [NO_LABEL] * len(ids)
    for position in positions:
        masked[position], labels[position] = mask_id, ids[position]
    return masked, labels


# ---- salient spans


def salient_choices(passage: Passage, find: SpanFinder = salient_spans) -> list[Span]:
    """Salient spans of a passage, (first, end) in wordpieces, without those that stand in it twice.

    The title, too, gives away a name: what can be copied from the passage itself teaches nothing about retrieval.
    """
    lowered = passage.text.lower()
    body = passage.offsets[passage.first][0] if passage.first < len(passage.offsets) else len(passage.text)
    ends = [end for _, end in passage.offsets]
    chosen = []
    for start, end in find(passage.text[body:]):
        start, end = start + body, end + body
        first = last = bisect_right(ends, start)  # the first wordpiece that ends after `start`
        while last < len(ends) and passage.offsets[last][0] < end:
            last += 1
        if first < last and not _stands_twice(lowered, passage.text[start:end].lower()):
            chosen.append((first, last))
    return chosen


def _stands_twice(text: str, words: str) -> bool:
    return text.count(words) > 1 and len(re.findall(rf"(?<!\w){re.escape(words)}(?!\w)", text)) > 1


# ---- the three ways


def salient_span(passage: Passage, rng: np.random.Generator, find: SpanFinder = salient_spans) -> list[int]:
    """One of `salient_choices`, all of its wordpieces; none if there is no choice. `find` may be a tagger."""
    choices = salient_choices(passage, find)
    return list(range(*choices[rng.integers(len(choices))])) if choices else []


def random_tokens(passage: Passage, rng: np.random.Generator) -> list[int]:
    """15% of the wordpieces, at least one, each as likely as any other (Devlin et al. 2018, section 3.1).

    All of them become [MASK], without BERT's 10% kept and 10% replaced: table 2 compares where the masks stand.
    """
    maskable = np.arange(passage.first, len(passage.ids))
    return sorted(rng.choice(maskable, _share(len(maskable)), replace=False).tolist()) if len(maskable) else []


def random_spans(passage: Passage, rng: np.random.Generator) -> list[int]:
    """Spans of whole words, until 15% of the wordpieces are in one (Joshi et al. 2020, section 3.1).

    A span begins at any word and takes min(Geometric(0.2), 10) words, fewer where the text ends. The last span is cut
    at the share of 15%.
    """
    count = len(passage.ids)
    words = [i for i in range(passage.first, count) if passage.begins_word[i]] + [count]
    wanted, chosen = _share(count - words[0]), set()
    while len(chosen) < wanted:
        first = int(rng.integers(len(words) - 1))
        last = min(first + min(int(rng.geometric(SPAN_STOP)), LONGEST_SPAN), len(words) - 1)
        span = [i for i in range(words[first], words[last]) if i not in chosen]
        chosen.update(span[: wanted - len(chosen)])
    return sorted(chosen)


def _share(count: int) -> int:
    return min(count, max(1, round(MASKED_SHARE * count)))


MASKINGS: dict[Masking, Callable[[Passage, np.random.Generator], list[int]]] = {
    "salient": salient_span,
    "tokens": random_tokens,
    "spans": random_spans,
}
