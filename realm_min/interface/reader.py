"""`RealmReader`: which span of which retrieved block is the answer (ORQA, Lee et al. 2019, section 3).

A span's score is S_read(b, s, q) = MLP([h_START; h_END]) + S_retr(b, q): what the block's own words say, and how
relevant the block is. Axes: `beam` blocks, `spans` of at most `max_span_width` tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..config import RealmConfig
from ..kinds import checked, tensor_of
from ..model.bert import PLAIN, Batch, Encoded, Kept, Run
from ..model.parameters import Parameters, Shapes, bert_shapes, linear_shapes, mlm_head_shapes, norm_shapes
from ..model.realm import correct_spans, loss_of_correct, read, read_backward, read_tokens
from ..model.spans import SpanInputs, best_span, span_candidate, span_candidates, span_logits
from ..ranks.devices import plain_arithmetic
from .base import RealmModel
from .inputs import Inputs, check_integers, check_mask, check_relevance, checked_batch
from .outputs import RealmReaderOutput


class RealmReader(RealmModel):
    """Scores every span of the retrieved blocks."""

    unread = ("cls.", "realm.pooler.")

    @classmethod
    def shapes(cls, config: RealmConfig) -> Shapes:
        spans = config.span_hidden_size
        return {
            **bert_shapes(config),
            **mlm_head_shapes(config),
            **linear_shapes("qa_outputs.dense_intermediate", config.hidden_size, 2 * spans),
            **linear_shapes("qa_outputs.dense_output", spans, 1),
            **norm_shapes("qa_outputs.layer_normalization", spans),
        }

    @property
    def num_labels(self) -> int:
        return self.config.num_labels

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
        block_mask: Tensor | None = None,
        start_positions: list | np.ndarray | Tensor | None = None,
        end_positions: list | np.ndarray | Tensor | None = None,
        has_answers: list | np.ndarray | Tensor | None = None,
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
        inputs = Inputs(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        batch = checked_batch(self.config, inputs)
        beam, read_blocks = len(batch.types), slice(self.config.reader_beam_size)
        # As the searcher hands them over, scores and masks may be of more blocks than are read.
        check_blocks(self.config, batch, *(x[read_blocks] if x.dim() else x for x in (relevance_score, block_mask)))
        answers = None
        if start_positions is not None and end_positions is not None and has_answers is not None:
            answers = checked_answers((start_positions, end_positions, has_answers), beam, relevance_score)
        run = self.run_now(beam, head_mask, output_attentions, output_hidden_states)
        return self._called(
            lambda model, keep: best_span_of(
                model.p, model.config, batch, block_mask, relevance_score, answers, run._replace(keep=keep)
            ),
            ("loss", "retriever_loss", "reader_loss"),
            return_dict,
        )

    @checked
    def span_logits(
        self, inputs: Inputs, relevance_score: Tensor, block_mask: Tensor, run: Run = PLAIN
    ) -> tuple[Tensor, Encoded]:
        """The score of every span of every block read, [beam, spans], and what BERT returned; arguments as a call's."""
        batch = checked_batch(self.config, inputs)
        check_blocks(self.config, batch, relevance_score, block_mask)
        with plain_arithmetic(self.device.type):
            return read(self.p, self.config, batch, block_mask, relevance_score, run)[0]

    def _backward(self, kept: Kept, cotangents: dict[str, Tensor]) -> dict[str, Tensor]:
        drelevance, dembeds = best_span_of_backward(cotangents, kept, self.own_grads)
        return {"relevance_score": drelevance, "inputs_embeds": dembeds}


def best_span_of(
    p: Parameters, config: RealmConfig, batch: Batch, in_block: Tensor, relevance: Tensor,
    answers: Answers | None, run: Run,
) -> tuple[RealmReaderOutput, Kept]:  # fmt: skip
    """The best span of the blocks read, and the losses where answers are given; see `RealmReader.forward`.

    As the searcher hands them over, `relevance` [searcher beam] and `in_block` may be of more blocks than are read.
    """
    beam, tokens = batch.types.shape
    (inputs, encoded), kept = read_tokens(p, config, batch, in_block[:beam], relevance[:beam], run)
    scores = None if answers is None else span_logits(inputs)
    block, candidate, start, end = best_of(inputs, scores)
    output = RealmReaderOutput(
        block_idx=block,
        candidate=candidate,
        start_pos=start[None],
        end_pos=end[None],
        hidden_states=encoded.hidden_states,
        attentions=encoded.attentions,
    )
    slopes = None
    if answers is not None and scores is not None:
        gold = (positions[:beam].clamp(-1, tokens) for positions in answers[:2])
        correct = correct_spans(*span_candidates(tokens, config.max_span_width, scores.device), *gold)
        # A question whose answer was not retrieved teaches nothing: its losses are 0.
        retriever_loss, dretriever = loss_of_correct(relevance[None], answers.has_answers[None])
        reader_loss, dreader = loss_of_correct(scores.reshape(1, -1), correct.reshape(1, -1))
        reader_loss = reader_loss.to(inputs.start_projection.dtype)  # as transformers
        loss = retriever_loss + reader_loss
        output = RealmReaderOutput(loss, retriever_loss, reader_loss, answers.has_answers, correct, **output)
        slopes = dretriever[0], dreader.view_as(scores)
    return output, (kept, slopes)


def best_of(inputs: SpanInputs, scores: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Block, candidate, start and end of the best span; from its scores, where the losses need them anyway."""
    tokens = inputs.start_projection.shape[1]
    if scores is None:
        _, block, start, end = best_span(inputs)
        return block, torch.as_tensor(span_candidate(start, end, tokens), device=block.device), start, end
    starts, ends = span_candidates(tokens, inputs.max_span_width, scores.device)
    candidate = scores.amax(0).argmax()
    return scores.amax(1).argmax(), candidate, starts[candidate], ends[candidate]


def best_span_of_backward(cotangents: dict[str, Tensor], kept: Kept, grads: Parameters) -> tuple[Tensor, Tensor]:
    """∂/∂relevance [searcher beam] and ∂/∂inputs_embeds of the losses that `cotangents` name."""
    kept_read, (dretriever, dreader) = kept
    total = cotangents.get("loss", 0)
    drelevance = (total + cotangents.get("retriever_loss", 0)) * dretriever
    dread, dembeds = read_backward((total + cotangents.get("reader_loss", 0)) * dreader, kept_read, grads)
    drelevance[: len(dread)] += dread
    return drelevance, dembeds


class Answers(NamedTuple):
    """Where the answers stand: see `RealmReader.forward`."""

    start_positions: Tensor
    end_positions: Tensor
    has_answers: Tensor


def checked_answers(given: tuple, beam: int, relevance_score: Tensor) -> Answers:
    """The answers of the blocks retrieved, `beam` of them read, from `given` in the fields' order, tensors or lists.

    Raises:
        ValueError: a wrong shape, or what is neither true nor false.
    """
    check_relevance(relevance_score)
    named = zip(Answers._fields, given, strict=True)
    starts, ends, has_answers = (tensor_of(name, values, relevance_score.device) for name, values in named)
    starts, ends = (x[:, None] if x.dim() == 1 else x for x in (starts, ends))
    for name, positions in (("start_positions", starts), ("end_positions", ends)):
        check_integers(name, positions)
        if positions.dim() != 2 or positions.shape[0] < beam or positions.shape != starts.shape:
            raise ValueError(f"{name} has shape {tuple(positions.shape)}: expected [blocks, answers] for both")
    if has_answers.shape != relevance_score.shape:
        shapes = f"{tuple(has_answers.shape)}: expected {tuple(relevance_score.shape)}"
        raise ValueError(f"has_answers has shape {shapes} as relevance_score")
    wrong = has_answers[(has_answers != 0) & (has_answers != 1)]
    if len(wrong):
        raise ValueError(f"has_answers holds {wrong[0].item()}: expected true or false for each block")
    return Answers(starts.long(), ends.long(), has_answers)


def check_blocks(config: RealmConfig, batch: Batch, relevance_score: Tensor, block_mask: Tensor) -> None:
    """Raise the ValueError that names what the blocks read cannot be scored with."""
    beam, tokens = batch.types.shape
    if tokens < config.max_span_width:
        raise ValueError(f"{tokens} tokens are fewer than max_span_width={config.max_span_width}: pad the input")
    if tuple(block_mask.shape) != (beam, tokens):
        raise ValueError(f"block_mask has shape {tuple(block_mask.shape)}: expected {(beam, tokens)} as the input")
    if tuple(relevance_score.shape) != (beam,):
        raise ValueError(f"relevance_score has shape {tuple(relevance_score.shape)}: expected {(beam,)}")
    check_relevance(relevance_score)
    check_mask("block_mask", block_mask)
