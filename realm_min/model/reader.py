"""The reader: which span of which retrieved block is the answer (ORQA, Lee et al. 2019, section 3).

A span's score is S_read(b, s, q) = MLP([h_START; h_END]) + S_retr(b, q): what the block's own words say, and how
relevant the block is. Axes: `beam` blocks, `spans` of at most `max_span_width` tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import RealmConfig
from . import bert as trunk
from . import ops
from .base import RealmModel
from .outputs import RealmReaderOutput
from .parameters import Shapes
from .spans import SpanOptions, span_candidates, span_logits, span_logits_backward


class RealmReader(RealmModel):
    """Scores every span of the retrieved blocks."""

    unread = ("cls.", "realm.pooler.")

    @classmethod
    def shapes(cls, config: RealmConfig) -> Shapes:
        spans = config.span_hidden_size
        return {
            **{f"realm.{key}": shape for key, shape in trunk.shapes(config).items()},
            **trunk.mlm_head_shapes(config),
            **trunk.dense_shapes("qa_outputs.dense_intermediate", config.hidden_size, 2 * spans),
            **trunk.dense_shapes("qa_outputs.dense_output", spans, 1),
            **trunk.norm_shapes("qa_outputs.layer_normalization", spans),
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
        block_mask: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        has_answers: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> RealmReaderOutput | tuple:
        """Find the best span; with answers given, the losses too.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids: question and block in one sequence,
                [reader beam, tokens].
            relevance_score: S_retr of the retrieved blocks, [searcher beam]; the first of them are read.
            block_mask: bool [searcher beam, tokens], true on the tokens of the block.
            start_positions, end_positions: answers in each block, [searcher beam, answers] int64, -1 for none.
            has_answers: bool [searcher beam].

        Returns:
            `block_idx` [], `candidate` [], `start_pos` [1], `end_pos` [1]; with answers `loss` [] = `retriever_loss`
            + `reader_loss`, `retriever_correct` [searcher beam] and `reader_correct` [reader beam, spans].

        Raises:
            ValueError: an argument left out, of a wrong rank, shape or range; fewer tokens than `max_span_width`.
        """
        if relevance_score is None or block_mask is None:
            missing = "relevance_score" if relevance_score is None else "block_mask"
            raise ValueError(f"{missing} was not given: the reader needs it to score spans")
        logits, encoded = self.span_logits(
            input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds,
            # As the searcher hands them over, scores and masks may be of more blocks than are read.
            relevance_score[: self.config.reader_beam_size], block_mask[: self.config.reader_beam_size],
            output_attentions, output_hidden_states,
        )  # fmt: skip
        starts, ends = span_candidates(encoded.hidden.shape[1], self.config.max_span_width, logits.device)
        candidate = logits.amax(0).argmax()
        output = RealmReaderOutput(
            block_idx=logits.amax(1).argmax(),
            candidate=candidate,
            start_pos=starts[candidate[None]],
            end_pos=ends[candidate[None]],
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        if start_positions is not None and end_positions is not None and has_answers is not None:
            beam, tokens = logits.shape[0], encoded.hidden.shape[1]
            for name, value in (("start_positions", start_positions), ("end_positions", end_positions)):
                if value.dim() != 2 or value.shape[0] < beam:
                    raise ValueError(f"{name} has shape {tuple(value.shape)}: expected [blocks, answers]")
            output.retriever_correct = has_answers
            output.reader_correct = correct_spans(
                starts, ends, start_positions[:beam].clamp(-1, tokens), end_positions[:beam].clamp(-1, tokens)
            )
            # A question whose answer was not retrieved teaches nothing: its losses are 0.
            output.retriever_loss = marginal_log_loss(relevance_score, has_answers) * has_answers.any()
            output.reader_loss = marginal_log_loss(
                logits.reshape(-1), output.reader_correct.reshape(-1)
            ) * output.reader_correct.any()  # fmt: skip
            output.loss = output.retriever_loss + output.reader_loss
        if self.keeps:
            losses = ("loss", "retriever_loss", "reader_loss")
            self._cache |= dict(
                logits=logits, relevance_score=relevance_score, has_answers=has_answers, correct=output.reader_correct,
                outputs={name: output[name].shape for name in losses if name in output},
            )  # fmt: skip
        return output if self._wants_dict(return_dict) else output.to_tuple()

    def _backward(self, cache: trunk.Cache, cotangents: dict[str, Tensor]) -> dict[str, Tensor]:
        relevance_score, logits, correct = cache["relevance_score"], cache["logits"], cache["correct"]
        total = cotangents.get("loss", 0)
        drelevance = torch.zeros_like(relevance_score)
        if cache["has_answers"].any():
            dretriever = total + cotangents.get("retriever_loss", 0)
            drelevance += dretriever * marginal_log_loss_gradient(relevance_score, cache["has_answers"])
        dlogits = torch.zeros_like(logits)
        if correct.any():
            dreader = total + cotangents.get("reader_loss", 0)
            dlogits += dreader * marginal_log_loss_gradient(logits.flatten(), correct.flatten()).view_as(logits)
        p, grads, spans = self.p, self.own_grads, cache["spans"]
        found = span_logits_backward(dlogits, *spans["arguments"], **spans["options"])
        drelevance[: logits.shape[0]] += found["relevance_score"]
        grads["qa_outputs.layer_normalization.weight"] += found["norm_weight"]
        grads["qa_outputs.layer_normalization.bias"] += found["norm_bias"]
        grads["qa_outputs.dense_output.weight"][0] += found["output_weight"]
        grads["qa_outputs.dense_output.bias"] += found["output_bias"]
        dense = "qa_outputs.dense_intermediate"
        dprojections = torch.cat([found["start_projection"], found["end_projection"]], 2).flatten(0, 1)
        dhidden = ops.linear_backward(
            dprojections, cache["hidden"], p[f"{dense}.weight"], grads[f"{dense}.weight"], grads[f"{dense}.bias"]
        ).view(*logits.shape[:1], -1, self.config.hidden_size)
        dembeds = trunk.bert_backward(p, self.config, dhidden, cache["trunk"], grads)
        return {"relevance_score": drelevance, "inputs_embeds": dembeds}

    def span_logits(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        head_mask: Tensor | None,
        inputs_embeds: Tensor | None,
        relevance_score: Tensor,
        block_mask: Tensor,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> tuple[Tensor, trunk.Encoded]:
        """S_read of every span of every block given: logits [beam, spans], and what the trunk returned."""
        config, p = self.config, self.p
        # Nobody reads padding, unless the block's mask says that answers may stand in it.
        answers_in_padding = (
            attention_mask is not None
            and attention_mask.shape == block_mask.shape
            and bool((block_mask.bool() & (attention_mask == 0)).any())
        )
        encoded = self._encode(
            "tokens" if answers_in_padding else "unpadded",
            input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds,
            output_attentions, output_hidden_states,
        )  # fmt: skip
        beam, tokens, hidden = encoded.hidden.shape
        if tokens < config.max_span_width:
            raise ValueError(f"{tokens} tokens are fewer than max_span_width={config.max_span_width}: pad the input")
        if tuple(block_mask.shape) != (beam, tokens):
            raise ValueError(f"block_mask has shape {tuple(block_mask.shape)}: expected {(beam, tokens)} as the input")
        if tuple(relevance_score.shape) != (beam,):
            raise ValueError(f"relevance_score has shape {tuple(relevance_score.shape)}: expected {(beam,)}")
        projections = ops.linear(
            encoded.hidden.reshape(-1, hidden),
            p["qa_outputs.dense_intermediate.weight"],
            p["qa_outputs.dense_intermediate.bias"],
        )
        start_projection, end_projection = projections.view(beam, tokens, -1).chunk(2, dim=2)
        arguments = (
            start_projection,
            end_projection,
            p["qa_outputs.layer_normalization.weight"],
            p["qa_outputs.layer_normalization.bias"],
            p["qa_outputs.dense_output.weight"][0],
            p["qa_outputs.dense_output.bias"],
        )
        options = SpanOptions(
            max_span_width=config.max_span_width,
            eps=config.reader_layer_norm_eps,
            block_mask=block_mask.bool(),
            relevance_score=relevance_score,
        )
        self._keep(
            trunk=encoded.cache,
            hidden=encoded.hidden.reshape(-1, hidden),
            spans={"arguments": arguments, "options": options},
        )
        return span_logits(*arguments, **options), encoded


def correct_spans(starts: Tensor, ends: Tensor, gold_starts: Tensor, gold_ends: Tensor) -> Tensor:
    """Which candidate spans are answers.

    Args:
        starts, ends: first and last token of each candidate, [spans].
        gold_starts, gold_ends: the same of the answers, [beam, answers]; -1 matches nothing.

    Returns:
        bool [beam, spans].
    """
    is_start = starts == gold_starts[:, :, None]  # [beam, answers, spans]
    return (is_start & (ends == gold_ends[:, :, None])).any(1)


def marginal_log_loss(logits: Tensor, is_correct: Tensor) -> Tensor:
    """-log of the probability that a softmax over `logits` gives to all that `is_correct`; both [choices] -> []."""
    correct_logits = logits + ops.additive_mask(is_correct, logits.dtype)
    return ops.logsumexp(logits, 0) - ops.logsumexp(correct_logits, 0)


def marginal_log_loss_gradient(logits: Tensor, is_correct: Tensor) -> Tensor:
    """∂/∂logits of `marginal_log_loss`: the softmax over all minus the softmax over what is correct."""
    correct_logits = logits + ops.additive_mask(is_correct, logits.dtype)
    return ops.softmax(logits) - ops.softmax(correct_logits)
