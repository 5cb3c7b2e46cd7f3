"""`RealmKnowledgeAugEncoder`: masked words from a text and a retrieved document (REALM section 3.2)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..config import RealmConfig
from ..kinds import checked
from ..model import ops
from ..model.bert import Kept, bert, bert_backward
from ..model.parameters import Shapes, bert_shapes, mlm_head_shapes
from ..model.realm import (
    NO_LABEL,
    marginal_loss,
    marginal_loss_backward,
    masked_words,
    masked_words_backward,
    mlm_logits,
    mlm_logits_backward,
    rows_of_head,
)
from ..ranks.devices import plain_arithmetic
from .base import RealmModel
from .inputs import Inputs, check_integers, check_mask, check_relevance, checked_batch, flatten_candidates
from .outputs import MaskedLMOutput
from .parts import Part, part


class RealmKnowledgeAugEncoder(RealmModel):
    """Masked-language-model logits of every candidate, and the marginal loss over the candidates."""

    @classmethod
    def shapes(cls, config: RealmConfig) -> Shapes:
        tied = "realm.embeddings.word_embeddings.weight" if getattr(config, "tie_word_embeddings", True) else None
        return {
            **bert_shapes(config),
            **mlm_head_shapes(config, tied_to=tied),
        }

    def get_output_embeddings(self) -> Part:
        return part(self, "cls.predictions.decoder")

    @checked
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
            self._check_labels(batch.types.shape, relevance_score, labels, mlm_mask)
        run = self.run_now(len(batch.types), head_mask, output_attentions, output_hidden_states)

        def predict(model: RealmKnowledgeAugEncoder, keep: bool) -> tuple[MaskedLMOutput, Kept]:
            encoded, kept_bert = bert(model.p, model.config, batch, "tokens", run._replace(keep=keep))
            shape = encoded.hidden.shape  # [sequences, tokens, hidden]
            logits, kept_head = mlm_logits(model.p, model.config, encoded.hidden.reshape(-1, shape[2]))
            logits = logits.view(*shape[:2], -1)
            loss = words = kept_loss = None
            if labels is not None and relevance_score is not None:
                words = counted_words(logits, labels.long(), model.config.num_candidates, mlm_mask)
                loss, kept_loss = marginal_loss(words.log_likelihood, relevance_score, mlm_mask, whole_span)
                loss = loss.to(torch.promote_types(loss.dtype, torch.float32))  # as transformers' mask makes it
            output = MaskedLMOutput(loss, logits, encoded.hidden_states, encoded.attentions)
            return output, (kept_bert, kept_head, words, kept_loss, shape)

        return self._called(predict, ("loss", "logits"), return_dict)

    def _backward(self, kept: Kept, cotangents: dict[str, Tensor]) -> dict[str, Tensor]:
        kept_bert, kept_head, words, kept_loss, shape = kept
        found: dict[str, Tensor] = {}
        dlogits: Any = None
        if "loss" in cotangents:
            dlog_likelihood, found["relevance_score"] = marginal_loss_backward(cotangents["loss"], kept_loss)
            dlogits = ops.cross_entropy_backward(-dlog_likelihood.flatten()[words.rows], words.logits, words.targets)
        if "logits" in cotangents:
            every = cotangents["logits"].flatten(0, 1)
            every = every if dlogits is None else every.index_add(0, words.rows, dlogits)
            dhidden = mlm_logits_backward(every, kept_head, self.own_grads)
        else:  # no other row has a gradient to take through the vocabulary
            drows = mlm_logits_backward(dlogits, rows_of_head(kept_head, words.rows), self.own_grads)
            dhidden = drows.new_zeros(shape[0] * shape[1], shape[2]).index_copy_(0, words.rows, drows)
        return found | {"inputs_embeds": bert_backward(dhidden.view(shape), kept_bert, self.own_grads)}

    @checked
    def masked_log_likelihood(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, labels: Tensor
    ) -> tuple[Tensor, Kept]:
        """`masked_words` of inputs [sequences, tokens] of integers, padded on the right."""
        batch = checked_batch(self.config, Inputs(input_ids, attention_mask, token_type_ids))
        run = self.run_now(len(input_ids))._replace(keep=True)
        with plain_arithmetic(self.device.type):
            return masked_words(self.p, self.config, batch, labels.long(), run)

    def masked_log_likelihood_backward(self, dlog_likelihood: Tensor, kept: Kept) -> None:
        """Add to `grads` from the gradient of what `masked_log_likelihood` returned, [sequences, tokens]."""
        with plain_arithmetic(self.device.type):
            masked_words_backward(dlog_likelihood, kept, self.own_grads)

    def _check_labels(
        self, shape: torch.Size, relevance_score: Tensor, labels: Tensor, mlm_mask: Tensor | None
    ) -> None:
        (sequences, tokens), candidates = shape, self.config.num_candidates
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
        check_integers("labels", labels)
        if mlm_mask is not None:
            check_mask("mlm_mask", mlm_mask)
        check_relevance(relevance_score)
        ops.check_targets(labels[labels.long() != NO_LABEL].long(), self.config.vocab_size)  # beside bytes -100 is 156


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
    return marginal_loss(words.log_likelihood, relevance_score, mlm_mask, whole_span)[0]


class CountedWords(NamedTuple):
    """The words that the loss reads, those with a label which the mask counts, and how likely they are."""

    rows: Tensor  # where they stand, [words] of batch * candidates * tokens
    logits: Tensor  # [words, vocabulary]
    targets: Tensor  # [words]
    log_likelihood: Tensor  # log p(y_j|z,x) [batch, candidates, tokens], 0 elsewhere


def counted_words(logits: Tensor, labels: Tensor, candidates: int, mlm_mask: Tensor | None) -> CountedWords:
    """Arguments as in `marginal_mlm_loss`; every candidate z of a text has the same words y to predict."""
    counted = labels != NO_LABEL if mlm_mask is None else (labels != NO_LABEL) & mlm_mask.bool()
    every = (labels.shape[0], candidates, labels.shape[1])  # batch, candidates, tokens
    rows = counted[:, None].expand(every).reshape(-1).nonzero()[:, 0]
    logits, targets = logits.flatten(0, 1)[rows], labels[:, None].expand(every).reshape(-1)[rows]
    log_likelihood = logits.new_zeros(every)
    log_likelihood.view(-1)[rows] = -ops.cross_entropy(logits, targets)
    return CountedWords(rows, logits, targets, log_likelihood)
