"""Open-domain question answering, end to end: embed the question, search the blocks, read the best ones.

This is ORQA (Lee et al. 2019) with REALM's retriever: a question x retrieves the blocks z of largest
f(x, z) = Embed_input(x)ᵀ Embed_doc(z), and the answer is the best-scoring span y of those that are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import kinds
from ..config import RealmConfig
from ..files import checkpoint
from ..files.checkpoint import LoadedKeys
from ..kinds import checked, device_of
from ..model import ops
from ..model.bert import Kept, Run
from ..model.parameters import Parameters, Shapes
from ..model.realm import embed, embed_backward, joint_probability, marginal_probability
from ..model.spans import span_candidates
from ..ranks.distributed import World, world
from ..search.mips import BlockIndex
from ..search.sharded_index import KEY, ShardedBlockIndex
from ..text.questions import listed
from ..text.retriever import RealmRetriever
from ..text.sequences import MODEL_INPUTS, pad_to
from ..text.words import whole_words
from .base import RealmModel, version
from .embedder import RealmEmbedder
from .inputs import Inputs, check_finite, check_integers, check_span_width, checked_batch
from .outputs import RealmForOpenQAOutput, RealmReaderOutput
from .reader import Answers, RealmReader, best_span_of, best_span_of_backward, check_blocks
from .unrecorded import plain, unrecorded

# ORQA's query_seq_len: the wordpieces of a question in training, special tokens included.
MAX_QUESTION_WORDPIECES = 64


@dataclass
class RetrievedBlock:
    """A block that was read: its number, its text, f(x, z) and p(z|x) among the blocks read; and whose it is.

    `document` is the id of its document, in whose text it is characters `document_start` up to `document_end`. Where an
    index does not know its documents, that is the block's number, and the others are None.
    """

    id: int
    text: str
    score: float
    probability: float
    document: str
    title: str | None
    document_start: int | None
    document_end: int | None


@dataclass
class Answer:
    """The best span, as it stands in its block, widened to whole words as ORQA does (`text/words.py`).

    `blocks[block_rank].text[start_char:end_char] == text`. `document_start` up to `document_end` is where it stands in
    its block's document; None where that is not known, or in the title. `score` is S(b, s), f(x, b) included. Of the
    spans of these very wordpieces, wherever they stand in the blocks read, p(y|x) is `probability` as ORQA trains it,
    in one softmax over all spans of all blocks, and `marginal_probability` by REALM's equation 1, Σ_z p(y|z,x) p(z|x).
    """

    question: str
    text: str
    start_char: int
    end_char: int
    document: str
    document_start: int | None
    document_end: int | None
    score: float
    probability: float
    marginal_probability: float
    block_rank: int
    blocks: list[RetrievedBlock]


class SpanScores(NamedTuple):
    """The reader's score of every span of some blocks, and what it read; padded on the right to the longest block."""

    ids: Tensor  # [beam, tokens], [CLS] question [SEP] block [SEP]
    offsets: Tensor  # [beam, tokens, 2], each token's first character and the one after its last
    in_block: Tensor  # bool [beam, tokens], the block's own tokens: where spans may begin and end
    starts: Tensor  # [spans], first token of each span
    ends: Tensor  # [spans], last token of each span
    logits: Tensor  # S_read [beam, spans], the dtype's minimum added to spans outside the block
    attentions: tuple[Tensor, ...]  # where asked for, of each layer, [beam, heads, tokens, tokens]


class RealmForOpenQA(RealmModel):
    """Question in, answer out.

    Args:
        retriever: the evidence blocks as text; needed to read, not to search.
        sharded: the ranks that torchrun started search together, each a slice of the blocks (`sharded_index.py`).
            `from_pretrained` then maps `block_emb` into memory, where it costs what is touched. Every call that
            searches becomes a collective: all ranks make it, each with its own questions, none of them maybe, or are
            in `follow`. In a world of one it changes nothing.

    A script for `torchrun --nproc-per-node 2 script.py`, where each rank answers its share of the questions:

        with distributed.join() as world:
            retriever = RealmRetriever.from_pretrained(folder)
            model = RealmForOpenQA.from_pretrained(folder, retriever=retriever, sharded=True)
            answers = model.answer(world.share(questions))
            everyone = world.gather_objects(answers)  # each rank's, in their order

    and where rank 0 alone asks:

            if world.is_first:
                (answer,) = model.answer([question])
            model.follow()  # until all ranks are here

    `block_emb` [num_block_records, retriever_proj_size] float32 holds Embed_doc of every block.
    """

    own_arguments = ("retriever", "sharded")
    part_classes = {"embedder": RealmEmbedder, "reader": RealmReader}
    own_buffers = ("block_emb",)

    def __init__(
        self,
        config: RealmConfig,
        retriever: RealmRetriever | None = None,
        *,
        sharded: bool = False,
        seed: int | None = None,
        initialize: bool = True,
    ) -> None:
        super().__init__(config, seed=seed, initialize=initialize)
        kinds.check("retriever", retriever, RealmRetriever | None)
        kinds.check("sharded", sharded, bool)
        self.retriever: Any = retriever
        self.sharded = sharded and world().size > 1
        self.embedder = RealmEmbedder(config, seed=seed, initialize=initialize)
        self.reader = RealmReader(config, seed=None if seed is None else seed + 1, initialize=initialize)
        self._index: tuple[Any, BlockIndex | ShardedBlockIndex] | None = None

    @classmethod
    def shapes(cls, config: RealmConfig) -> Shapes:
        return {"block_emb": (config.num_block_records, config.retriever_proj_size)}

    @property
    def parts(self) -> Mapping[str, RealmModel]:
        return {"embedder": self.embedder, "reader": self.reader}

    @property
    def evidence(self) -> RealmRetriever:
        """The retriever. Raises ValueError where the model was given none."""
        if self.retriever is None:
            raise ValueError("this model has no retriever: give retriever=RealmRetriever.from_pretrained(folder)")
        return self.retriever

    @property
    def block_emb(self) -> Tensor:
        return self.p["block_emb"]

    @block_emb.setter
    @checked
    def block_emb(self, blocks: Tensor) -> None:
        width = self.config.retriever_proj_size
        if blocks.dim() != 2 or blocks.shape[1] != width or not len(blocks) or not blocks.is_floating_point():
            raise ValueError(
                f"block_emb has shape {tuple(blocks.shape)} and dtype {blocks.dtype}: give floats [blocks, {width}]"
            )
        self.p["block_emb"] = blocks

    @property
    def device(self) -> torch.device:
        return self.embedder.device  # the block embeddings may stay elsewhere, see `block_embedding_to`

    @classmethod
    def _read_weights(cls, folder: Path, own: dict[str, Any]) -> dict[str, Tensor]:
        return checkpoint.read_state_dict(folder, KEY, world() if own.get("sharded") else World())

    def load_state_dict(self, state_dict: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> LoadedKeys:
        """As RealmModel's, but a sharded model takes `block_emb` as it is, a memory map maybe, in place of a copy."""
        found = state_dict.get(KEY) if self.sharded else None
        if found is None or found.shape != self.block_emb.shape:
            return super().load_state_dict(state_dict, *args, **kwargs)
        loaded = super().load_state_dict({**state_dict, KEY: self.block_emb}, *args, **kwargs)
        self.block_emb = found.to(self.block_emb.dtype)
        return loaded

    def _moved(self, dtype: torch.dtype, device: torch.device) -> Parameters:
        if not self.sharded:
            return super()._moved(dtype, device)
        self.block_emb = self.block_emb.to(dtype)  # the map stays where it is, a slice of it goes to the device
        return self.p

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_index": None}

    @property
    def searcher_beam_size(self) -> int:
        """Blocks searched for: `searcher_beam_size` in training, only those that are read in evaluation."""
        return self.config.searcher_beam_size if self.training else self.config.reader_beam_size

    @checked
    def block_embedding_to(self, device: torch.device | str) -> None:
        """Move the block embeddings alone to `device`: 13 million of them take 6.8 GB."""
        self.block_emb = self.block_emb.to(device_of(device))

    @property
    def index(self) -> BlockIndex | ShardedBlockIndex:
        """The search index over `block_emb`, built anew when they change; by all ranks together, if it is sharded."""
        if self._index is None or self._index[0] != self._indexed():
            blocks = _searchable(self.block_emb)
            index = ShardedBlockIndex(blocks, device=self.device) if self.sharded else BlockIndex(blocks)
            self._index = (self._indexed(), index)
        return self._index[1]

    def _indexed(self) -> tuple:
        """What an index is of: it is out of date when this changes."""
        return version(self.block_emb), self.device if self.sharded else None

    @index.setter
    @checked
    def index(self, index: BlockIndex | ShardedBlockIndex) -> None:
        """Search through `index`, say a compressed one, until `block_emb` changes."""
        if len(index) != len(self.block_emb):
            raise ValueError(f"the index is of {len(index)} blocks, the model has {len(self.block_emb)}: give its own")
        self._index = (self._indexed(), index)

    def follow(self) -> None:
        """Take part in the other ranks' searches until all ranks follow; at once, if the model is not sharded."""
        index = self.index if self.sharded else None
        if isinstance(index, ShardedBlockIndex):
            index.follow()

    @checked
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        answer_ids: list | Tensor | np.ndarray | None = None,
        return_dict: bool | None = None,
    ) -> RealmForOpenQAOutput | tuple:
        """Answer one question or several.

        Args:
            input_ids, attention_mask, token_type_ids: questions, [batch, tokens].
            answer_ids: right answers as wordpiece ids: a list of answers for one question, a list of such lists for
                several. With them the output holds losses.

        Returns:
            For one question as transformers: `reader_output` (a `RealmReaderOutput`) and `predicted_answer_ids`
            [answer tokens]. For several, a tuple of each, in order; `backward()` then differentiates the sum of their
            losses, and `backward(loss=…)` [batch] weighs them.

        Raises:
            ValueError: no retriever; more blocks asked for than there are; inputs of a wrong rank, shape or range.
        """
        self.check_searchable(self.searcher_beam_size)
        question = checked_batch(self.config, Inputs(input_ids, attention_mask, token_type_ids))
        answer_ids = answers_of_each(answer_ids, len(input_ids))
        of_question, config = self.embedder.run_now(len(input_ids)), self.config
        of_readers = [self.reader.run_now(min(config.reader_beam_size, self.searcher_beam_size)) for _ in input_ids]

        def answer(model: RealmForOpenQA, keep: bool) -> tuple[RealmForOpenQAOutput, Kept]:
            # x: [batch, proj]
            (x, _), kept_x = embed(model.embedder.p, model.config, question, of_question._replace(keep=keep))
            _, block_ids = model.search(x, model.searcher_beam_size)
            found, kept_readers = [], []
            for i, run in enumerate(of_readers):
                answers = None if answer_ids is None else answer_ids[i]
                run = run._replace(keep=keep)
                *read, kept = model._read(input_ids[i : i + 1], x[i], block_ids[i], answers, run)
                found.append(read)
                kept_readers.append(kept)
            reader_outputs, predicted = zip(*found, strict=True)
            if len(found) == 1:
                output = RealmForOpenQAOutput(reader_outputs[0], predicted[0])
            else:
                output = RealmForOpenQAOutput(reader_outputs, predicted)
            return output, (kept_x, kept_readers, block_ids)

        losses = {} if answer_ids is None else {"loss": (len(input_ids),) if len(input_ids) > 1 else ()}
        return self._called(answer, losses, return_dict)

    def _backward(self, kept: Kept, cotangents: dict[str, Tensor]) -> dict[str, Tensor]:
        """Through the reader, and through f(x, z) into the questions' embeddings; the blocks' embeddings are frozen.

        Without a cotangent the losses of several questions are differentiated as their sum; `loss=` [batch] weighs
        them otherwise. Every question's reading is kept until then.
        """
        kept_x, kept_readers, block_ids = kept
        drelevance, dx = [], []
        for kept_reader, ids, dloss in zip(kept_readers, block_ids, cotangents["loss"].reshape(-1), strict=True):
            drelevance.append(best_span_of_backward({"loss": dloss}, kept_reader, self.reader.own_grads)[0])
            dx.append(drelevance[-1] @ self.block_emb[ids].to(self.device))  # [searcher beam] @ [searcher beam, proj]
        embed_backward(torch.stack(dx), kept_x, self.embedder.own_grads)
        return {"relevance_score": torch.stack(drelevance).view(*cotangents["loss"].shape, -1)}

    def _read(
        self, question_ids: Tensor, x: Tensor, block_ids: Tensor, answer_ids: list[list[int]] | None, run: Run
    ) -> tuple[RealmReaderOutput, Tensor, Kept]:
        """Read the blocks `block_ids` [searcher beam] for one question [1, tokens], embedded as `x` [proj]."""
        device, beam = self.reader.device, self.config.reader_beam_size
        has_answers, starts, ends, inputs = self.evidence(
            block_ids.cpu(), question_ids, answer_ids, max_length=self.config.reader_seq_len
        )
        names = ("input_ids", "attention_mask", "token_type_ids")
        batch = checked_batch(self.config, Inputs(*(inputs[name][:beam].to(device) for name in names)))
        answers = None
        if has_answers is not None:
            starts, ends = (torch.tensor(places, dtype=torch.long, device=device) for places in (starts, ends))
            answers = Answers(starts, ends, torch.tensor(has_answers, dtype=torch.bool, device=device))
        # f(x, z) once more, from the question's embedding of this very forward.
        relevance = self.block_emb[block_ids].to(device) @ x.to(device)
        in_block = block_mask(inputs).to(device)
        check_blocks(self.config, batch, relevance[:beam], in_block[:beam])
        output: Any
        output, kept = best_span_of(self.reader.p, self.config, batch, in_block, relevance, answers, run)
        for name in output.keys() & {"loss", "retriever_loss", "reader_loss"}:
            output[name] = unrecorded(output[name])
        read_ids = inputs.input_ids[output.block_idx.cpu()]
        return output, read_ids[output.start_pos.item() : output.end_pos.item() + 1].to(device), kept

    def retrieve(self, questions: str | list[str], k: int) -> tuple[Tensor, Tensor]:
        """Find the `k` most relevant blocks of each question; one alone is a list of one.

        Returns:
            f(x, z) [questions, k] float32, descending, and block numbers [questions, k] int64.

        Raises:
            ValueError: an empty or overlong question; k below 1 or above the number of blocks.
        """
        self.check_searchable(k)
        return self.search(self._embed_questions(listed(questions)), k)

    def answer(self, questions: str | list[str], num_blocks: int | None = None) -> list[Answer]:
        """Answer questions given as text.

        Args:
            questions: one alone is a list of one, and so are its answers. As long as the embedder reads; of a question
                and a block that are too long together the reader reads the longer one cut, as transformers has it.
            num_blocks: blocks to read for each; None reads `config.reader_beam_size`.

        Raises:
            ValueError: an empty or overlong question; more blocks asked for than there are.
        """
        questions, num_blocks = listed(questions), self.config.reader_beam_size if num_blocks is None else num_blocks
        scores, block_ids = self.retrieve(questions, num_blocks)
        return [self.answer_from(*found) for found in zip(questions, scores, block_ids, strict=True)]

    @checked
    def answer_from(self, question: str, scores: Tensor, block_ids: Tensor) -> Answer:
        """Answer a question from given blocks: f(x, z) [blocks] float32 and their numbers [blocks] int64."""
        check_integers("block_ids", block_ids)
        check_finite("scores", scores)
        if block_ids.dim() != 1 or not len(block_ids) or scores.shape != block_ids.shape:
            both = f"{tuple(scores.shape)} and {tuple(block_ids.shape)}"
            raise ValueError(f"scores and block_ids have shapes {both}: expected [blocks] for both, one at least")
        texts = [self.evidence.text(i) for i in block_ids.tolist()]
        return self.best_answer(question, scores, block_ids, texts, self.score_spans(question, texts, scores))

    def best_answer(
        self, question: str, scores: Tensor, block_ids: Tensor, texts: list[str], read: SpanScores
    ) -> Answer:
        """The answer that `answer_from` gives, of what `score_spans` read in the blocks' texts."""
        retriever, numbers = self.evidence, block_ids.tolist()
        ids, offsets, _, starts, ends, logits, _ = read
        best = int(logits.argmax())
        block, candidate = divmod(best, logits.shape[1])
        start, end = int(starts[candidate]), int(ends[candidate])
        same = spans_equal_to(ids, starts, ends, ids[block, start : end + 1])  # [beam, spans]
        first_char, last_char = whole_words(texts[block], int(offsets[block, start, 0]), int(offsets[block, end, 1]))
        blocks = zip(numbers, texts, scores.tolist(), ops.softmax(scores).tolist(), strict=True)
        document_start, document_end = retriever.place(numbers[block], first_char, last_char)
        return Answer(
            question=question,
            text=texts[block][first_char:last_char],
            start_char=first_char,
            end_char=last_char,
            document=retriever.document(numbers[block]),
            document_start=document_start,
            document_end=document_end,
            score=float(logits[block, candidate]),
            probability=float(joint_probability(logits, same)),
            marginal_probability=float(marginal_probability(logits, same, scores.to(logits))),
            block_rank=block,
            blocks=[
                RetrievedBlock(i, text, score, prior, retriever.document(i), retriever.title(i), *retriever.place(i))
                for i, text, score, prior in blocks
            ],
        )

    @checked
    def score_spans(
        self, question: str, texts: str | list[str], scores: Tensor, *, output_attentions: bool = False
    ) -> SpanScores:
        """Read blocks, given as text with their f(x, z) [blocks] float32, for one question.

        Raises:
            ValueError: every block is empty.
        """
        config, device, texts = self.config, self.reader.device, listed(texts)
        check_span_width(config)
        inputs = self.evidence.tokenizer(
            [question] * len(texts), texts, padding=True, truncation=True, max_length=config.reader_seq_len,
            return_special_tokens_mask=True, return_offsets_mapping=True, return_tensors="pt", **MODEL_INPUTS,
        )  # fmt: skip
        ids = pad_to(inputs.input_ids, config.max_span_width, config.pad_token_id).to(device)
        mask, types, in_block = (
            pad_to(x, config.max_span_width, 0).to(device)
            for x in (inputs.attention_mask, inputs.token_type_ids, block_mask(inputs))
        )
        if not in_block.any():
            raise ValueError(f"every block retrieved for {question!r} is empty: index documents that hold text")
        run = Run(output_attentions=output_attentions)
        logits, encoded = self.reader.span_logits(Inputs(ids, mask, types), scores.to(device), in_block, run)
        starts, ends = span_candidates(ids.shape[1], config.max_span_width, device)
        return SpanScores(ids, inputs.offset_mapping, in_block, starts, ends, logits, encoded.attentions or ())

    def fault_of(self, question: str) -> str:
        """Why a question cannot be answered, "" where it can be."""
        length = len(self.evidence.tokenizer(question).input_ids)
        if length <= 2:  # [CLS] and [SEP]
            return "the question is empty: ask something"
        limit = self.config.max_position_embeddings
        start = f"{question[:60]!r} …"
        return f"the question has {length} wordpieces, the limit is {limit}: shorten {start}" if length > limit else ""

    def check_questions(self, questions: str | list[str]) -> None:
        """Raise ValueError for a question that is empty or overlong."""
        for question in listed(questions):
            if fault := self.fault_of(question):
                raise ValueError(fault)

    def _embed_questions(self, questions: list[str]) -> Tensor:
        self.check_questions(questions)
        if not questions:
            return torch.empty(0, self.config.retriever_proj_size, dtype=self.dtype, device=self.device)
        inputs = self.evidence.tokenizer(questions, padding=True, return_tensors="pt", **MODEL_INPUTS).to(self.device)
        return plain(self.embedder(**inputs, return_dict=True).projected_score)

    @checked
    def search(self, projections: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """f(x, z) and the numbers of the `k` best blocks [questions, k], from embedded questions [questions, proj]."""
        scores, ids = self.index.search(_searchable(projections.to(self.index.device)), k)
        return scores.to(self.block_emb.device), ids.to(self.block_emb.device)

    def check_searchable(self, k: int) -> None:
        """ValueError if there is no retriever, or there are not `k` blocks."""
        kinds.check("blocks to search for", k, int)
        if self.evidence and not 1 <= k <= self.block_emb.shape[0]:  # `evidence` raises
            raise ValueError(
                f"{k} blocks were asked for, and there are {self.block_emb.shape[0]}: ask for 1 to "
                f"{self.block_emb.shape[0]} (-k, num_blocks or reader_beam_size; in training searcher_beam_size)"
            )


def answers_of_each(answer_ids: list | Tensor | np.ndarray | None, questions: int) -> list | None:
    """The answers of each question, [questions] lists of lists of ids; of one question they are given alone."""
    if answer_ids is None:
        return None
    given = kinds.as_lists("answer_ids", [answer_ids] if questions == 1 else answer_ids)
    if len(given) != questions:
        raise ValueError(f"answer_ids holds answers of {len(given)} questions: {questions} were given")
    return given


def block_mask(inputs: Any) -> Tensor:
    """The tokens of the evidence block: second segment, no special tokens; bool [blocks, tokens]."""
    return ~inputs.special_tokens_mask.bool() & inputs.token_type_ids.bool()


def _searchable(x: Tensor) -> Tensor:
    """The search reads float32 and smaller; a float64 model searches rounded embeddings and scores with its own."""
    return x.float() if x.dtype == torch.float64 else x


def spans_equal_to(ids: Tensor, starts: Tensor, ends: Tensor, answer: Tensor) -> Tensor:
    """Which spans are the wordpieces `answer`; ids [beam, tokens], starts and ends [spans] -> bool [beam, spans]."""
    same = ends - starts + 1 == len(answer)
    equal = same.expand(ids.shape[0], -1).clone()
    places = starts[same]
    equal[:, same] = torch.stack([ids[:, places + i] == wordpiece for i, wordpiece in enumerate(answer)]).all(0)
    return equal
