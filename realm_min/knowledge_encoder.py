"""The knowledge-augmented encoder: predict masked words of x from x and a retrieved document z (REALM section 3.2).

p(y|z,x) reads x and z in one sequence; p(y|x) = Σ_z p(y|z,x) p(z|x) (equation 1) weighs the documents by
p(z|x) = softmax over f(x, z). The loss is -log p(y|x), so it teaches the retriever too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import bert as trunk
from . import ops
from .config import RealmConfig
from .model import RealmModel
from .outputs import MaskedLMOutput
from .parameters import Shapes
from .scorer import flatten_candidates


class RealmKnowledgeAugEncoder(RealmModel):
    """Masked-language-model logits of every candidate, and the marginal loss over the candidates."""

    @classmethod
    def shapes(cls, config: RealmConfig) -> Shapes:
        tied = "realm.embeddings.word_embeddings.weight" if getattr(config, "tie_word_embeddings", True) else None
        return {
            **{f"realm.{key}": shape for key, shape in trunk.shapes(config).items()},
            **trunk.mlm_head_shapes(config, tied_to=tied),
        }

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        relevance_score: Tensor | None = None,
        labels: Tensor | None = None,
        mlm_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> MaskedLMOutput | tuple:
        """Predict the masked words of each text with each of its candidates.

        Args:
            input_ids, attention_mask, token_type_ids: text and candidate in one sequence,
                [batch, candidates, tokens] or [batch * candidates, tokens].
            relevance_score: f(x, z), [batch, candidates]; needed where `labels` are given.
            labels: the words behind the masks, [batch, tokens] int64; -100 where there is none.
            mlm_mask: which positions count, [batch, tokens]; None counts all.

        Returns:
            `logits` [batch * candidates, tokens, vocabulary], and `loss` [] where `labels` are given.

        Raises:
            ValueError: labels without relevance scores; inputs of a wrong rank, shape or range.
        """
        ids, mask, types = flatten_candidates(input_ids, attention_mask, token_type_ids)
        encoded = self._encode(
            "tokens", ids, mask, types, position_ids, head_mask, inputs_embeds, output_attentions, output_hidden_states
        )
        sequences, tokens, hidden = encoded.hidden.shape
        head: trunk.Cache | None = {} if self.keeps else None
        logits = trunk.mlm_logits(self.p, self.config, encoded.hidden.reshape(-1, hidden), cache=head)
        logits = logits.view(sequences, tokens, -1)
        loss = None
        if labels is not None:
            self._check_labels(sequences, tokens, relevance_score, labels, mlm_mask)
            loss = marginal_mlm_loss(logits, relevance_score, labels, mlm_mask)
        self._keep(
            trunk=encoded.cache, head=head, logits=logits, relevance_score=relevance_score, labels=labels,
            mlm_mask=mlm_mask, outputs={"logits": logits.shape} | ({} if loss is None else {"loss": loss.shape}),
        )  # fmt: skip
        output = MaskedLMOutput(loss, logits, encoded.hidden_states, encoded.attentions)
        return output if self._wants_dict(return_dict) else output.to_tuple()

    def _backward(self, cache: trunk.Cache, cotangents: dict[str, Tensor]) -> dict[str, Tensor]:
        logits, found = cache["logits"], {}
        dlogits = cotangents.get("logits", torch.zeros((), dtype=logits.dtype, device=logits.device))
        if "loss" in cotangents:
            of_loss, found["relevance_score"] = marginal_mlm_loss_backward(
                cotangents["loss"], logits, cache["relevance_score"], cache["labels"], cache["mlm_mask"]
            )
            dlogits = dlogits + of_loss
        dhidden = trunk.mlm_logits_backward(self.p, self.config, dlogits.flatten(0, 1), cache["head"], self.own_grads)
        dhidden = dhidden.view(*logits.shape[:2], -1)
        found["inputs_embeds"] = trunk.bert_backward(self.p, self.config, dhidden, cache["trunk"], self.own_grads)
        return found

    def _check_labels(
        self, sequences: int, tokens: int, relevance_score: Tensor | None, labels: Tensor, mlm_mask: Tensor | None
    ) -> None:
        if relevance_score is None:
            raise ValueError("labels were given without relevance_score: the loss weighs the candidates by it")
        candidates = self.config.num_candidates
        if sequences % candidates:
            raise ValueError(
                f"{sequences} sequences are not a multiple of num_candidates={candidates}: give that many "
                "candidates for each text, or load the model with num_candidates=…"
            )
        batch = sequences // candidates
        for name, value, expected in (
            ("relevance_score", relevance_score, (batch, candidates)),
            ("labels", labels, (batch, tokens)),
            ("mlm_mask", mlm_mask, (batch, tokens)),
        ):
            if value is not None and tuple(value.shape) != expected:
                raise ValueError(f"{name} has shape {tuple(value.shape)}: expected {expected}")


def marginal_mlm_loss(logits: Tensor, relevance_score: Tensor, labels: Tensor, mlm_mask: Tensor | None) -> Tensor:
    """-mean over masked tokens j of log Σ_z p(y_j|z,x) p(z|x): equation 1 for each masked token on its own.

    Args:
        logits: [batch * candidates, tokens, vocabulary].
        relevance_score: [batch, candidates].
        labels: [batch, tokens] int64, -100 where there is none.
        mlm_mask: [batch, tokens]; None counts every token.

    Returns:
        The loss [], 0 where the mask is empty.
    """
    log_joint, mask = log_joint_likelihood(logits, relevance_score, labels, mlm_mask)
    return -torch.nansum((ops.logsumexp(log_joint, 1) * mask).sum() / mask.sum())


def log_joint_likelihood(
    logits: Tensor, relevance_score: Tensor, labels: Tensor, mlm_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """log p(y_j|z,x) p(z|x) [batch, candidates, tokens], and the mask as numbers [batch, tokens]."""
    batch, candidates = relevance_score.shape
    targets = labels[:, None].expand(batch, candidates, labels.shape[1])  # [batch, candidates, tokens]
    log_likelihood = -ops.cross_entropy(logits.flatten(0, 1), targets.reshape(-1)).view(targets.shape)
    log_joint = log_likelihood + ops.log_softmax(relevance_score, 1)[:, :, None]
    mask = torch.ones_like(log_joint[:, 0]) if mlm_mask is None else mlm_mask.to(log_joint.dtype)
    return log_joint, mask


def marginal_mlm_loss_backward(
    dloss: Tensor, logits: Tensor, relevance_score: Tensor, labels: Tensor, mlm_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """∂loss/∂logits and ∂loss/∂relevance_score.

    With the posterior p(z|x,y_j) = p(y_j|z,x) p(z|x) / p(y_j|x), the gradient of log p(y_j|x) is the posterior for
    each log p(y_j|z,x), and for f(x,z) it is p(z|x,y_j) - p(z|x): a document is pushed up as far as it predicts the
    word better than the mixture does (REALM section 3.3, the gradient of f).
    """
    log_joint, mask = log_joint_likelihood(logits, relevance_score, labels, mlm_mask)
    posterior = ops.softmax(log_joint.transpose(1, 2)).transpose(1, 2)  # [batch, candidates, tokens]
    # An empty mask has loss 0 and no gradient.
    weight = -dloss * mask / mask.sum().clamp(min=torch.finfo(mask.dtype).tiny)  # [batch, tokens]
    dlog_likelihood = posterior * weight[:, None]
    prior = ops.softmax(relevance_score)
    drelevance = dlog_likelihood.sum(2) - prior * weight.sum(1, keepdim=True)

    targets = labels[:, None].expand_as(log_joint).reshape(-1)
    ignored = targets == -100
    scale = dlog_likelihood.reshape(-1).masked_fill(ignored, 0)[:, None]
    dlogits = ops.softmax(logits.flatten(0, 1)).mul_(-scale)  # [rows, vocabulary]
    dlogits.scatter_add_(1, targets.masked_fill(ignored, 0)[:, None], scale)
    return dlogits.view(logits.shape), drelevance
