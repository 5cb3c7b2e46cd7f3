"""f(x, z) = Embed_input(x)ᵀ Embed_doc(z): how relevant a document is to a text (REALM section 3.2)."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .. import kinds
from ..config import RealmConfig
from ..files.checkpoint import LoadedKeys, check_tensors
from ..kinds import checked
from ..model.bert import Kept
from ..model.realm import embed, embed_backward, relevance_score, relevance_score_backward
from .base import RealmModel
from .embedder import RealmEmbedder
from .inputs import Inputs, checked_batch, flatten_candidates
from .outputs import RealmScorerOutput

# Where an error names one of these of a candidate, the caller knows it as candidate_….
SHARED_NAMES = re.compile(r"\b(?=(input_ids|inputs_embeds|attention_mask|token_type_ids)\b)")


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
        seed: int | None = None,
        initialize: bool = True,
    ) -> None:
        super().__init__(config, seed=seed, initialize=initialize)
        kinds.check("query_embedder", query_embedder, RealmEmbedder | None)
        self.embedder = RealmEmbedder(config, seed=seed, initialize=initialize)
        self.query_embedder = query_embedder or self.embedder

    @property
    def parts(self) -> Mapping[str, RealmModel]:
        return {"embedder": self.embedder, "query_embedder": self.query_embedder}

    def load_state_dict(self, state_dict: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> LoadedKeys:
        """As `RealmModel.load_state_dict`. Where the two embedders differ in `state_dict`, they part here too."""
        check_tensors(state_dict, kwargs.get("source", "the state dict"))
        before = self.query_embedder
        if before is self.embedder and any(
            f"query_{key}" in state_dict and not torch.equal(tensor, state_dict[f"query_{key}"])
            for key, tensor in state_dict.items()
            if key.startswith("embedder.")
        ):
            self.query_embedder = copy.deepcopy(self.embedder)
        try:
            return super().load_state_dict(state_dict, *args, **kwargs)
        except Exception:
            self.query_embedder = before
            raise

    @checked
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
        inputs = Inputs(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        queries = checked_batch(self.config, inputs)
        ids, mask, types = flatten_candidates(candidate_input_ids, candidate_attention_mask, candidate_token_type_ids)
        try:
            documents = checked_batch(self.config, Inputs(ids, mask, types, position_ids, candidate_inputs_embeds))
        except ValueError as error:
            raise ValueError(SHARED_NAMES.sub("candidate_", str(error))) from None
        if len(documents.types) != len(queries.types) * self.config.num_candidates:
            raise ValueError(
                f"{len(documents.types)} candidates for {len(queries.types)} queries: expected num_candidates="
                f"{self.config.num_candidates} for each; give that many, or load the model with num_candidates=…"
            )
        asked = (head_mask, output_attentions, output_hidden_states)
        of_queries = self.query_embedder.run_now(len(queries.types), *asked)
        of_documents = self.embedder.run_now(len(documents.types), *asked)

        def score(model: RealmScorer, keep: bool) -> tuple[RealmScorerOutput, Kept]:
            (x, _), kept_x = embed(model.query_embedder.p, model.config, queries, of_queries._replace(keep=keep))
            (z, _), kept_z = embed(model.embedder.p, model.config, documents, of_documents._replace(keep=keep))
            z = z.view(len(x), -1, z.shape[1])  # [batch, candidates, proj]
            scores, kept = relevance_score(x, z)  # [batch, candidates]
            return RealmScorerOutput(scores, x, z), (kept_x, kept_z, kept)

        return self._called(score, ("relevance_score", "query_score", "candidate_score"), return_dict)

    def _backward(self, kept: Kept, cotangents: dict[str, Tensor]) -> dict[str, Tensor]:
        kept_x, kept_z, kept_relevance = kept
        query_score, candidate_score = kept_relevance
        dquery = cotangents.get("query_score", torch.zeros_like(query_score))
        dcandidates = cotangents.get("candidate_score", torch.zeros_like(candidate_score))
        if "relevance_score" in cotangents:
            dx, dz = relevance_score_backward(cotangents["relevance_score"], kept_relevance)
            dquery, dcandidates = dquery + dx, dcandidates + dz
        return {
            "inputs_embeds": embed_backward(dquery, kept_x, self.query_embedder.own_grads),
            "candidate_inputs_embeds": embed_backward(dcandidates.flatten(0, 1), kept_z, self.embedder.own_grads),
        }
