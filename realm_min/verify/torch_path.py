"""The torch path, in float32 and in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..config import RealmConfig
from ..files import checkpoint
from ..interface.inputs import Inputs, checked_batch
from ..interface.knowledge_encoder import marginal_mlm_loss
from ..model import bert as trunk
from ..model import fast, ops, spans
from ..model.bert import PLAIN
from ..model.realm import correct_spans, loss_of_correct, mlm_logits, pool, span_inputs
from ..search.mips import mips_topk
from .measured_path import MeasuredPath, choice
from .stages import FLOAT64_TOLERANCE, PARTS, Stage, StateDict, tokens_of, within


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
        weights = within(self.state_dict, part)
        checkpoint.assign(model.state_dict(), weights, model.aliases(), finite=False)  # damage is what is looked for
        return model.to(self.dtype).to(self.device).eval()

    def embeddings(self, model: Any, stage: Stage, ids: Tensor, mask: Tensor, types: Tensor) -> Tensor:
        batch = checked_batch(self.config, Inputs(ids, mask, types))
        rows = fast.rows_of(batch.mask, True, self.dtype)
        return trunk.embeddings(model.p, self.config, batch, rows, PLAIN)[0].view(*ids.shape, -1)

    def attention(self, model: Any, stage: Stage, x: Tensor, mask: Tensor) -> Tensor:
        """The first half of `bert.layer`."""
        rows = fast.rows_of(mask, True, self.dtype)
        name, flat = f"realm.encoder.layer.{stage.layer}", x.reshape(-1, x.shape[2])
        return trunk.attention(model.p, self.config, name, flat, rows, fast.PLAIN_LAYER)[0].view(x.shape)

    def mlp(self, model: Any, stage: Stage, x: Tensor) -> Tensor:
        """The second half of `bert.layer`."""
        name, flat = f"realm.encoder.layer.{stage.layer}", x.reshape(-1, x.shape[2])
        rows = fast.Rows([x.shape[1]] * len(x), None, None)
        y, _ = fast.mlp(model.p, self.config, name, flat, rows, fast.PLAIN_LAYER)
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
