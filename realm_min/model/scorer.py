"""f(x, z) = Embed_input(x)ᵀ Embed_doc(z): how relevant a document is to a text (REALM section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..config import RealmConfig
from .base import RealmModel
from .embedder import RealmEmbedder
from .outputs import RealmScorerOutput


class RealmScorer(RealmModel):
    """Scores candidates against queries.

    Args:
        query_embedder: embeds the queries; None uses the candidates' embedder for both.
    """

    own_arguments = ("query_embedder",)
    part_classes = {"embedder": RealmEmbedder}

    def __init__(
        self,
        config: RealmConfig,
        query_embedder: RealmEmbedder | None = None,
        *,
        seed: int = 0,
        initialize: bool = True,
    ) -> None:
        super().__init__(config, seed=seed, initialize=initialize)
        self.embedder = RealmEmbedder(config, seed=seed, initialize=initialize)
        self.query_embedder = query_embedder or self.embedder

    @property
    def parts(self) -> Mapping[str, RealmModel]:
        return {"embedder": self.embedder, "query_embedder": self.query_embedder}

    def load_state_dict(self, state_dict: dict[str, Tensor], source: str = "the state dict") -> None:
        """As `RealmModel.load_state_dict`. Where the two embedders differ in `state_dict`, they part here too."""
        if self.query_embedder is self.embedder and any(
            f"query_{key}" in state_dict and not torch.equal(tensor, state_dict[f"query_{key}"])
            for key, tensor in state_dict.items()
            if key.startswith("embedder.")
        ):
            separate = RealmEmbedder(self.config, seed=self.seed, initialize=False).to(self.device).to(self.dtype)
            separate.checkpoint_layers = self.checkpoint_layers
            self.query_embedder = separate.train(self.training)
        super().load_state_dict(state_dict, source)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        candidate_input_ids: Tensor | None = None,
        candidate_attention_mask: Tensor | None = None,
        candidate_token_type_ids: Tensor | None = None,
        candidate_inputs_embeds: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> RealmScorerOutput | tuple[Tensor, Tensor, Tensor]:
        """Score `config.num_candidates` candidates for each query.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids: queries, [batch, tokens].
            candidate_input_ids, candidate_attention_mask, candidate_token_type_ids: [batch, candidates, tokens].
            candidate_inputs_embeds: [batch * candidates, tokens, hidden], instead of `candidate_input_ids`.
            head_mask: [heads] or [layers, heads], for both embedders.

        Returns:
            `relevance_score` [batch, candidates], `query_score` [batch, retriever_proj_size] and `candidate_score`
            [batch, candidates, retriever_proj_size].

        Raises:
            ValueError: inputs left out, of a wrong rank, shape or range, or not `num_candidates` a query.
        """
        if candidate_input_ids is None and candidate_inputs_embeds is None:
            raise ValueError("neither candidate_input_ids nor candidate_inputs_embeds was given: give one of them")
        candidates, size = self.config.num_candidates, self.config.retriever_proj_size
        asked = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        query_score = self.query_embedder(
            input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds, **asked, return_dict=True
        ).projected_score  # [batch, proj]
        query_cache = self.query_embedder._cache
        candidate_score = self.embedder(
            *flatten_candidates(candidate_input_ids, candidate_attention_mask, candidate_token_type_ids),
            position_ids, head_mask, candidate_inputs_embeds, **asked, return_dict=True,
        ).projected_score  # [batch * candidates, proj]  # fmt: skip
        if candidate_score.shape[0] != query_score.shape[0] * candidates:
            raise ValueError(
                f"{candidate_score.shape[0]} candidates for {query_score.shape[0]} queries: expected num_candidates="
                f"{candidates} for each; give that many, or load the model with num_candidates=…"
            )
        candidate_score = candidate_score.view(-1, candidates, size)
        relevance_score = (candidate_score @ query_score[:, :, None])[:, :, 0]  # [batch, candidates]
        self._keep(
            query=query_cache, candidates=self.embedder._cache, query_score=query_score,
            candidate_score=candidate_score,
            outputs={"relevance_score": relevance_score.shape, "query_score": query_score.shape,
                     "candidate_score": candidate_score.shape},
        )  # fmt: skip
        output = RealmScorerOutput(relevance_score, query_score, candidate_score)
        return output if self._wants_dict(return_dict) else output.to_tuple()

    def _backward(self, cache: dict[str, Any], cotangents: dict[str, Tensor]) -> dict[str, Tensor]:
        query, candidates = cache["query_score"], cache["candidate_score"]  # [batch, proj], [batch, candidates, proj]
        dquery = cotangents.get("query_score", torch.zeros_like(query))
        dcandidates = cotangents.get("candidate_score", torch.zeros_like(candidates))
        if "relevance_score" in cotangents:
            drelevance = cotangents["relevance_score"][:, :, None]  # [batch, candidates, 1]
            dquery = dquery + (drelevance * candidates).sum(1)
            dcandidates = dcandidates + drelevance * query[:, None]
        of_query = self.query_embedder._backward(cache["query"], {"projected_score": dquery})
        of_candidates = self.embedder._backward(cache["candidates"], {"projected_score": dcandidates.flatten(0, 1)})
        return {
            "inputs_embeds": of_query["inputs_embeds"],
            "candidate_inputs_embeds": of_candidates["inputs_embeds"],
        }


def flatten_candidates(*inputs: Tensor | None) -> list[Tensor | None]:
    """[batch, candidates, tokens] -> [batch * candidates, tokens]; None and [batch, tokens] stay as they are."""
    return [x if x is None or x.dim() <= 2 else x.reshape(-1, x.shape[-1]) for x in inputs]
