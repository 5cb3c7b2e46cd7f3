"""Five ways to compute a checkpoint's stages: the book in float64, the torch path in float32 and float64, the Triton
kernels, and transformers.

A path has one method for each operation of `stages.py`. Values go in and come out as NumPy arrays; what the path does
in between is its own affair. Parts of a model are loaded one at a time: two trunks in float64 are 2 GB.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import textbook as book
from ..config import RealmConfig
from ..interface.inputs import Inputs, checked_batch
from ..interface.knowledge_encoder import marginal_mlm_loss
from ..model import bert as trunk
from ..model import fast, ops, spans
from ..model.bert import PLAIN
from ..model.parameters import Shapes
from ..model.realm import correct_spans, loss_of_correct, mlm_logits, pool, span_inputs
from ..search.mips import mips_topk
from .stages import FLOAT64_TOLERANCE, MASKED, PARTS, Stage, prefix_of

StateDict = Mapping[str, Tensor]

SEARCHED_AT_ONCE = 1 << 16  # blocks that the reference converts to float64 at a time
ACTIVATED_AT_ONCE = 1 << 14  # numbers that the book's gelu is given at a time: it makes 149 of each, 20 MB
OTHER_ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "silu": lambda x: x * np.exp(-np.logaddexp(0, -x)),  # x sigmoid(x), which no x overflows
    # Klambauer et al. 2017, arXiv 1706.02515, equation 2
    "selu": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0))),
}


def within(state_dict: StateDict, part: str) -> dict[str, Tensor]:
    """The tensors of a part, by its own keys."""
    prefix = prefix_of(part)
    return {key[len(prefix) :]: tensor for key, tensor in state_dict.items() if key.startswith(prefix)}


# --- The yardstick ----------------------------------------------------------------------------------------------------


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
        return book.score_spans(p, self.config, projections, block_mask.astype(bool))[0]

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
        first, last = book.spans(tokens, self.config.max_span_width)
        correct = ((first == starts[:, :, None]) & (last == ends[:, :, None])).any(1)  # [blocks, spans]
        pairs = (relevance, has_answers.astype(bool)), (logits + relevance[:, None], correct)
        return np.array([book.loss_of_correct(*(each.reshape(1, -1) for each in pair))[0] for pair in pairs])

    def answer(self, p: Any, stage: Stage, logits: np.ndarray, relevance: np.ndarray) -> np.ndarray:
        return (logits + relevance[:, None]).reshape(1, -1)


def tokens_of(spans: int, max_span_width: int) -> int:
    """Tokens of a sequence that has `spans` spans of at most `max_span_width` <= tokens."""
    return (spans + max_span_width * (max_span_width - 1) // 2) // max_span_width


# --- Paths that are measured ------------------------------------------------------------------------------------------


class MeasuredPath:
    """What the measured paths share: conversion of values, one part loaded at a time.

    name: heads its columns. tolerance: bound on relative errors, None for each stage's own.
    """

    name: str
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    tolerance: float | None = None

    def __init__(self, kind: str, config: RealmConfig, state_dict: StateDict) -> None:
        self.kind, self.config, self.state_dict = kind, config, state_dict
        self.loaded: tuple[str, Any] | None = None

    def compute(self, stage: Stage, *values: np.ndarray) -> np.ndarray | None:
        """The stage's value; None where this path has no way to compute it alone."""
        part = None
        if stage.weights or stage.repeats or stage.operation in self.needs_part:
            if self.loaded is None or self.loaded[0] != stage.part:
                self.loaded = None  # free the last part before the next is allocated
                self.loaded = (stage.part, self.load(stage.part))
            part = self.loaded[1]
        tensors = [self.tensor(value) for value in values]
        with torch.no_grad():
            found = getattr(self, stage.operation)(part, stage, *tensors)
        if found is None:
            return None
        found = found.detach().cpu()
        return (found.double() if found.is_floating_point() else found).numpy()

    # Operations without weights of their own that still go through the model.
    needs_part: tuple[str, ...] = ()

    def tensor(self, value: np.ndarray) -> Tensor:
        found = torch.from_numpy(np.ascontiguousarray(value)).to(self.device)
        return found.to(self.dtype) if found.is_floating_point() else found

    def load(self, part: str) -> Any:
        raise NotImplementedError

    def release(self) -> None:
        """Free the part that is loaded."""
        self.loaded = None


class TorchPath(MeasuredPath):
    """The functions of `bert.py`, `spans.py`, … that the models call, and the models themselves."""

    def __init__(
        self,
        kind: str,
        config: RealmConfig,
        state_dict: StateDict,
        dtype: torch.dtype = torch.float32,
        name: str | None = None,
    ) -> None:
        super().__init__(kind, config, state_dict)
        self.dtype = dtype
        self.name = name or str(dtype).removeprefix("torch.")
        self.tolerance = FLOAT64_TOLERANCE if dtype == torch.float64 else None

    def load(self, part: str) -> Any:
        model = PARTS[self.kind][part](self.config, initialize=False)
        model.load_state_dict(within(self.state_dict, part))
        return model.to(self.dtype).to(self.device).eval()

    def embeddings(self, model: Any, stage: Stage, ids: Tensor, mask: Tensor, types: Tensor) -> Tensor:
        batch = checked_batch(self.config, Inputs(ids, mask, types))
        rows = fast.rows_of(batch.mask, True, self.dtype)
        return trunk.embeddings(model.p, self.config, batch, rows, PLAIN)[0].view(*ids.shape, -1)

    def attention(self, model: Any, stage: Stage, x: Tensor, mask: Tensor) -> Tensor:
        """The first half of `bert.layer`."""
        rows = fast.rows_of(mask, True, self.dtype)
        name, flat = f"realm.encoder.layer.{stage.layer}", x.reshape(-1, x.shape[2])
        return trunk.attention(model.p, self.config, name, flat, rows, fast.PLAIN)[0].view(x.shape)

    def mlp(self, model: Any, stage: Stage, x: Tensor) -> Tensor:
        """The second half of `bert.layer`."""
        name, flat = f"realm.encoder.layer.{stage.layer}", x.reshape(-1, x.shape[2])
        rows = fast.Rows([x.shape[1]] * len(x), None, None)
        y, _ = fast.mlp(model.p, self.config, name, flat, rows, fast.PLAIN)
        return trunk.layer_norm(model.p, f"{name}.output.LayerNorm", y, self.config.layer_norm_eps)[0].view(x.shape)

    def pooler(self, model: Any, stage: Stage, x: Tensor) -> Tensor:
        return pool(model.p, x[:, 0])[0]

    def projection(self, model: Any, stage: Stage, pooled: Tensor) -> Tensor:
        projected, _ = trunk.linear(model.p, "cls.dense", pooled)
        return trunk.layer_norm(model.p, "cls.LayerNorm", projected, self.config.layer_norm_eps)[0]

    def relevance(self, model: Any, stage: Stage, query: Tensor, candidates: Tensor) -> Tensor:
        candidates = candidates.view(query.shape[0], -1, query.shape[1])
        return (candidates @ query[:, :, None])[:, :, 0]

    def mlm_logits(self, model: Any, stage: Stage, x: Tensor) -> Tensor:
        return mlm_logits(model.p, self.config, x.reshape(-1, x.shape[2]))[0].view(*x.shape[:2], -1)

    def mlm_loss(
        self, model: Any, stage: Stage, logits: Tensor, relevance: Tensor, labels: Tensor, mlm_mask: Tensor
    ) -> Tensor:
        return marginal_mlm_loss(logits, relevance, labels, mlm_mask)

    def retrieve(self, model: Any, stage: Stage, projection: Tensor) -> Tensor | None:
        if self.dtype == torch.float64:
            return None  # the search takes queries of at most float32
        blocks = self.blocks()
        if not torch.stack(blocks.aminmax()).isfinite().all():
            return None  # no search takes them
        return self.search(projection, blocks, stage.choices)[1]

    search = staticmethod(mips_topk)

    def blocks(self) -> Tensor:
        blocks = self.state_dict["block_emb"].to(self.device)
        return blocks.float() if blocks.dtype == torch.float64 else blocks

    def retrieved_scores(self, model: Any, stage: Stage, projection: Tensor, ids: Tensor) -> Tensor:
        rows = self.state_dict["block_emb"][ids[0].cpu()]
        return rows.to(self.device, self.dtype) @ projection[0]

    def span_projection(self, model: Any, stage: Stage, x: Tensor) -> Tensor:
        name = "qa_outputs.dense_intermediate"
        rows = ops.linear(x.reshape(-1, x.shape[2]), model.p[f"{name}.weight"], model.p[f"{name}.bias"])
        return rows.view(*x.shape[:2], -1)

    def span_logits(self, model: Any, stage: Stage, projections: Tensor, block_mask: Tensor) -> Tensor:
        return self.all_span_logits(span_inputs(model.p, self.config, projections, block_mask))

    all_span_logits = staticmethod(spans.span_logits)

    def reader_losses(
        self,
        model: Any,
        stage: Stage,
        logits: Tensor,
        relevance: Tensor,
        starts: Tensor,
        ends: Tensor,
        has_answers: Tensor,
    ) -> Tensor:
        tokens = tokens_of(logits.shape[1], self.config.max_span_width)
        starts_ends = spans.span_candidates(tokens, self.config.max_span_width, logits.device)
        correct = correct_spans(*starts_ends, starts, ends).reshape(-1)
        reader_logits = (logits + relevance[:, None]).reshape(-1)
        return torch.stack(
            [
                loss_of_correct(relevance[None], has_answers[None])[0],
                loss_of_correct(reader_logits[None], correct[None])[0],
            ]
        )

    def answer(self, model: Any, stage: Stage, logits: Tensor, relevance: Tensor) -> Tensor:
        logits = logits + relevance[:, None]
        return choice(logits.amax(1).argmax(), logits.amax(0).argmax(), logits.shape[1])

    def call_embedder(self, model: Any, stage: Stage, ids: Tensor, mask: Tensor, types: Tensor) -> Tensor:
        return model(ids, mask, types, return_dict=True).projected_score

    def call_mlm_logits(self, model: Any, stage: Stage, ids: Tensor, mask: Tensor, types: Tensor) -> Tensor:
        return model(ids, mask, types, return_dict=True).logits

    def call_mlm_loss(
        self,
        model: Any,
        stage: Stage,
        ids: Tensor,
        mask: Tensor,
        types: Tensor,
        relevance: Tensor,
        labels: Tensor,
        mlm_mask: Tensor,
    ) -> Tensor:
        return model(
            ids, mask, types, relevance_score=relevance, labels=labels, mlm_mask=mlm_mask, return_dict=True
        ).loss  # fmt: skip

    def call_reader_losses(
        self,
        model: Any,
        stage: Stage,
        ids: Tensor,
        mask: Tensor,
        types: Tensor,
        relevance: Tensor,
        block_mask: Tensor,
        starts: Tensor,
        ends: Tensor,
        has_answers: Tensor,
    ) -> Tensor:
        output = model(
            ids, mask, types, relevance_score=relevance, block_mask=block_mask, start_positions=starts,
            end_positions=ends, has_answers=has_answers, return_dict=True,
        )  # fmt: skip
        return torch.stack([output.retriever_loss, output.reader_loss])

    def call_answer(
        self, model: Any, stage: Stage, ids: Tensor, mask: Tensor, types: Tensor, relevance: Tensor, block_mask: Tensor
    ) -> Tensor:
        output = model(ids, mask, types, relevance_score=relevance, block_mask=block_mask, return_dict=True)
        widest, tokens = self.config.max_span_width, ids.shape[1]
        return choice(output.block_idx, output.candidate, widest * tokens - widest * (widest - 1) // 2)


def choice(block: Tensor, candidate: Tensor, spans: int) -> Tensor:
    """The number of a span among those of all blocks laid end to end, [1, 1]."""
    return (block * spans + candidate).reshape(1, 1)


class TritonPath(TorchPath):
    """The torch path on a GPU, span logits and search by the Triton kernels.

    Under TRITON_INTERPRET=1 the kernels are interpreted on the CPU, slowly; the rest is then the CPU's torch path.
    """

    def __init__(self, kind: str, config: RealmConfig, state_dict: StateDict) -> None:
        super().__init__(kind, config, state_dict, name="triton")
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        from realm_min.kernels import mips_topk as search
        from realm_min.kernels import span_logits as logits

        self.search, self.all_span_logits = search.mips_topk, logits.span_logits

    def retrieve(self, model: Any, stage: Stage, projection: Tensor) -> Tensor | None:
        if projection.shape[1] % 8:
            return None  # the kernels take dimensions that are multiples of 8
        return super().retrieve(model, stage, projection)


class TransformersPath(MeasuredPath):
    """The modules of transformers 4.40.2, called one by one, in float32."""

    name = "transformers"
    # Its losses stand inside the models' forward.
    needs_part = ("mlm_loss", "reader_losses")

    def load(self, part: str) -> Any:
        import transformers

        transformers.logging.set_verbosity_error()
        part_class = getattr(transformers, PARTS[self.kind][part].__name__)
        config = transformers.RealmConfig(**self.config.to_dict())
        tensors = within(self.state_dict, part)
        return part_class.from_pretrained(None, config=config, state_dict=tensors).float().eval()

    def embeddings(self, model: Any, stage: Stage, ids: Tensor, mask: Tensor, types: Tensor) -> Tensor:
        return model.realm.embeddings(input_ids=ids, token_type_ids=types)

    def attention(self, model: Any, stage: Stage, x: Tensor, mask: Tensor) -> Tensor:
        mask = model.realm.get_extended_attention_mask(mask, x.shape[:2])
        return model.realm.encoder.layer[stage.layer].attention(x, mask)[0]

    def mlp(self, model: Any, stage: Stage, x: Tensor) -> Tensor:
        return model.realm.encoder.layer[stage.layer].feed_forward_chunk(x)

    def pooler(self, model: Any, stage: Stage, x: Tensor) -> Tensor:
        return model.realm.pooler(x)

    def projection(self, model: Any, stage: Stage, pooled: Tensor) -> Tensor:
        return model.cls(pooled)

    def relevance(self, model: Any, stage: Stage, query: Tensor, candidates: Tensor) -> Tensor:
        return torch.einsum("BD,BND->BN", query, candidates.view(query.shape[0], -1, query.shape[1]))

    def mlm_logits(self, model: Any, stage: Stage, x: Tensor) -> Tensor:
        return model.cls(x)

    def mlm_loss(
        self, model: Any, stage: Stage, logits: Tensor, relevance: Tensor, labels: Tensor, mlm_mask: Tensor
    ) -> Tensor:
        with replaced(model.cls, lambda found: logits):
            return model(
                torch.zeros(logits.shape[:2], dtype=torch.long), relevance_score=relevance, labels=labels,
                mlm_mask=mlm_mask, return_dict=True,
            ).loss  # fmt: skip

    def retrieve(self, model: Any, stage: Stage, projection: Tensor) -> Tensor:
        scores = torch.einsum("BD,QD->QB", self.state_dict["block_emb"].float(), projection)
        return torch.topk(scores, k=stage.choices, dim=-1).indices

    def retrieved_scores(self, model: Any, stage: Stage, projection: Tensor, ids: Tensor) -> Tensor:
        return torch.einsum("D,BD->B", projection[0], self.state_dict["block_emb"][ids[0]].float())

    def span_projection(self, model: Any, stage: Stage, x: Tensor) -> Tensor:
        return model.qa_outputs.dense_intermediate(x)

    def span_logits(self, model: Any, stage: Stage, projections: Tensor, block_mask: Tensor) -> Tensor:
        x = projections.new_zeros(*projections.shape[:2], self.config.hidden_size)
        with replaced(model.qa_outputs.dense_intermediate, lambda found: projections):
            return model.qa_outputs(x, block_mask)[0]

    def reader_losses(
        self,
        model: Any,
        stage: Stage,
        logits: Tensor,
        relevance: Tensor,
        starts: Tensor,
        ends: Tensor,
        has_answers: Tensor,
    ) -> Tensor:
        tokens = tokens_of(logits.shape[1], self.config.max_span_width)
        ids = torch.zeros(logits.shape[0], tokens, dtype=torch.long)
        ones, answers = torch.ones_like(ids), (starts, ends, has_answers)
        with replaced(model.qa_outputs, lambda found: (logits.clone(), *found[1:])):
            return self.call_reader_losses(model, stage, ids, ones, ids, relevance, ones.bool(), *answers)

    def answer(self, model: Any, stage: Stage, logits: Tensor, relevance: Tensor) -> None:
        return None  # inside the reader's forward: compared where the whole reader is called

    call_embedder = TorchPath.call_embedder
    call_mlm_logits = TorchPath.call_mlm_logits
    call_mlm_loss = TorchPath.call_mlm_loss
    call_reader_losses = TorchPath.call_reader_losses
    call_answer = TorchPath.call_answer


@contextmanager
def replaced(module: Any, replace: Callable[[Any], Any]) -> Iterator[None]:
    """Let a module of transformers give what `replace` makes of its output."""
    handle = module.register_forward_hook(lambda module, inputs, output: replace(output))
    try:
        yield
    finally:
        handle.remove()


def available_paths(kind: str, config: RealmConfig, state_dict: StateDict) -> tuple[list[MeasuredPath], dict[str, str]]:
    """The paths that this machine has, and for each of the others why not."""
    paths: list[MeasuredPath] = [
        TorchPath(kind, config, state_dict),
        TorchPath(kind, config, state_dict, torch.float64),
    ]
    left_out = {}
    if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1":
        paths.append(TritonPath(kind, config, state_dict))
    else:
        left_out["triton"] = "no GPU here"
    try:
        import transformers
    except ImportError:
        left_out["transformers"] = "not installed; pip install transformers==4.40.2 to compare with it"
    else:
        if transformers.__version__ == "4.40.2":
            paths.append(TransformersPath(kind, config, state_dict))
        else:
            left_out["transformers"] = f"{transformers.__version__} is installed; 4.40.2 is what is compared with"
    return paths, left_out
