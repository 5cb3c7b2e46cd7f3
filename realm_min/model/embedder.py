"""Embed_input and Embed_doc: a text becomes one vector (REALM section 3.2).

Embed(x) = LayerNorm(W tanh(W_pool BERT_CLS(x) + b_pool) + b), W [retriever_proj_size, hidden]. The paper writes
W BERT_CLS(x) alone; the pooler and the LayerNorm are those of the released checkpoints.
"""

from __future__ import annotations

from torch import Tensor

from ..config import RealmConfig
from .base import Inputs, RealmModel, checked_batch
from .bert import (
    Batch,
    Encoded,
    Kept,
    Run,
    bert,
    bert_backward,
    layer_norm,
    layer_norm_backward,
    linear,
    linear_backward,
)
from .outputs import RealmEmbedderOutput
from .parameters import Parameters, Shapes, bert_shapes, linear_shapes, mlm_head_shapes, norm_shapes


def embed(p: Parameters, config: RealmConfig, batch: Batch, run: Run) -> tuple[tuple[Tensor, Encoded], Kept]:
    """Embed(x) = LayerNorm(W BERT_CLS(x)) [batch, proj], where BERT's pooler comes first; and what BERT returned."""
    encoded, kept_bert = bert(p, config, batch, "first", run)
    pooled, kept_pooler = pool(p, encoded.hidden)  # [batch, hidden]
    y, kept_dense = linear(p, "cls.dense", pooled)  # [batch, proj]
    y, kept_norm = layer_norm(p, "cls.LayerNorm", y, config.layer_norm_eps)
    return (y, encoded), (kept_bert, kept_pooler, kept_dense, kept_norm) if run.keep else None


def embed_backward(dy: Tensor, kept: Kept, grads: Parameters) -> Tensor:
    """∂loss/∂inputs_embeds [batch, tokens, hidden] from that of Embed(x) [batch, proj]."""
    kept_bert, kept_pooler, kept_dense, kept_norm = kept
    dpooled = linear_backward(layer_norm_backward(dy, kept_norm, grads), kept_dense, grads)
    return bert_backward(pool_backward(dpooled, kept_pooler, grads), kept_bert, grads)


def pool(p: Parameters, first: Tensor) -> tuple[Tensor, Kept]:
    """tanh(W h_CLS + b), BERT's summary of a sequence [batch, hidden] -> [batch, hidden]."""
    y, kept = linear(p, "realm.pooler.dense", first)
    pooled = y.tanh_()
    return pooled, (pooled, kept)


def pool_backward(dy: Tensor, kept: Kept, grads: Parameters) -> Tensor:
    """∂loss/∂h_CLS [batch, hidden]; the slope of tanh is 1 - tanh²."""
    pooled, kept_linear = kept
    return linear_backward(dy * (1 - pooled**2), kept_linear, grads)


class RealmEmbedder(RealmModel):
    """Projects a text onto the space in which relevance is an inner product."""

    unread = ("cls.predictions.",)

    @classmethod
    def shapes(cls, config: RealmConfig) -> Shapes:
        return {
            **bert_shapes(config),
            **mlm_head_shapes(config),
            **linear_shapes("cls.dense", config.hidden_size, config.retriever_proj_size),
            **norm_shapes("cls.LayerNorm", config.retriever_proj_size),
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
        inputs = Inputs(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        batch = checked_batch(self.config, inputs)
        run = self.run_now(len(batch.types), head_mask, output_attentions, output_hidden_states)

        def call(keep: bool) -> tuple[RealmEmbedderOutput, Kept]:
            (projected, encoded), kept = embed(self.p, self.config, batch, run._replace(keep=keep))
            return RealmEmbedderOutput(projected, encoded.hidden_states, encoded.attentions), kept

        return self._called(call, ("projected_score",), return_dict)

    def _backward(self, kept: Kept, cotangents: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"inputs_embeds": embed_backward(cotangents["projected_score"], kept, self.own_grads)}
