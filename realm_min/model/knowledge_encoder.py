"""The knowledge-augmented encoder: predict masked words of x from x and a retrieved document z (REALM section 3.2).

p(y|z,x) reads x and z in one sequence; p(y|x) = Σ_z p(y|z,x) p(z|x) (equation 1) weighs the documents by
p(z|x) = softmax over f(x, z). The loss is -log p(y|x), so it teaches the retriever too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..config import RealmConfig
from . import ops
from .base import Inputs, RealmModel, checked_batch
from .bert import Batch, Kept, Run, bert, bert_backward, layer_norm, layer_norm_backward, linear, linear_backward
from .outputs import MaskedLMOutput
from .parameters import Parameters, Shapes, bert_shapes, mlm_head_shapes
from .scorer import flatten_candidates

IGNORED = -100  # the label of a position that has none


def masked_words(p: Parameters, config: RealmConfig, batch: Batch, labels: Tensor, run: Run) -> tuple[Tensor, Kept]:
    """log p(y_j|z,x) of the masked words y_j alone: no other position meets the vocabulary.

    Args:
        labels: [sequences, tokens] int64, -100 where there is none.

    Returns:
        [sequences, tokens], 0 where there is no label; and what the backward takes.
    """
    encoded, kept_bert = bert(p, config, batch, "unpadded", run)
    masked = (labels != IGNORED).reshape(-1).nonzero()[:, 0]
    hidden = encoded.hidden.reshape(-1, config.hidden_size)  # [sequences * tokens, hidden]
    logits, kept_head = mlm_logits(p, config, hidden[masked])  # [masked, vocabulary]
    targets = labels.reshape(-1)[masked]
    log_likelihood = hidden.new_zeros(len(hidden)).index_copy_(0, masked, -ops.cross_entropy(logits, targets))
    return log_likelihood.view(labels.shape), (kept_bert, kept_head, masked, logits, targets)


def masked_words_backward(dy: Tensor, kept: Kept, grads: Parameters) -> None:
    """Add to `grads` from the gradient of what `masked_words` returned, [sequences, tokens]."""
    kept_bert, kept_head, masked, logits, targets = kept
    dlogits = ops.cross_entropy_backward(-dy.reshape(-1)[masked], logits, targets)
    drows = mlm_logits_backward(dlogits, kept_head, grads)  # [masked, hidden]
    dhidden = drows.new_zeros(dy.numel(), drows.shape[1]).index_copy_(0, masked, drows)
    bert_backward(dhidden.view(*dy.shape, -1), kept_bert, grads)


def mlm_logits(p: Parameters, config: RealmConfig, hidden: Tensor) -> tuple[Tensor, Kept]:
    """Scores of every vocabulary entry at each row, [rows, hidden] -> [rows, vocabulary]."""
    name = "cls.predictions"
    inner, kept_dense = linear(p, f"{name}.transform.dense", hidden)
    activated = ops.ACTIVATIONS[config.hidden_act](inner.clone())
    transformed, kept_norm = layer_norm(p, f"{name}.transform.LayerNorm", activated, config.layer_norm_eps)
    weight = p[f"{name}.decoder.weight"]  # BERT ties it to the word embeddings
    logits = ops.linear(transformed, weight, p[f"{name}.bias"])
    return logits, (kept_dense, inner, config.hidden_act, kept_norm, transformed, weight)


def mlm_logits_backward(dlogits: Tensor, kept: Kept, grads: Parameters) -> Tensor:
    """∂loss/∂hidden [rows, hidden] from that of the logits [rows, vocabulary]."""
    kept_dense, inner, activation, kept_norm, transformed, weight = kept
    name = "cls.predictions"
    dtransformed = ops.linear_backward(
        dlogits, transformed, weight, grads[f"{name}.decoder.weight"], grads[f"{name}.bias"]
    )
    _, slope = ops.activation_and_slope(activation, inner)
    return linear_backward(layer_norm_backward(dtransformed, kept_norm, grads).mul_(slope), kept_dense, grads)


def rows_of_head(kept: Kept, rows: Tensor) -> Kept:
    """What `mlm_logits` keeps, of some of its rows alone."""
    (x, *of_dense), inner, activation, (normal, r, *of_norm), transformed, weight = kept
    return (x[rows], *of_dense), inner[rows], activation, (normal[rows], r[rows], *of_norm), transformed[rows], weight


class RealmKnowledgeAugEncoder(RealmModel):
    """Masked-language-model logits of every candidate, and the marginal loss over the candidates."""

    @classmethod
    def shapes(cls, config: RealmConfig) -> Shapes:
        tied = "realm.embeddings.word_embeddings.weight" if getattr(config, "tie_word_embeddings", True) else None
        return {
            **bert_shapes(config),
            **mlm_head_shapes(config, tied_to=tied),
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
        batch = checked_batch(self.config, Inputs(ids, mask, types, position_ids, inputs_embeds))
        if labels is not None:
            if relevance_score is None:
                raise ValueError("labels were given without relevance_score: the loss weighs the candidates by it")
            sequences, tokens = batch.types.shape
            self._check_labels(sequences, tokens, relevance_score, labels, mlm_mask)
        run = self.run_now(len(batch.types), head_mask, output_attentions, output_hidden_states)

        def predict(keep: bool) -> tuple[MaskedLMOutput, Kept]:
            encoded, kept_bert = bert(self.p, self.config, batch, "tokens", run._replace(keep=keep))
            shape = encoded.hidden.shape  # [sequences, tokens, hidden]
            logits, kept_head = mlm_logits(self.p, self.config, encoded.hidden.reshape(-1, shape[2]))
            logits = logits.view(*shape[:2], -1)
            loss = words = None
            if labels is not None and relevance_score is not None:
                words = counted_words(logits, labels, self.config.num_candidates, mlm_mask)
                loss = marginal_loss(words.log_likelihood, relevance_score, mlm_mask, whole_span)
            output = MaskedLMOutput(loss, logits, encoded.hidden_states, encoded.attentions)
            return output, (kept_bert, kept_head, words, (relevance_score, mlm_mask, whole_span), shape)

        return self._called(predict, ("loss", "logits"), return_dict)

    def _backward(self, kept: Kept, cotangents: dict[str, Tensor]) -> dict[str, Tensor]:
        kept_bert, kept_head, words, of_loss, shape = kept
        found: dict[str, Tensor] = {}
        dlogits: Any = None
        if "loss" in cotangents:
            dlog_likelihood, found["relevance_score"] = marginal_loss_backward(
                cotangents["loss"], words.log_likelihood, *of_loss
            )
            dlogits = ops.cross_entropy_backward(-dlog_likelihood.flatten()[words.rows], words.logits, words.targets)
        if "logits" in cotangents:
            every = cotangents["logits"].flatten(0, 1)
            every = every if dlogits is None else every.index_add(0, words.rows, dlogits)
            dhidden = mlm_logits_backward(every, kept_head, self.own_grads)
        else:  # no other row has a gradient to take through the vocabulary
            drows = mlm_logits_backward(dlogits, rows_of_head(kept_head, words.rows), self.own_grads)
            dhidden = drows.new_zeros(shape[0] * shape[1], shape[2]).index_copy_(0, words.rows, drows)
        return found | {"inputs_embeds": bert_backward(dhidden.view(shape), kept_bert, self.own_grads)}

    def masked_log_likelihood(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, labels: Tensor
    ) -> tuple[Tensor, Kept]:
        """`masked_words` of inputs [sequences, tokens] int64, padded on the right."""
        batch = checked_batch(self.config, Inputs(input_ids, attention_mask, token_type_ids))
        run = self.run_now(len(input_ids))._replace(keep=True)
        return masked_words(self.p, self.config, batch, labels, run)

    def masked_log_likelihood_backward(self, dlog_likelihood: Tensor, kept: Kept) -> None:
        """Add to `grads` from the gradient of what `masked_log_likelihood` returned, [sequences, tokens]."""
        masked_words_backward(dlog_likelihood, kept, self.own_grads)

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
