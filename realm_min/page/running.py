"""What the page asks of the running models: a function for each request, and what is kept between two of them."""

from __future__ import annotations

import functools
import threading
from typing import Any, NamedTuple

import torch

from ..app.answer_lines import CREDULOUS
from ..files.json_file import json_object
from ..interface.open_qa import RealmForOpenQA
from ..jobs.calibration import Judge
from . import asked, learned, searched, small_realm

Json = dict[str, Any]
LESSONS = 8  # that are kept


class Running:
    """The models behind a page. One request is computed at a time: they share the cores.

    judge: what decides which answers are found.

    `requests` maps the name of each to its method and the JSON types of what it takes.
    """

    def __init__(self, model: RealmForOpenQA, name: str, judge: Judge = CREDULOUS) -> None:
        self.model, self.name, self.judge = model, name, judge
        self.lock = threading.RLock()
        # What was computed last is what is asked about next.
        self.codes = functools.lru_cache(maxsize=3)(lambda compression: searched.codes_of(model, compression))
        self.attentions = functools.lru_cache(maxsize=2)(lambda *of: asked.attentions_of(model, *of))
        self.small = functools.cache(small_realm.load)
        self.lesson = functools.lru_cache(maxsize=LESSONS)(lambda *of: Course(self.small(), *of))
        self.requests = {
            "ask": (self.ask, {"question": str, "k": int | None}),
            "attention": (self.attention, {"question": str, "block": int, "first": int, "last": int}),
            "search": (self.search, {"question": str, "k": int | None, "compression": str | None}),
            "learn": (self.learn, {"text": str, "hidden": list, "steps": int}),
            "words": (self.words, {"text": str}),
            "salient": (self.salient, {"text": str, "seed": int}),
        }

    def answer(self, name: str, data: bytes | str) -> Json:
        """The answer to a request, whose arguments are a JSON object.

        Raises:
            ValueError: it is none, or lacks an argument, or one cannot be answered.
        """
        given = self.arguments(name, data)
        with self.lock, torch.inference_mode(False):
            return self.requests[name][0](**given)

    def arguments(self, name: str, data: bytes | str) -> Json:
        """The arguments of a request; ValueError for others than it takes."""
        types = self.requests[name][1]
        try:
            given = json_object(data)
        except ValueError as error:
            raise ValueError(f"the request {error}") from None
        if given.keys() != types.keys():
            raise ValueError(
                f"the request names {', '.join(map(repr, given)) or 'nothing'}: expected {', '.join(types)}"
            )
        for key, kind in types.items():
            if not isinstance(given[key], kind) or isinstance(given[key], bool):
                raise ValueError(f"{key} is {str(given[key])[:60]!r}: expected {getattr(kind, '__name__', kind)}")
        return given

    def about(self) -> Json:
        """What is being drawn."""
        config, small = self.model.config, self.small()
        return {
            "model": self.name, "threshold": self.judge.threshold, "blocks": len(self.model.block_emb),
            "layers": config.num_hidden_layers,
            "heads": config.num_attention_heads, "hidden": config.hidden_size, "proj": config.retriever_proj_size,
            "widest": config.max_span_width, "k": config.reader_beam_size,
            "small": {
                "documents": len(small.documents), "words": len(small.tokenizer),
                "layers": small.encoder.config.num_hidden_layers, "hidden": small.encoder.config.hidden_size,
                "parameters": small.embedder.num_parameters() + small.encoder.num_parameters(),
                "first": learned.FIRST,
                "sentences": [sentence for some in small.sentences for sentence in some],
            },
        }  # fmt: skip

    def ask(self, question: str, k: int | None) -> Json:
        return asked.ask(self.model, question, k, self.judge)

    def attention(self, question: str, block: int, first: int, last: int) -> Json:
        return asked.attention(*self.attentions(question, block), first, last)

    def search(self, question: str, k: int | None, compression: str | None) -> Json:
        return searched.search(self.model, self.codes(compression), question, k)

    def words(self, text: str) -> Json:
        return {"words": learned.words_of(self.small(), text)}

    def salient(self, text: str, seed: int) -> Json:
        return {"hidden": learned.salient(self.small(), text, abs(seed))}

    def learn(self, text: str, hidden: list, steps: int) -> Json:
        """A lesson as it stands after each of so many steps, with the retriever's gradient and without it."""
        if not 0 <= steps <= learned.MOST_STEPS:
            raise ValueError(f"{steps} steps were asked for: take 0 to {learned.MOST_STEPS}, or begin anew")
        if not all(type(place) is int for place in hidden):
            raise ValueError(f"hidden is {str(hidden)[:60]}: expected the numbers of words")
        course = self.lesson(text, tuple(hidden))
        course.go_on(steps)
        lesson, documents = course.lesson, self.small().documents
        return {
            "text": text, "hidden": lesson.hidden, "steps": steps, "most": learned.MOST_STEPS,
            "documents": [None, *(documents[number] for number in lesson.numbers)],
            **{name: views[: steps + 1] for name, views in course.views.items()},
        }  # fmt: skip


class Branch(NamedTuple):
    """One of the two copies of the models, and whether its retriever gets its gradient."""

    models: learned.Models
    with_gradient: bool


class Course:
    """A lesson and how far it went: what `look` saw before the first step and after each."""

    def __init__(self, small: small_realm.SmallRealm, text: str, hidden: tuple[int, ...]) -> None:
        self.small, self.lesson = small, learned.lesson(small, text, list(hidden))
        self.branches = {name: Branch(learned.models_of(small), name == "with") for name in ("with", "without")}
        self.views: dict[str, list[Json]] = {name: [] for name in self.branches}

    def go_on(self, steps: int) -> None:
        """Take the steps that are missing."""
        for name, (models, with_gradient) in self.branches.items():
            seen = self.views[name]
            while len(seen) <= steps:
                if seen:
                    learned.step(models, self.lesson, with_gradient)
                seen.append(learned.look(self.small, models, self.lesson))
