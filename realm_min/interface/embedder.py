"""`RealmEmbedder`: Embed_input and Embed_doc, a text becomes one vector (REALM section 3.2)."""

from __future__ import annotations

from torch import Tensor

from ..config import RealmConfig
from ..kinds import checked
from ..model.bert import Kept
from ..model.parameters import Shapes, bert_shapes, linear_shapes, mlm_head_shapes, norm_shapes
from ..model.realm import embed, embed_backward
from .base import RealmModel
from .inputs import Inputs, checked_batch
from .outputs import RealmEmbedderOutput


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

    @checked
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

        def call(model: RealmEmbedder, keep: bool) -> tuple[RealmEmbedderOutput, Kept]:
            (projected, encoded), kept = embed(model.p, model.config, batch, run._replace(keep=keep))
            return RealmEmbedderOutput(projected, encoded.hidden_states, encoded.attentions), kept

        return self._called(call, ("projected_score",), return_dict)

    def _backward(self, kept: Kept, cotangents: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"inputs_embeds": embed_backward(cotangents["projected_score"], kept, self.own_grads)}
