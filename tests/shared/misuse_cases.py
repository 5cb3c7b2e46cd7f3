"""What drawn misuse is tried on: the package's public classes and functions, each with arguments that it takes."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import eight_capitals
import numpy as np
import torch
from misuse import Case, all_finite, as_plain_call, same

import realm_min
from realm_min import RealmConfig, RealmEmbedder, RealmForOpenQA, RealmKnowledgeAugEncoder, RealmReader, RealmScorer
from realm_min.app import indexing, ready_folder
from realm_min.files.packed import load_packed
from realm_min.interface.base import RealmModel
from realm_min.jobs import embedding, evaluation, loop, run_checkpoints, runs, warm_start
from realm_min.jobs.settings import Finetune, Ict, Mlm, Pretrain, TrainingRun
from realm_min.learn.optimizer import AdamW
from realm_min.model.spans import SpanInputs, best_span, span_logits
from realm_min.search.mips import BlockIndex, mips_topk
from realm_min.search.sharded_index import ShardedBlockIndex
from realm_min.text import corpus, documents, questions
from realm_min.text.batch_encoding import BatchEncoding

SIZES = dict(
    vocab_size=31, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12,
    max_position_embeddings=16, retriever_proj_size=4, num_candidates=2, span_hidden_size=4, max_span_width=2,
    reader_beam_size=2, searcher_beam_size=3, num_block_records=6, hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0, initializer_range=0.3,
)  # fmt: skip
CLASSES = (RealmEmbedder, RealmScorer, RealmKnowledgeAugEncoder, RealmReader, RealmForOpenQA)


def ids(*shape: int) -> torch.Tensor:
    return torch.arange(int(np.prod(shape))).reshape(shape) % 29 + 2


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.int64)


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def all_cases(folder: Path) -> list[Case]:
    """Every case; `folder` is empty, and is where they write."""
    fresh = (folder / f"new-{i}" for i in itertools.count())
    groups: tuple[Iterator[Case], ...] = (
        of_configuration(folder, fresh), of_models(folder, fresh), of_answers(folder), of_tokenizers(folder, fresh),
        of_retriever(folder, fresh), of_search(folder, fresh), of_measures(), of_text(folder), of_jobs(folder, fresh),
    )  # fmt: skip
    return [case for group in groups for case in group]


# ---- configuration


def of_configuration(folder: Path, fresh: Iterator[Path]) -> Iterator[Case]:
    saved = folder / "configuration"
    RealmConfig(**SIZES).save_pretrained(saved)
    plain = lambda x: x.item() if isinstance(x, (np.generic, np.ndarray)) and x.shape == () else x  # noqa: E731
    kept = lambda config, given: all(same(getattr(config, name), plain(x)) for name, x in given.items())  # noqa: E731
    every = {**RealmConfig().to_dict()}
    every.pop("model_type")
    yield Case("RealmConfig", RealmConfig, lambda: dict(every), kept, share=4)
    yield Case("RealmConfig.from_dict", RealmConfig.from_dict, lambda: {"config_dict": dict(SIZES)})
    yield Case(
        "RealmConfig.from_pretrained",
        RealmConfig.from_pretrained,
        lambda: {"pretrained_model_name_or_path": saved, "hidden_size": 16},
    )
    yield Case(
        "RealmConfig.save_pretrained",
        RealmConfig(**SIZES).save_pretrained,
        lambda: {"save_directory": next(fresh)},
    )


# ---- the five models


def model_of(cls: type[RealmModel], training: bool = False) -> Any:
    model = cls(RealmConfig(**SIZES), seed=1)
    if cls is RealmForOpenQA:
        model.block_emb.copy_(numbers(6, 4))
    return model.train(training)


def forward_arguments(cls: type[RealmModel]) -> dict[str, Any]:
    pair = {"input_ids": ids(2, 5), "attention_mask": ones(2, 5), "token_type_ids": 0 * ones(2, 5)}
    positions = {"position_ids": torch.arange(5)[None], "head_mask": torch.ones(2)}
    options = {"output_attentions": True, "output_hidden_states": False, "return_dict": True}
    if cls is RealmEmbedder:
        return {**pair, **positions, "inputs_embeds": None, **options}
    if cls is RealmScorer:
        candidates = {f"candidate_{name}": value[:, None].repeat(1, 2, 1) for name, value in pair.items()}
        return {**pair, **candidates, "position_ids": torch.arange(5)[None], "head_mask": None, **options}
    if cls is RealmKnowledgeAugEncoder:
        wide = {name: value[:, None].repeat(1, 2, 1) for name, value in pair.items()}
        labels = torch.tensor([[-100, 4, -100, 5, -100]] * 2)
        extra = {
            "relevance_score": numbers(2, 2),
            "labels": labels,
            "mlm_mask": (labels > 0).long(),
            "whole_span": True,
        }
        return {**wide, **extra, **options}
    answers = {"start_positions": ones(2, 1), "end_positions": 2 * ones(2, 1), "has_answers": ones(2).bool()}
    mask = torch.tensor([[False, True, True, True, False]] * 2)
    return {**pair, **positions, "relevance_score": numbers(2), "block_mask": mask, **answers, **options}


def of_models(folder: Path, fresh: Iterator[Path]) -> Iterator[Case]:
    for cls in CLASSES:
        name = cls.__name__
        saved = folder / name
        model_of(cls).save_pretrained(saved)
        yield Case(name, cls, lambda: {"config": RealmConfig(**SIZES), "seed": 3, "initialize": True})
        yield Case(
            f"{name}.from_pretrained", cls.from_pretrained,
            lambda saved=saved: {
                "pretrained_model_name_or_path": saved, "config": None, "torch_dtype": "float32",
                "hidden_dropout_prob": 0.5,
            },
            lambda model, given: all_finite(model.state_dict()),
        )  # fmt: skip
        model = model_of(cls)
        yield Case(
            f"{name}.save_pretrained", model.save_pretrained,
            lambda: {"save_directory": next(fresh), "safe_serialization": True, "max_shard_size": "1KB"},
            state=model.state_dict,
        )  # fmt: skip
        yield load_case(name, cls)
        yield Case(f"{name}.to", lambda target, cls=cls: model_of(cls).to(target), lambda: {"target": torch.float64})
        yield Case(f"{name}.train", lambda mode, cls=cls: model_of(cls).train(mode), lambda: {"mode": True})
        if cls is not RealmForOpenQA:
            for training in (False, True):
                model = model_of(cls, training)
                arguments = lambda cls=cls: forward_arguments(cls)  # noqa: E731
                yield Case(f"{name}()", model, arguments, as_plain_call(model), weights_of(model), share=5)
                yield Case(f"{name}.backward", backward(model, cls), lambda cls=cls: cotangents(cls), share=2)
    yield Case(
        "RealmScorer", RealmScorer, lambda: {"config": RealmConfig(**SIZES), "query_embedder": model_of(RealmEmbedder)}
    )
    embedder = model_of(RealmEmbedder)
    embeds = lambda: {"inputs_embeds": numbers(2, 5, 8), "attention_mask": ones(2, 5)}  # noqa: E731
    yield Case("RealmEmbedder(inputs_embeds)", embedder, embeds, as_plain_call(embedder), share=2)
    orders = lambda: {"order": ["call", "backward", "eval", "backward", "train", "call", "load", "backward", "zero"]}  # noqa: E731
    yield Case("order of calls", in_order, orders, share=2)


def weights_of(model: RealmModel) -> Callable[[], Any]:
    return lambda: {key: tensor.clone() for key, tensor in model.state_dict().items()}


def load_case(name: str, cls: type[RealmModel]) -> Case:
    """All or nothing: what a refused state dict leaves is what was there."""
    weights = model_of(cls).state_dict()
    other = {key: tensor + 1 for key, tensor in weights.items()}
    other |= {alias: other[key] for alias, key in model_of(cls).aliases().items()}

    def load(state_dict: Any) -> dict[str, torch.Tensor]:
        model = model_of(cls)
        try:
            model.load_state_dict(state_dict)
        except Exception:
            assert all(torch.equal(tensor, weights[key]) for key, tensor in model.state_dict().items()), "half loaded"
            assert len({id(part) for part in model.parts.values()}) == len(model_of(cls).parts) or cls is RealmScorer
            raise
        return model.state_dict()

    right = lambda found, given: all_finite(found) and all(  # noqa: E731
        torch.allclose(found[key].double(), tensor.double(), rtol=1e-2)
        for key, tensor in given["state_dict"].items() if key in found
    )  # fmt: skip
    return Case(f"{name}.load_state_dict", load, lambda: {"state_dict": dict(other)}, right, share=2)


def cotangents(cls: type[RealmModel]) -> dict[str, Any]:
    if cls is RealmEmbedder:
        return {"projected_score": numbers(2, 4)}
    if cls is RealmScorer:
        return {"relevance_score": numbers(2, 2), "candidate_score": numbers(2, 2, 4)}
    if cls is RealmKnowledgeAugEncoder:
        return {"logits": numbers(4, 5, 31), "loss": torch.tensor(1.0)}
    return {"loss": torch.tensor(1.0), "reader_loss": torch.tensor(0.5)}


def backward(model: RealmModel, cls: type[RealmModel]) -> Callable[..., Any]:
    def call(output: Any = None, **given: Any) -> Any:
        model.zero_grads()
        found = model(**forward_arguments(cls))
        return model.backward(found if output is None else output, **given), dict(model.grads)

    return call


def in_order(order: Any) -> None:
    """A model's methods in any order."""
    model = model_of(RealmEmbedder)
    for step in [step for step in order if isinstance(step, str)] if isinstance(order, list) else ["backward"]:
        if step == "call":
            model(ids(2, 5))
        elif step == "backward":
            model.backward(projected_score=numbers(2, 4))
        elif step in ("eval", "train"):
            getattr(model, step)()
        elif step == "load":
            model.load_state_dict(model_of(RealmEmbedder).state_dict())
        else:
            model.zero_grads()


# ---- answering


def of_answers(folder: Path) -> Iterator[Case]:
    model = eight_capitals.open_qa()
    saved = folder / "open-qa"
    model.save_pretrained(saved)
    model.retriever.save_pretrained(saved)
    tokenizer, state = model.retriever.tokenizer, weights_of(model)
    question = "what is the capital of norway?"
    read = tokenizer([question], return_tensors="pt")
    more = {"answer_ids": [[20, 21], [7]], "return_dict": True}
    called = lambda: {name: x.clone() for name, x in read.items()} | more  # noqa: E731
    yield Case("RealmForOpenQA()", model, called, as_plain_call(model), state, share=5)
    answered = lambda found, given: all_finite([(each.probability, [b.score for b in each.blocks]) for each in found])  # noqa: E731
    asked = lambda: {"questions": [question, "who is it?"], "num_blocks": 3}  # noqa: E731
    yield Case("RealmForOpenQA.answer", model.answer, asked, answered, share=3)
    yield Case(
        "RealmForOpenQA.retrieve", model.retrieve, lambda: {"questions": [question], "k": 3}, all_finite, share=2
    )
    yield Case("RealmForOpenQA.search", model.search, lambda: {"projections": numbers(2, 8), "k": 3}, all_finite)
    given = lambda: {"question": question, "scores": numbers(3), "block_ids": torch.tensor([3, 1, 2])}  # noqa: E731
    yield Case("RealmForOpenQA.answer_from", model.answer_from, given, lambda found, _: all_finite(found), share=2)
    texts = lambda: {"question": question, "texts": ["Oslo is in Norway.", "Lima"], "scores": numbers(2)}  # noqa: E731
    yield Case("RealmForOpenQA.score_spans", model.score_spans, texts, share=2)
    yield Case("RealmForOpenQA.check_questions", model.check_questions, lambda: {"questions": [question]})
    moved = lambda device: eight_capitals.open_qa().block_embedding_to(device)  # noqa: E731
    yield Case("RealmForOpenQA.block_embedding_to", moved, lambda: {"device": "cpu"})
    blocks = model.block_emb.clone()
    yield Case("RealmForOpenQA.block_emb", with_blocks(model), lambda: {"blocks": blocks.clone()}, all_finite)
    yield Case("RealmForOpenQA.index", with_index(model), lambda: {"index": BlockIndex(blocks)}, all_finite)
    yield Case(
        "RealmForOpenQA(retriever)", lambda **given: RealmForOpenQA(**given).answer([question]),
        lambda: {"config": model.config, "retriever": model.retriever, "sharded": False},
    )  # fmt: skip
    yield Case(
        "RealmForOpenQA.from_pretrained", lambda **given: RealmForOpenQA.from_pretrained(**given).answer([question]),
        lambda: {"pretrained_model_name_or_path": saved, "retriever": model.retriever, "reader_beam_size": 2},
    )  # fmt: skip
    spans = {"inputs": realm_min.interface.reader.Inputs(**forward_inputs()), "relevance_score": numbers(2)}
    reader = model_of(RealmReader)
    yield Case(
        "RealmReader.span_logits", reader.span_logits,
        lambda: {**spans, "block_mask": torch.tensor([[False, True, True, True, False]] * 2)},
    )  # fmt: skip


def forward_inputs() -> dict[str, torch.Tensor]:
    return {"input_ids": ids(2, 5), "attention_mask": ones(2, 5), "token_type_ids": 0 * ones(2, 5)}


def with_blocks(model: RealmForOpenQA) -> Callable[..., Any]:
    """What is searched after `block_emb` was set."""

    def search(blocks: Any) -> Any:
        before = model.block_emb
        try:
            model.block_emb = blocks
            return model.search(numbers(2, 8), 3)
        finally:
            model.block_emb = before

    return search


def with_index(model: RealmForOpenQA) -> Callable[..., Any]:
    def search(index: Any) -> Any:
        before = model.index
        try:
            model.index = index
            return model.search(numbers(2, 8), 3)
        finally:
            model.index = before

    return search


# ---- tokenizers

TEXTS = ["The capital of Norway is Oslo.", "what is it?", "Ünïcödé 東京 [MASK]"]


def of_tokenizers(folder: Path, fresh: Iterator[Path]) -> Iterator[Case]:
    fast = eight_capitals.tokenizer()
    saved = folder / "tokenizer"
    fast.save_pretrained(saved)
    slow = realm_min.RealmTokenizer.from_pretrained(saved)
    yield Case(
        "AutoTokenizer.from_pretrained", realm_min.AutoTokenizer.from_pretrained,
        lambda: {"pretrained_model_name_or_path": saved, "use_fast": False, "do_lower_case": True},
    )  # fmt: skip
    for tokenizer in (slow, fast):
        yield from of_tokenizer(tokenizer, saved, fresh)
    encoded = lambda device="cpu", **given: BatchEncoding(**given).to(device)  # noqa: E731
    rows = {"input_ids": [[1, 2], [3, 4]], "attention_mask": [[1, 1], [1, 0]]}
    yield Case("BatchEncoding", encoded, lambda: {"data": dict(rows), "tensor_type": "pt", "device": "cpu"})
    yield Case("BatchEncoding.tokens", fast(TEXTS).tokens, lambda: {"batch_index": 1})
    yield Case("BatchEncoding.sequence_ids", fast(TEXTS).sequence_ids, lambda: {"batch_index": 1})


def of_tokenizer(tokenizer: Any, saved: Path, fresh: Iterator[Path]) -> Iterator[Case]:
    cls, name = type(tokenizer), type(tokenizer).__name__
    own = {
        "do_lower_case": True,
        "unk_token": "[UNK]",
        "strip_accents": None,
        "model_max_length": 64,
        "mask_token": "[MASK]",
    }
    more = {"additional_special_tokens": ["[X]"], "padding_side": "left", "truncation_side": "right"}
    built = lambda **given: cls(**given)(TEXTS[0])  # noqa: E731
    yield Case(name, built, lambda: {"vocab_file": saved / "vocab.txt", **own, **more}, share=2)
    read = lambda: {"pretrained_model_name_or_path": saved, "do_lower_case": False}  # noqa: E731
    yield Case(f"{name}.from_pretrained", cls.from_pretrained, read)
    options = {
        "add_special_tokens": True, "padding": True, "truncation": True, "max_length": 12, "return_tensors": "pt",
        "return_token_type_ids": True, "return_attention_mask": True, "return_special_tokens_mask": True,
        "return_offsets_mapping": True,
    }  # fmt: skip
    yield Case(f"{name}()", tokenizer, lambda: {"text": list(TEXTS), "text_pair": TEXTS[::-1], **options}, share=6)
    yield Case(
        f"{name}() of one", tokenizer, lambda: {"text": TEXTS[0], "padding": "max_length", "max_length": 20}, share=2
    )
    yield Case(f"{name}.tokenize", tokenizer.tokenize, lambda: {"text": TEXTS[0]})
    yield Case(f"{name}.encode", tokenizer.encode, lambda: {"text": TEXTS[0], "text_pair": TEXTS[1], "max_length": 9})
    decoded = {"skip_special_tokens": True, "clean_up_tokenization_spaces": True}
    yield Case(f"{name}.decode", tokenizer.decode, lambda: {"token_ids": [2, 7, 9, 3], **decoded}, share=2)
    yield Case(
        f"{name}.batch_decode", tokenizer.batch_decode, lambda: {"sequences": [[2, 7, 9, 3], [5]], **decoded}, share=2
    )
    yield Case(f"{name}.convert_tokens_to_ids", tokenizer.convert_tokens_to_ids, lambda: {"tokens": ["[CLS]", "is"]})
    yield Case(
        f"{name}.convert_ids_to_tokens",
        tokenizer.convert_ids_to_tokens,
        lambda: {"ids": [2, 7], "skip_special_tokens": True},
        share=2,
    )
    yield Case(
        f"{name}.convert_tokens_to_string", tokenizer.convert_tokens_to_string, lambda: {"tokens": ["os", "##lo"]}
    )
    two = lambda: {"token_ids_0": [7, 8], "token_ids_1": [9]}  # noqa: E731
    yield Case(f"{name}.build_inputs", tokenizer.build_inputs_with_special_tokens, two)
    yield Case(f"{name}.create_token_type_ids", tokenizer.create_token_type_ids_from_sequences, two)
    yield Case(
        f"{name}.get_special_tokens_mask",
        tokenizer.get_special_tokens_mask,
        lambda: {**two(), "already_has_special_tokens": False},
    )
    yield Case(f"{name}.num_special_tokens_to_add", tokenizer.num_special_tokens_to_add, lambda: {"pair": True})
    candidates = [["a", "b"], ["c", "the capital"]]
    yield Case(
        f"{name}.batch_encode_candidates", tokenizer.batch_encode_candidates,
        lambda: {"text": candidates, "text_pair": candidates, "max_length": 9, "return_tensors": "pt"}, share=2,
    )  # fmt: skip
    yield Case(f"{name}.save_pretrained", tokenizer.save_pretrained, lambda: {"save_directory": next(fresh)})
    yield Case(
        f"{name}.save_vocabulary", tokenizer.save_vocabulary, lambda: {"save_directory": saved, "filename_prefix": "x"}
    )


# ---- retriever


def of_retriever(folder: Path, fresh: Iterator[Path]) -> Iterator[Case]:
    tokenizer = eight_capitals.tokenizer()
    records = [corpus.record(block) for block in eight_capitals.BLOCKS]
    retriever = realm_min.RealmRetriever(records, tokenizer)
    saved = folder / "retriever"
    retriever.save_pretrained(saved)
    question = tokenizer(["what is the capital?"], return_tensors="pt").input_ids
    given = {"retrieved_block_ids": torch.tensor([3, 1, 3]), "answer_ids": [[20], [7, 8]], "max_length": 40}
    called = lambda: {**given, "question_input_ids": question.clone(), "return_tensors": "pt"}  # noqa: E731
    yield Case("RealmRetriever()", retriever, called, share=4)
    yield Case(
        "RealmRetriever", lambda **given: realm_min.RealmRetriever(**given)([0], question, None),
        lambda: {"block_records": list(records), "tokenizer": tokenizer},
    )  # fmt: skip
    yield Case("RealmRetriever.text", retriever.text, lambda: {"number": 3})
    yield Case("RealmRetriever.title", retriever.title, lambda: {"number": 3})
    yield Case("RealmRetriever.document", retriever.document, lambda: {"number": 3})
    *_, inputs = retriever([0, 1], question, None)
    yield Case(
        "RealmRetriever.block_has_answer", retriever.block_has_answer,
        lambda: {"concat_inputs": inputs, "answer_ids": [[20], [7, 8]]},
    )  # fmt: skip
    yield Case(
        "RealmRetriever.from_pretrained",
        realm_min.RealmRetriever.from_pretrained,
        lambda: {"pretrained_model_name_or_path": saved},
    )
    yield Case("RealmRetriever.save_pretrained", retriever.save_pretrained, lambda: {"save_directory": next(fresh)})


# ---- search


def best_of_all(found: Any, given: dict[str, Any]) -> bool:
    """`mips_topk`, without a bound: all scores in float64."""
    (scores, numbers_), blocks = found, given["blocks"].double()
    exact = given["queries"].double() @ blocks.T
    best = exact.topk(int(given["k"])).values
    picked = exact.gather(1, numbers_)
    # A score is the float32 nearest to the product, which may be infinite.
    return torch.allclose(picked, best, rtol=1e-6) and torch.allclose(scores, best.float(), rtol=1e-6)


def of_search(folder: Path, fresh: Iterator[Path]) -> Iterator[Case]:
    blocks, queries = numbers(40, 4), numbers(3, 4)
    both = lambda: {"queries": queries.clone(), "blocks": blocks.clone(), "k": 5}  # noqa: E731
    yield Case("mips_topk", mips_topk, both, best_of_all, share=4)
    index = BlockIndex(blocks, "int8")
    searched = lambda found, given: best_of_all(found, {**given, "blocks": blocks})  # noqa: E731
    yield Case("BlockIndex.search", index.search, lambda: {"queries": queries.clone(), "k": 5}, searched, share=2)
    made = {"compression": "int8", "first": 0, "scan": "codes"}
    built = lambda **given: BlockIndex(**given).search(queries, 2)  # noqa: E731
    found = lambda value, given: best_of_all(value, {"queries": queries, "blocks": given["blocks"], "k": 2})  # noqa: E731
    yield Case("BlockIndex", built, lambda: {"blocks": blocks.clone(), **made}, found, share=3)
    yield Case(
        "BlockIndex.rows", index.rows, lambda: {"ids": torch.tensor([3, 1])}, lambda rows, _: all_finite(rows), share=2
    )
    yield Case("BlockIndex.to", index.to, lambda: {"device": "cpu"})
    yield Case("BlockIndex.save", index.save, lambda: {"path": next(fresh)})
    path = folder / "index.safetensors"
    index.save(path)
    yield Case("BlockIndex.load", BlockIndex.load, lambda: {"path": path, "device": "cpu"})
    sharded = ShardedBlockIndex(blocks)
    yield Case(
        "ShardedBlockIndex.search",
        sharded.search,
        lambda: {"queries": queries.clone(), "k": 5, "same": True},
        searched,
        share=2,
    )
    yield Case("ShardedBlockIndex.rows", sharded.rows, lambda: {"ids": torch.tensor([3, 1])})
    of_ranks = {"compression": None, "total": 40, "device": "cpu"}
    built_on_ranks = lambda **given: ShardedBlockIndex(**given).search(queries, 2)  # noqa: E731
    yield Case("ShardedBlockIndex", built_on_ranks, lambda: {"blocks": blocks.clone(), **of_ranks}, found, share=2)
    array = folder / "blocks.npy"
    np.save(array, blocks.numpy())
    yield Case(
        "ShardedBlockIndex.load", ShardedBlockIndex.load, lambda: {"path": array, "compression": None, "device": None}
    )
    names = SpanInputs._fields
    values = (numbers(2, 5, 4), numbers(2, 5, 4), numbers(4), numbers(4), numbers(4), 0.1, 2, 1e-3)
    good = lambda: dict(zip(names, (*values, torch.ones(2, 5).bool(), numbers(2)), strict=True))  # noqa: E731
    for function in (span_logits, best_span):
        yield Case(function.__name__, lambda function=function, **given: function(SpanInputs(**given)), good, share=2)


# ---- measures


def of_measures() -> Iterator[Case]:
    tokenize = eight_capitals.tokenizer().tokenize
    answers = lambda: {"prediction": "Oslo", "answers": ["oslo", "the city"]}  # noqa: E731
    yield Case("token_f1", evaluation.token_f1, answers)
    yield Case("official_exact_match", evaluation.official_exact_match, lambda: {**answers(), "regex": True})
    yield Case("exact_match", evaluation.exact_match, lambda: {**answers(), "tokenize": tokenize})
    yield Case(
        "has_answer", evaluation.has_answer, lambda: {"block": "Oslo is it", "answers": ["oslo"], "regex": False}
    )
    yield Case("normalize_answer", evaluation.normalize_answer, lambda: {"text": "The Oslo"})
    yield Case("top_k_match", evaluation.top_k_match, lambda: {"hits": [False, True], "ks": [1, 2]})
    yield Case("means", evaluation.means, lambda: {"results": [{"f1": 1.0}, {"f1": None}]})
    model = eight_capitals.open_qa()
    asked = [questions.Question("what is the capital of norway?", ["Oslo"])]
    measured = lambda **given: list(evaluation.evaluate(model, **given))  # noqa: E731
    yield Case(
        "evaluate", measured, lambda: {"questions": list(asked), "regex": False, "ks": [1, 2], "batch_size": 2}, share=2
    )


# ---- texts


def of_text(folder: Path) -> Iterator[Case]:
    path = folder / "corpus.jsonl"
    path.write_text('{"title": "a", "text": "b c."}\n', encoding="utf-8")
    asked = folder / "questions.jsonl"
    asked.write_text('{"question": "a?", "answer": ["b"]}\n', encoding="utf-8")
    tokenizer = eight_capitals.tokenizer()
    yield Case(
        "read_documents", lambda corpus_: list(documents.read_documents(corpus_)), lambda: {"corpus_": str(path)}
    )
    yield Case("read_questions", lambda path: list(questions.read_questions(path)), lambda: {"path": asked})
    yield Case("read_training_questions", questions.read_training_questions, lambda: {"path": asked})
    given_documents = [corpus.Document("Norway", "Oslo is its capital. It is cold.")]
    cut = lambda **given: list(corpus.cut_blocks(**given))  # noqa: E731
    yield Case(
        "cut_blocks",
        cut,
        lambda: {"documents": list(given_documents), "tokenizer": tokenizer, "max_wordpieces": 30},
        share=2,
    )
    yield Case("split_sentences", corpus.split_sentences, lambda: {"text": "A b. C d."})


# ---- jobs


def of_jobs(folder: Path, fresh: Iterator[Path]) -> Iterator[Case]:
    tokenizer, blocks = eight_capitals.tokenizer(), eight_capitals.BLOCKS
    model = eight_capitals.open_qa()
    embedder, config = model.embedder, model.config
    encoder = RealmKnowledgeAugEncoder(config)
    for settings in (Ict(), Mlm(), Pretrain(), Finetune()):
        name = type(settings).__name__
        checked = lambda settings=settings, **given: settings._replace(**given).check()  # noqa: E731
        yield Case(f"{name}.check", checked, settings._asdict, share=2)
    run = {"resume": False, "save_every": 5, "evaluate_every": 0, "refresh_ranks": 0}
    yield Case("TrainingRun", TrainingRun, lambda: {"folder": next(fresh), **run})
    begun = lambda **given: {"run": TrainingRun(next(fresh)), "blocks": list(blocks), "tokenizer": tokenizer, **given}  # noqa: E731
    yield Case("ict", runs.ict, lambda: begun(embedder=embedder, settings=Ict(steps=1, batch_size=4)))
    yield Case("mlm", runs.mlm, lambda: begun(encoder=encoder, settings=Mlm(steps=1, batch_size=2)))
    masks = Pretrain(steps=1, batch_size=2, num_candidates=2, masking="tokens", freeze_documents=True)
    yield Case(
        "pretrain", refused_pretrain, lambda: begun(embedder=embedder, knowledge_encoder=encoder, settings=masks)
    )
    tuned = {"model": model, "questions": eight_capitals.QUESTIONS[:2], "settings": Finetune(steps=1, batch_size=2)}
    yield Case("finetune", runs.finetune, lambda: {"run": TrainingRun(next(fresh)), **tuned, "blocks": None, "dev": ()})
    yield Case(
        "AdamW",
        AdamW,
        lambda: {"learning_rate": 1e-3, "total_steps": 10, "warmup_steps": 2, "weight_decay": 0.1, "eps": 1e-6},
    )
    yield Case(
        "embed_blocks",
        embedding.embed_blocks,
        lambda: {"embedder": embedder, "tokenizer": tokenizer, "blocks": blocks[:2]},
        lambda found, _: all_finite(found),
    )
    log = folder / "log.csv"
    log.write_text("step,loss\n1,0.5\n", encoding="utf-8")
    yield Case("read_log", loop.read_log, lambda: {"path": log})
    yield Case("checkpoint_steps", run_checkpoints.checkpoint_steps, lambda: {"folder": folder})
    for function in (warm_start.embedder, warm_start.knowledge_encoder, warm_start.reader):
        yield Case(
            f"warm_start.{function.__name__}",
            function,
            lambda: {"folder": folder / "RealmKnowledgeAugEncoder", "seed": 1, "hidden_dropout_prob": 0.2},
        )
    yield Case("warm_start.tokenizer", warm_start.tokenizer, lambda: {"folder": folder / "tokenizer"})
    yield Case("load_packed", load_packed, lambda: {"path": folder / "questions.jsonl"})
    given_documents = [corpus.Document("Norway", "Oslo is its capital. It is cold.")]
    made = {"model": model, "tokenizer": tokenizer, "max_wordpieces": 40, "restart": False}
    yield Case("index", indexing.index, lambda: {"documents": list(given_documents), "folder": next(fresh), **made})
    yield Case("indexing.read_blocks", ready_folder.read_blocks, lambda: {"folder": folder / "retriever"})
    yield Case("load_unindexed", ready_folder.load_unindexed, lambda: {"folder": folder / "open-qa"})


def refused_pretrain(run: Any, **given: Any) -> Any:
    return runs.pretrain(run, **given)


def clear(folder: Path) -> None:
    """Remove what the calls have written."""
    for path in folder.glob("new-*"):
        shutil.rmtree(path, ignore_errors=True)
