"""The yardstick: the book, `textbook.py`, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from .. import textbook as book
from ..config import RealmConfig
from ..model.parameters import Shapes
from .stages import MASKED, PARTS, Stage, StateDict, tokens_of, within

SEARCHED_AT_ONCE = 1 << 16  # blocks that the reference converts to float64 at a time
ACTIVATED_AT_ONCE = 1 << 14  # numbers that the book's gelu is given at a time: it makes 149 of each, 20 MB
OTHER_ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "silu": lambda x: x * np.exp(-np.logaddexp(0, -x)),  # x sigmoid(x), which no x overflows
    # Klambauer et al. 2017, arXiv 1706.02515, equation 2
    "selu": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0))),
}


class Weights(Mapping[str, np.ndarray]):
    """A state dict whose tensors become float64 arrays when they are asked for, and not before."""

    def __init__(self, tensors: StateDict, shapes: Shapes) -> None:
        self.tensors, self.shapes = tensors, shapes

    def __getitem__(self, key: str) -> np.ndarray:
        shape = self.shapes[key]
        return self.tensors[shape if isinstance(shape, str) else key].double().numpy()  # tied weights are there once

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


class ReferencePath:
    """The book, `textbook.py`, in float64. Where a stage chooses, it gives the scores [rows, items] to choose by."""

    def __init__(self, kind: str, config: RealmConfig, state_dict: StateDict) -> None:
        self.kind, self.config, self.state_dict = kind, config, state_dict

    def compute(self, stage: Stage, *values: np.ndarray) -> np.ndarray:
        p = Weights(within(self.state_dict, stage.part), PARTS[self.kind][stage.part].shapes(self.config))
        return np.asarray(getattr(self, stage.operation)(p, stage, *values))

    def scale(self, stage: Stage, value: np.ndarray, *reads: np.ndarray) -> float:
        """What errors of a stage are relative to: its largest number.

        An inner product may cancel to nearly nothing, and rounding does not know: it goes by the terms, whose
        magnitudes are added here (Higham 2002, section 3.1).
        """
        if stage.operation == "relevance":
            value = self.relevance(None, stage, *(np.abs(read) for read in reads))
        elif stage.operation == "retrieved_scores":
            blocks = self.state_dict["block_emb"][torch.from_numpy(reads[1][0])].double().abs().numpy()
            value = blocks @ np.abs(reads[0][0])
        return float(np.abs(value[value > MASKED]).max(initial=0.0))

    def embeddings(self, p: Any, stage: Stage, ids: np.ndarray, mask: np.ndarray, types: np.ndarray) -> np.ndarray:
        x = p[book.WORD][ids] + p[book.TYPE][types] + p[book.POSITION][: ids.shape[1]]
        return self.normalize(p, "realm.embeddings.LayerNorm", x)

    def attention(self, p: Any, stage: Stage, x: np.ndarray, mask: np.ndarray) -> np.ndarray:
        name, barred = f"realm.encoder.layer.{stage.layer}.attention", ((1 - mask) * book.LOWEST)[:, None, None]
        y, _ = book.attention(p, self.config, name, x, barred, None)
        return self.normalize(p, f"{name}.output.LayerNorm", x + y)

    def mlp(self, p: Any, stage: Stage, x: np.ndarray) -> np.ndarray:
        name = f"realm.encoder.layer.{stage.layer}"
        y, _ = book.linear(p, f"{name}.intermediate.dense", x)
        y, _ = book.linear(p, f"{name}.output.dense", self.activation(y))
        return self.normalize(p, f"{name}.output.LayerNorm", x + y)

    def normalize(self, p: Any, name: str, x: np.ndarray) -> np.ndarray:
        return book.layer_norm(p, name, x, self.config.layer_norm_eps)[0]

    def activation(self, x: np.ndarray) -> np.ndarray:
        """The book's, in pieces: it adds up 149 terms for each number. It has no others."""
        if self.config.hidden_act in OTHER_ACTIVATIONS:
            return OTHER_ACTIVATIONS[self.config.hidden_act](x)
        pieces = np.array_split(x.ravel(), 1 + x.size // ACTIVATED_AT_ONCE)
        return np.concatenate([book.gelu(piece, self.config.hidden_act)[0] for piece in pieces]).reshape(x.shape)

    def pooler(self, p: Any, stage: Stage, x: np.ndarray) -> np.ndarray:
        return np.tanh(book.linear(p, "realm.pooler.dense", x[:, 0])[0])

    def projection(self, p: Any, stage: Stage, pooled: np.ndarray) -> np.ndarray:
        return self.normalize(p, "cls.LayerNorm", book.linear(p, "cls.dense", pooled)[0])

    def relevance(self, p: Any, stage: Stage, query: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        return np.sum(query[:, None] * candidates.reshape(len(query), -1, query.shape[1]), axis=-1)

    def mlm_logits(self, p: Any, stage: Stage, x: np.ndarray) -> np.ndarray:
        y, _ = book.linear(p, "cls.predictions.transform.dense", x)
        y = self.normalize(p, "cls.predictions.transform.LayerNorm", self.activation(y))
        return y @ p["cls.predictions.decoder.weight"].T + p["cls.predictions.bias"]

    def mlm_loss(
        self, p: Any, stage: Stage, logits: np.ndarray, relevance: np.ndarray, labels: np.ndarray, mlm_mask: np.ndarray
    ) -> np.ndarray:
        labels = labels.repeat(relevance.shape[1], 0)  # [batch * candidates, tokens]
        log_p = book.log_softmax(logits)
        log_p = np.take_along_axis(log_p, np.where(labels < 0, 0, labels)[:, :, None], 2)[:, :, 0]
        log_likelihood = np.where(labels == book.NO_LABEL, 0, log_p).reshape(*relevance.shape, -1)
        marginal, _ = book.marginal_log_likelihood(log_likelihood, relevance)
        return -(marginal * mlm_mask).sum() / mlm_mask.sum()

    def retrieve(self, p: Any, stage: Stage, projection: np.ndarray) -> np.ndarray:
        blocks = self.state_dict["block_emb"]
        return np.concatenate([projection @ rows.double().numpy().T for rows in blocks.split(SEARCHED_AT_ONCE)], axis=1)

    def retrieved_scores(self, p: Any, stage: Stage, projection: np.ndarray, ids: np.ndarray) -> np.ndarray:
        return self.state_dict["block_emb"][torch.from_numpy(ids[0])].double().numpy() @ projection[0]

    def span_projection(self, p: Any, stage: Stage, x: np.ndarray) -> np.ndarray:
        return book.linear(p, "qa_outputs.dense_intermediate", x)[0]

    def span_logits(self, p: Any, stage: Stage, projections: np.ndarray, block_mask: np.ndarray) -> np.ndarray:
        return book.span_logits(p, self.config, projections, block_mask.astype(bool))[0]

    def reader_losses(
        self,
        p: Any,
        stage: Stage,
        logits: np.ndarray,
        relevance: np.ndarray,
        starts: np.ndarray,
        ends: np.ndarray,
        has_answers: np.ndarray,
    ) -> np.ndarray:
        tokens = tokens_of(logits.shape[1], self.config.max_span_width)
        first, last = book.span_candidates(tokens, self.config.max_span_width)
        correct = ((first == starts[:, :, None]) & (last == ends[:, :, None])).any(1)  # [blocks, spans]
        pairs = (relevance, has_answers.astype(bool)), (logits + relevance[:, None], correct)
        return np.array([book.loss_of_correct(*(each.reshape(1, -1) for each in pair))[0] for pair in pairs])

    def answer(self, p: Any, stage: Stage, logits: np.ndarray, relevance: np.ndarray) -> np.ndarray:
        return (logits + relevance[:, None]).reshape(1, -1)
