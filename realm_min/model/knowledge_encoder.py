"""The knowledge-augmented encoder: predict masked words of x from x and a retrieved document z (REALM section 3.2).

p(y|z,x) reads x and z in one sequence; p(y|x) = Σ_z p(y|z,x) p(z|x) (equation 1) weighs the documents by
p(z|x) = softmax over f(x, z). The loss is -log p(y|x), so it teaches the retriever too.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..config import RealmConfig
from . import bert as trunk
from . import ops
from .base import RealmModel
from .outputs import MaskedLMOutput
from .parameters import Shapes
from .scorer import flatten_candidates

IGNORED = -100  # the label of a position that has none


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
        *,
        whole_span: bool = False,
    ) -> MaskedLMOutput | tuple:
        """Predict the masked words of each text with each of its candidates.

        Args:
            input_ids, attention_mask, token_type_ids: text and candidate in one sequence,
                [batch, candidates, tokens] or [batch * candidates, tokens].
            relevance_score: f(x, z), [batch, candidates]; needed where `labels` are given.
            labels: the words behind the masks, [batch, tokens] int64; -100 where there is none.
            mlm_mask: which positions count, [batch, tokens]; None counts all.
            whole_span: which loss, see `marginal_loss`.

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
        loss = words = None
        if labels is not None:
            if relevance_score is None:
                raise ValueError("labels were given without relevance_score: the loss weighs the candidates by it")
            self._check_labels(sequences, tokens, relevance_score, labels, mlm_mask)
            words = counted_words(logits, labels, self.config.num_candidates, mlm_mask)
            loss = marginal_loss(words.log_likelihood, relevance_score, mlm_mask, whole_span)
        outputs = {"logits": logits.shape} | ({} if loss is None else {"loss": loss.shape})
        self._keep(
            trunk=encoded.cache, head=head, words=words, relevance_score=relevance_score, mlm_mask=mlm_mask,
            whole_span=whole_span, outputs=outputs,
        )  # fmt: skip
        output = MaskedLMOutput(loss, logits, encoded.hidden_states, encoded.attentions)
        return output if self._wants_dict(return_dict) else output.to_tuple()

    def _backward(self, cache: trunk.Cache, cotangents: dict[str, Tensor]) -> dict[str, Tensor]:
        found, head = {}, cache["head"]
        if "loss" in cotangents:
            words = cache["words"]
            dlog_likelihood, found["relevance_score"] = marginal_loss_backward(
                cotangents["loss"], words.log_likelihood, cache["relevance_score"], cache["mlm_mask"],
                cache["whole_span"],
            )  # fmt: skip
            dlogits = log_likelihood_backward(dlog_likelihood.flatten()[words.rows], words.logits, words.targets)
        if "logits" in cotangents:
            every = cotangents["logits"].flatten(0, 1)
            dlogits = every.index_add(0, words.rows, dlogits) if "loss" in cotangents else every
        else:  # no other row has a gradient to take through the vocabulary
            head = trunk.rows_of(head, words.rows)
        dhidden = trunk.mlm_logits_backward(self.p, self.config, dlogits, head, self.own_grads)
        sequences, tokens, _ = cache["outputs"]["logits"]
        if "logits" not in cotangents:
            every = dhidden.new_zeros(sequences * tokens, dhidden.shape[1])
            dhidden = every.index_copy_(0, words.rows, dhidden)
        dhidden = dhidden.view(sequences, tokens, -1)
        found["inputs_embeds"] = trunk.bert_backward(self.p, self.config, dhidden, cache["trunk"], self.own_grads)
        return found

    def masked_log_likelihood(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, labels: Tensor
    ) -> tuple[Tensor, trunk.Cache]:
        """log p(y_j|z,x) of the masked words y_j alone: no other position meets the vocabulary.

        Args:
            input_ids, attention_mask, token_type_ids, labels: [sequences, tokens] int64, padded on the right; labels
                are -100 where there is none.

        Returns:
            [sequences, tokens], 0 where there is no label; and what `masked_log_likelihood_backward` needs.
        """
        inputs = trunk.check_inputs(self.config, input_ids, attention_mask, token_type_ids, None, None)
        seeds = self._seeds(len(input_ids)) if self.training else None
        encoded = trunk.bert(
            self.p, self.config, inputs, read="unpadded", seeds=seeds, keep=True,
            checkpoint_layers=self.checkpoint_layers,
        )  # fmt: skip
        rows = (labels != IGNORED).reshape(-1).nonzero()[:, 0]
        head: trunk.Cache = {}
        hidden = encoded.hidden.reshape(-1, encoded.hidden.shape[2])  # [sequences * tokens, hidden]
        logits = trunk.mlm_logits(self.p, self.config, hidden[rows], cache=head)  # [masked, vocabulary]
        targets = labels.reshape(-1)[rows]
        found = hidden.new_zeros(hidden.shape[0]).index_copy_(0, rows, -ops.cross_entropy(logits, targets))
        cache = {"trunk": encoded.cache, "head": head, "rows": rows, "logits": logits, "targets": targets}
        return found.view(labels.shape), cache

    def masked_log_likelihood_backward(self, dlog_likelihood: Tensor, cache: trunk.Cache) -> None:
        """Add to `grads` from the gradient of what `masked_log_likelihood` returned, [sequences, tokens]."""
        dlog_likelihood = dlog_likelihood.reshape(-1)
        dlogits = log_likelihood_backward(dlog_likelihood[cache["rows"]], cache["logits"], cache["targets"])
        drows = trunk.mlm_logits_backward(self.p, self.config, dlogits, cache["head"], self.own_grads)
        dhidden = drows.new_zeros(dlog_likelihood.shape[0], drows.shape[1]).index_copy_(0, cache["rows"], drows)
        trunk.bert_backward(self.p, self.config, dhidden, cache["trunk"], self.own_grads)

    def _check_labels(
        self, sequences: int, tokens: int, relevance_score: Tensor, labels: Tensor, mlm_mask: Tensor | None
    ) -> None:
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
        ops.check_targets(labels, self.config.vocab_size)


def marginal_mlm_loss(
    logits: Tensor, relevance_score: Tensor, labels: Tensor, mlm_mask: Tensor | None, whole_span: bool = False
) -> Tensor:
    """`marginal_loss` of the words `labels`.

    Args:
        logits: [batch * candidates, tokens, vocabulary].
        relevance_score: [batch, candidates].
        labels: [batch, tokens] int64, -100 where there is none: log 1.
        mlm_mask: [batch, tokens]; None counts every token.

    Returns:
        The loss [].
    """
    words = counted_words(logits, labels, relevance_score.shape[1], mlm_mask)
    return marginal_loss(words.log_likelihood, relevance_score, mlm_mask, whole_span)


class CountedWords(NamedTuple):
    """The words that the loss reads, those with a label which the mask counts, and how likely they are."""

    rows: Tensor  # where they stand, [words] of batch * candidates * tokens
    logits: Tensor  # [words, vocabulary]
    targets: Tensor  # [words]
    log_likelihood: Tensor  # log p(y_j|z,x) [batch, candidates, tokens], 0 elsewhere


def counted_words(logits: Tensor, labels: Tensor, candidates: int, mlm_mask: Tensor | None) -> CountedWords:
    """Arguments as in `marginal_mlm_loss`; every candidate z of a text has the same words y to predict."""
    counted = labels != IGNORED if mlm_mask is None else (labels != IGNORED) & mlm_mask.bool()
    every = (labels.shape[0], candidates, labels.shape[1])  # batch, candidates, tokens
    rows = counted[:, None].expand(every).reshape(-1).nonzero()[:, 0]
    logits, targets = logits.flatten(0, 1)[rows], labels[:, None].expand(every).reshape(-1)[rows]
    log_likelihood = logits.new_zeros(every)
    log_likelihood.view(-1)[rows] = -ops.cross_entropy(logits, targets)
    return CountedWords(rows, logits, targets, log_likelihood)


def log_likelihood_backward(dlog_likelihood: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """∂/∂logits of log softmax(logits)[target]: d ([class = target] - softmax), 0 where the target is -100.

    dlog_likelihood [rows], logits [rows, classes], targets [rows] -> [rows, classes].
    """
    ignored = targets == IGNORED
    scale = dlog_likelihood.masked_fill(ignored, 0)[:, None]
    dlogits = ops.softmax(logits).mul_(-scale)
    return dlogits.scatter_add_(1, targets.masked_fill(ignored, 0)[:, None], scale)


def marginal_loss(
    log_likelihood: Tensor, relevance_score: Tensor, mask: Tensor | None, whole_span: bool = False
) -> Tensor:
    """-log p(y|x) = -log Σ_z p(y|z,x) p(z|x) (REALM equation 1), summed and divided by the number of masked tokens.

    Args:
        log_likelihood: log p(y_j|z,x), [batch, candidates, tokens].
        relevance_score: f(x, z), [batch, candidates].
        mask: which tokens count, [batch, tokens]; None counts all.
        whole_span: False, as transformers: each token is marginalised on its own, p(y_j|x) = Σ_z p(y_j|z,x) p(z|x).
            True, as the paper: y is all masked tokens of a text at once, p(y|z,x) = Π_j p(y_j|z,x).

    Returns:
        The loss [], 0 where the mask is empty.
    """
    log_joint, mask = log_joint_likelihood(log_likelihood, relevance_score, mask, whole_span)
    log_marginal = ops.logsumexp(log_joint, 1)  # [batch, tokens | 1]
    counted = mask.any(1, keepdim=True) if whole_span else mask
    return -torch.nansum((log_marginal * counted).sum() / mask.sum())


def log_joint_likelihood(
    log_likelihood: Tensor, relevance_score: Tensor, mask: Tensor | None, whole_span: bool
) -> tuple[Tensor, Tensor]:
    """log p(y|z,x) p(z|x) [batch, candidates, tokens | 1], and the mask as numbers [batch, tokens]."""
    mask = torch.ones_like(log_likelihood[:, 0]) if mask is None else mask.to(log_likelihood.dtype)
    if whole_span:
        log_likelihood = (log_likelihood * mask[:, None]).sum(2, keepdim=True)
    return log_likelihood + ops.log_softmax(relevance_score, 1)[:, :, None], mask


def marginal_loss_backward(
    dloss: Tensor, log_likelihood: Tensor, relevance_score: Tensor, mask: Tensor | None, whole_span: bool = False
) -> tuple[Tensor, Tensor]:
    """∂loss/∂log_likelihood and ∂loss/∂relevance_score of `marginal_loss`.

    With the posterior p(z|x,y) = p(y|z,x) p(z|x) / p(y|x), y a token or the whole span, the gradient of log p(y|x) is
    the posterior for each log p(y|z,x), and for f(x,z) it is p(z|x,y) - p(z|x): a document is pushed up as far as it
    predicts y better than the mixture does (REALM section 3.3, the gradient of f).
    """
    log_joint, mask = log_joint_likelihood(log_likelihood, relevance_score, mask, whole_span)
    posterior = ops.softmax(log_joint.transpose(1, 2)).transpose(1, 2)  # [batch, candidates, tokens | 1]
    # An empty mask has loss 0 and no gradient.
    scale = -dloss / mask.sum().clamp(min=torch.finfo(mask.dtype).tiny)
    weight = scale * mask  # [batch, tokens]
    dlog_likelihood = posterior * weight[:, None]
    prior = ops.softmax(relevance_score)
    if whole_span:  # a text without masks has posterior = prior but for rounding
        return dlog_likelihood, (posterior[:, :, 0] - prior) * scale * mask.any(1, keepdim=True)
    return dlog_likelihood, dlog_likelihood.sum(2) - prior * weight.sum(1, keepdim=True)
