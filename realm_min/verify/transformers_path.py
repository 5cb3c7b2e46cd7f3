"""transformers' path: the modules of transformers 4.40.2, called one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..config import DEFAULTS
from .measured_path import MeasuredPath, losses_of
from .stages import PARTS, Stage, tokens_of, within


class TransformersPath(MeasuredPath):
    """The modules of transformers 4.40.2, called one by one, in float32."""

    name = "transformers"
    # Its losses stand inside the models' forward.
    needs_part = ("mlm_loss", "reader_losses")

    def load(self, part: str) -> Any:
        import transformers

        transformers.logging.set_verbosity_error()
        part_class = getattr(transformers, PARTS[self.kind][part].__name__)
        # Its own values alone: what else a config.json says, of other models' labels say, may be anything.
        values = {name: getattr(self.config, name) for name in (*DEFAULTS, "tie_word_embeddings")}
        config = transformers.RealmConfig(**values)
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
                logits.new_zeros(logits.shape[:2], dtype=torch.long), relevance_score=relevance, labels=labels,
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
        ids = logits.new_zeros(logits.shape[0], tokens, dtype=torch.long)
        ones = torch.ones_like(ids)
        with replaced(model.qa_outputs, lambda found: (logits.clone(), *found[1:])):
            output = model(
                ids, ones, ids, relevance_score=relevance, block_mask=ones.bool(), start_positions=starts,
                end_positions=ends, has_answers=has_answers, return_dict=True,
            )  # fmt: skip
        return losses_of(output)

    def answer(self, model: Any, stage: Stage, logits: Tensor, relevance: Tensor) -> None:
        return None  # inside the reader's forward: compared where the whole reader is called


@contextmanager
def replaced(module: Any, replace: Callable[[Any], Any]) -> Iterator[None]:
    """Let a module of transformers give what `replace` makes of its output."""
    handle = module.register_forward_hook(lambda module, inputs, output: replace(output))
    try:
        yield
    finally:
        handle.remove()
