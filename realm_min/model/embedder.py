"""Embed_input and Embed_doc: a text becomes one vector (REALM section 3.2).

Embed(x) = LayerNorm(W tanh(W_pool BERT_CLS(x) + b_pool) + b), W [retriever_proj_size, hidden]. The paper writes
W BERT_CLS(x) alone; the pooler and the LayerNorm are those of the released checkpoints.
"""

from __future__ import annotations

from torch import Tensor

from ..config import RealmConfig
from . import bert as trunk
from . import ops
from .base import RealmModel
from .outputs import RealmEmbedderOutput
from .parameters import Shapes


class RealmEmbedder(RealmModel):
    """Projects a text onto the space in which relevance is an inner product."""

    unread = ("cls.predictions.",)

    @classmethod
    def shapes(cls, config: RealmConfig) -> Shapes:
        return {
            **{f"realm.{key}": shape for key, shape in trunk.shapes(config).items()},
            **trunk.mlm_head_shapes(config),
            **trunk.dense_shapes("cls.dense", config.hidden_size, config.retriever_proj_size),
            **trunk.norm_shapes("cls.LayerNorm", config.retriever_proj_size),
        }

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> RealmEmbedderOutput | tuple:
        """Embed a batch of texts.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids: [batch, tokens], ids int64.
            head_mask: [heads] or [layers, heads].
            inputs_embeds: [batch, tokens, hidden], instead of `input_ids`.

        Returns:
            `projected_score` [batch, retriever_proj_size] float, and what the output arguments ask for.

        Raises:
            ValueError: inputs of a wrong rank, shape or range.
        """
        encoded = self._encode(
            "first", input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds,
            output_attentions, output_hidden_states,
        )  # fmt: skip
        cache: trunk.Cache | None = {"trunk": encoded.cache} if self.keeps else None
        pooled = trunk.pool(self.p, encoded.hidden, cache=trunk.part_of(cache, "pool"))
        projected = ops.linear(pooled, self.p["cls.dense.weight"], self.p["cls.dense.bias"])
        projected = trunk.normalize(self.p, "cls.LayerNorm", projected, self.config, trunk.part_of(cache, "norm"))
        if cache is not None:
            self._keep(**cache, pooled=pooled, outputs={"projected_score": projected.shape})
        output = RealmEmbedderOutput(projected, encoded.hidden_states, encoded.attentions)
        return output if self._wants_dict(return_dict) else output.to_tuple()

    def _backward(self, cache: trunk.Cache, cotangents: dict[str, Tensor]) -> dict[str, Tensor]:
        p, grads = self.p, self.own_grads
        dx = trunk.normalize_backward(p, "cls.LayerNorm", cotangents["projected_score"], cache["norm"], grads)
        dx = ops.linear_backward(
            dx, cache["pooled"], p["cls.dense.weight"], grads["cls.dense.weight"], grads["cls.dense.bias"]
        )
        dx = trunk.pool_backward(p, dx, cache["pool"], grads)
        return {"inputs_embeds": trunk.bert_backward(p, self.config, dx, cache["trunk"], grads)}
