"""What a checkpoint computes, cut into stages, and the inputs it computes them from.

A stage reads named values (inputs, or what earlier stages gave) and gives one: the embeddings' output, an attention's,
an MLP's, and so on. Every path of `paths.py` computes the same stages, so that their values can be compared one by one.

A model is made of parts, each with a trunk of its own: the state dict names them "embedder.", "query_embedder.",
"reader."; a model of one part has no such prefix.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ..config import RealmConfig
from ..interface.base import RealmModel
from ..interface.embedder import RealmEmbedder
from ..interface.knowledge_encoder import RealmKnowledgeAugEncoder
from ..interface.reader import RealmReader
from ..model.parameters import Shapes

StateDict = Mapping[str, Tensor]

# Bounds on the largest error of a stage, relative to the largest number in it.
TOLERANCE = 2e-6
LOSS_TOLERANCE = 1e-5
# The same where the arithmetic is float64's.
FLOAT64_TOLERANCE = 1e-11

# The parts of each kind of model: their prefix without its dot, and their class.
PARTS: dict[str, dict[str, type[RealmModel]]] = {
    "RealmEmbedder": {"": RealmEmbedder},
    "RealmScorer": {"query_embedder": RealmEmbedder, "embedder": RealmEmbedder},
    "RealmKnowledgeAugEncoder": {"": RealmKnowledgeAugEncoder},
    "RealmReader": {"": RealmReader},
    "RealmForOpenQA": {"embedder": RealmEmbedder, "reader": RealmReader},
}

SEQUENCES = 2  # texts, queries or questions in a batch
TOKENS = 24  # in a sequence of seeded ids
MASKED = -1e30  # span logits below it are those of spans outside the block


class Stage(NamedTuple):
    """One computation.

    name: what it gives is kept under this name; unique.
    label: what the table calls it.
    operation: the method of a path that computes it.
    part: prefix of its weights, without the dot.
    reads: names of the values it takes.
    weights: beginnings of the keys of its weights in the state dict.
    tolerance: bound on the relative error in float32.
    layer: number of the layer, for attention and MLP.
    choices: it chooses that many items by their scores; 0 for a stage that gives numbers.
    masked: its values below `MASKED` stand for "outside".
    repeats: name of the stage whose value a call of the whole part gives again.
    """

    name: str
    label: str
    operation: str
    part: str
    reads: tuple[str, ...]
    weights: tuple[str, ...] = ()
    tolerance: float = TOLERANCE
    layer: int = 0
    choices: int = 0
    masked: bool = False
    repeats: str = ""


def recognise(architectures: Iterable[str] | None, keys: Iterable[str]) -> str:
    """The kind of a model by what its config.json says, else by its keys.

    Raises:
        ValueError: neither tells.
    """
    for name in architectures or ():
        if name in PARTS:
            return name
    keys = set(keys)

    def holds(beginning: str) -> bool:
        return any(key.startswith(beginning) for key in keys)

    if "block_emb" in keys or holds("reader."):
        return "RealmForOpenQA"
    if holds("query_embedder.") or holds("embedder."):
        return "RealmScorer"
    if holds("qa_outputs."):
        return "RealmReader"
    if holds("cls.dense."):
        return "RealmEmbedder"
    if holds("cls.predictions."):
        return "RealmKnowledgeAugEncoder"
    raise ValueError(
        f"no REALM model has the keys of this checkpoint ({', '.join(sorted(keys)[:3])}, …): give a folder saved from "
        f"one of {', '.join(PARTS)}"
    )


def prefix_of(part: str) -> str:
    return f"{part}." if part else ""


def within(state_dict: StateDict, part: str) -> dict[str, Tensor]:
    """The tensors of a part, by its own keys."""
    prefix = prefix_of(part)
    return {key[len(prefix) :]: tensor for key, tensor in state_dict.items() if key.startswith(prefix)}


def tokens_of(spans: int, max_span_width: int) -> int:
    """Tokens of a sequence that has `spans` spans of at most `max_span_width` <= tokens."""
    return (spans + max_span_width * (max_span_width - 1) // 2) // max_span_width


def shapes(kind: str, config: RealmConfig) -> Shapes:
    """The state dict of a kind of model: key -> shape, or the key it repeats."""
    found: Shapes = {}
    if kind == "RealmForOpenQA":
        found["block_emb"] = (config.num_block_records, config.retriever_proj_size)
    for part, part_class in PARTS[kind].items():
        prefix = prefix_of(part)
        for key, shape in part_class.shapes(config).items():
            found[prefix + key] = prefix + shape if isinstance(shape, str) else shape
    return found


def stages_of(kind: str, config: RealmConfig) -> list[Stage]:
    """Every stage of a kind of model, in the order in which they are computed."""
    if kind == "RealmEmbedder":
        return embedder_stages("", config)
    if kind == "RealmScorer":
        reads = ("query_embedder:projection", "embedder:projection")
        relevance = Stage("relevance", "relevance f(x, z)", "relevance", "embedder", reads)
        return [*embedder_stages("query_embedder", config), *embedder_stages("embedder", config), relevance]
    if kind == "RealmKnowledgeAugEncoder":
        return encoder_stages(config)
    if kind == "RealmReader":
        return reader_stages("", config)
    beam, question = config.reader_beam_size, "embedder:projection"
    return [
        *embedder_stages("embedder", config),
        Stage("retrieved", "retrieved ids", "retrieve", "embedder", (question,), ("block_emb",), choices=beam),
        Stage("reader:relevance", "relevance f(x, z)", "retrieved_scores", "embedder", (question, "retrieved")),
        *reader_stages("reader", config),
    ]


def trunk_stages(part: str, config: RealmConfig) -> list[Stage]:
    stages = [
        Stage(
            f"{part}:layer -1", "embeddings", "embeddings", part, (f"{part}:ids", f"{part}:mask", f"{part}:types"),
            (f"{prefix_of(part)}realm.embeddings.",),
        )
    ]  # fmt: skip
    for layer in range(config.num_hidden_layers):
        name = f"{prefix_of(part)}realm.encoder.layer.{layer}."
        stages += [
            Stage(
                f"{part}:attention {layer}", f"layer {layer} attention", "attention", part,
                (f"{part}:layer {layer - 1}", f"{part}:mask"), (name + "attention.",), layer=layer,
            ),
            Stage(
                f"{part}:layer {layer}", f"layer {layer} MLP", "mlp", part,
                (f"{part}:attention {layer}",), (name + "intermediate.", name + "output."), layer=layer,
            ),
        ]  # fmt: skip
    return stages


def embedder_stages(part: str, config: RealmConfig) -> list[Stage]:
    last = f"{part}:layer {config.num_hidden_layers - 1}"
    inputs, prefix = (f"{part}:ids", f"{part}:mask", f"{part}:types"), prefix_of(part)
    return [
        *trunk_stages(part, config),
        Stage(f"{part}:pooler", "pooler", "pooler", part, (last,), (f"{prefix}realm.pooler.",)),
        Stage(
            f"{part}:projection", "projection", "projection", part, (f"{part}:pooler",),
            (f"{prefix}cls.dense.", f"{prefix}cls.LayerNorm."),
        ),
        Stage(f"{part}:call", "whole: projection", "call_embedder", part, inputs, repeats=f"{part}:projection"),
    ]  # fmt: skip


def encoder_stages(config: RealmConfig) -> list[Stage]:
    last, inputs = f":layer {config.num_hidden_layers - 1}", (":ids", ":mask", ":types")
    loss_inputs = (":relevance", ":labels", ":mlm mask")
    return [
        *trunk_stages("", config),
        Stage(":mlm logits", "MLM logits", "mlm_logits", "", (last,), ("cls.predictions.",)),
        Stage(":loss", "marginal MLM loss", "mlm_loss", "", (":mlm logits", *loss_inputs), tolerance=LOSS_TOLERANCE),
        Stage(":call logits", "whole: MLM logits", "call_mlm_logits", "", inputs, repeats=":mlm logits"),
        Stage(
            ":call loss", "whole: loss", "call_mlm_loss", "", inputs + loss_inputs,
            tolerance=LOSS_TOLERANCE, repeats=":loss",
        ),
    ]  # fmt: skip


def reader_stages(part: str, config: RealmConfig) -> list[Stage]:
    last = f"{part}:layer {config.num_hidden_layers - 1}"
    inputs = (f"{part}:ids", f"{part}:mask", f"{part}:types", f"{part}:relevance", f"{part}:block mask")
    answers = (f"{part}:starts", f"{part}:ends", f"{part}:has answers")
    logits, qa = f"{part}:span logits", f"{prefix_of(part)}qa_outputs."
    return [
        *trunk_stages(part, config),
        Stage(
            f"{part}:span projection", "span projections", "span_projection", part, (last,),
            (f"{qa}dense_intermediate.",),
        ),
        Stage(
            logits, "span logits", "span_logits", part, (f"{part}:span projection", f"{part}:block mask"),
            (f"{qa}layer_normalization.", f"{qa}dense_output."), masked=True,
        ),
        Stage(
            f"{part}:losses", "retriever, reader loss", "reader_losses", part, (logits, f"{part}:relevance", *answers),
            tolerance=LOSS_TOLERANCE,
        ),
        Stage(f"{part}:answer", "answer", "answer", part, (logits, f"{part}:relevance"), choices=1, masked=True),
        Stage(
            f"{part}:call losses", "whole: losses", "call_reader_losses", part, inputs + answers,
            tolerance=LOSS_TOLERANCE, repeats=f"{part}:losses",
        ),
        Stage(
            f"{part}:call answer", "whole: answer", "call_answer", part, inputs, choices=1, masked=True,
            repeats=f"{part}:answer",
        ),
    ]  # fmt: skip


# --- Inputs -----------------------------------------------------------------------------------------------------------


def inputs_of(kind: str, config: RealmConfig, seed: int, text_ids: list[int] | None = None) -> dict[str, np.ndarray]:
    """Seeded inputs of every part, by name; `text_ids` are read as the first sequence of each batch.

    Raises:
        ValueError: the text has more tokens than the model has positions, or the model too few for its own spans.
    """
    rng = np.random.default_rng(seed)
    if text_ids is not None and len(text_ids) > config.max_position_embeddings:
        raise ValueError(
            f"the text has {len(text_ids)} tokens, the model reads {config.max_position_embeddings}: shorten it"
        )
    found: dict[str, np.ndarray] = {}
    for part in PARTS[kind]:
        if kind == "RealmReader" or part == "reader":
            found |= reader_inputs(part, config, rng, text_ids)
        elif kind == "RealmKnowledgeAugEncoder":
            found |= encoder_inputs(config, rng, text_ids)
        else:
            rows = SEQUENCES * (config.num_candidates if (kind, part) == ("RealmScorer", "embedder") else 1)
            found |= sequences(part, config, rng, rows, text_ids)
    if kind == "RealmForOpenQA":
        del found["reader:relevance"]  # a stage computes it
    return found


def sequences(
    part: str, config: RealmConfig, rng: np.random.Generator, rows: int, text_ids: list[int] | None, at_least: int = 0
) -> dict[str, np.ndarray]:
    """Ids, mask and types, each [rows, tokens] int64. The last row is padded, so that the mask has something to do."""
    wanted = max(TOKENS, at_least, len(text_ids or ()))
    tokens = min(wanted, config.max_position_embeddings)
    ids = rng.integers(0, config.vocab_size, (rows, tokens))
    mask = np.ones((rows, tokens), np.int64)
    types = np.zeros((rows, tokens), np.int64)
    types[:, tokens // 3 :] = min(1, config.type_vocab_size - 1)
    if rows > 1:
        mask[-1, tokens - tokens // 4 :] = 0
    if text_ids is not None:
        ids[0, : len(text_ids)] = text_ids
        mask[0] = np.arange(tokens) < len(text_ids)
    return {f"{part}:ids": ids, f"{part}:mask": mask, f"{part}:types": types}


def encoder_inputs(config: RealmConfig, rng: np.random.Generator, text_ids: list[int] | None) -> dict[str, np.ndarray]:
    """One text with each of its candidates, and labels for some of its tokens."""
    found = sequences("", config, rng, config.num_candidates, text_ids)
    tokens = found[":ids"].shape[1]
    labels = rng.integers(0, config.vocab_size, (1, tokens))
    labels[:, ::3] = -100
    return found | {
        ":relevance": rng.standard_normal((1, config.num_candidates)).astype(np.float32).astype(np.float64),
        ":labels": labels,
        ":mlm mask": (np.arange(tokens) % 2)[None],
    }


def reader_inputs(
    part: str, config: RealmConfig, rng: np.random.Generator, text_ids: list[int] | None
) -> dict[str, np.ndarray]:
    """As many blocks as are read, with an answer in each but the last."""
    beam = config.reader_beam_size
    found = sequences(part, config, rng, beam, text_ids, at_least=config.max_span_width + 4)
    tokens = found[f"{part}:ids"].shape[1]
    if tokens < config.max_span_width:
        raise ValueError(
            f"max_position_embeddings={config.max_position_embeddings} is below max_span_width="
            f"{config.max_span_width}: no sequence holds the widest span; correct config.json"
        )
    # The second third and on is the block, but for a separator at its end.
    block = (np.arange(tokens) >= tokens // 3) & (found[f"{part}:mask"] == 1)
    block &= np.roll(found[f"{part}:mask"], -1, axis=1) * (np.arange(tokens) < tokens - 1) == 1
    starts = tokens // 3 + rng.integers(0, max(1, tokens // 4), (beam, 2))
    ends = starts + rng.integers(0, config.max_span_width, (beam, 2))
    starts[-1, 1] = ends[-1, 1] = -1
    has_answers = np.arange(beam) < max(1, beam - 1)
    return found | {
        f"{part}:block mask": block,
        f"{part}:relevance": rng.standard_normal(beam).astype(np.float32).astype(np.float64),
        f"{part}:starts": starts,
        f"{part}:ends": ends,
        f"{part}:has answers": has_answers,
    }
