"""Draw the pictures of this folder from the code that they show: `make pictures`.

Names, order and shapes are those of a real step of the book, which is run here and watched; the spans and the bound
are computed by the functions that the model and the search use. A test draws them anew and compares.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from svg import Picture

from realm_min import RealmConfig, textbook
from realm_min.model.spans import span_candidates, span_count
from realm_min.search import bounds
from realm_min.textbook_example import initial

FOLDER = Path(__file__).parent
# Sizes that are all different, so that a shape tells what its axes are.
BATCH, CANDIDATES, DOCUMENTS, TOKENS, HIDDEN, PROJ, INNER, VOCABULARY = 2, 3, 5, 10, 8, 7, 12, 110
AXES = {
    BATCH: "batch", CANDIDATES: "candidates", DOCUMENTS: "documents", TOKENS: "tokens", HIDDEN: "hidden",
    PROJ: "proj", INNER: "intermediate", BATCH * CANDIDATES: "batch · candidates", 1: "1",
}  # fmt: skip
CONFIG = RealmConfig(
    vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=1, num_attention_heads=2, intermediate_size=INNER,
    retriever_proj_size=PROJ, max_position_embeddings=40, pad_token_id=0,
)  # fmt: skip


class Call(NamedTuple):
    """A call that was watched: the function's name, and the shapes of what it took and gave."""

    name: str
    taken: list[str]
    given: str


def shape(value: object) -> str:
    return "[" + ", ".join(AXES[size] for size in np.shape(value)) + "]"


@contextlib.contextmanager
def watched(*names: str) -> Iterator[list[Call]]:
    """The calls of the book's functions `names` in order, but for those that one of them makes."""
    found: list[Call] = []
    kept, inside = {name: getattr(textbook, name) for name in names}, []

    def watch(name: str) -> object:
        def call(*args: object, **options: object) -> object:
            inside.append(name)
            result = kept[name](*args, **options)
            inside.pop()
            if not inside:
                arrays = [shape(value) for value in args if isinstance(value, np.ndarray) and value.dtype.kind == "f"]
                output = result[0] if isinstance(result, tuple) else result
                found.append(Call(name, arrays, "" if output is None else shape(output)))
            return result

        return call

    try:
        for name in names:
            setattr(textbook, name, watch(name))
        yield found
    finally:
        for name, function in kept.items():
            setattr(textbook, name, function)


def watch_step() -> dict[str, Call]:
    """A pre-training step of the book on random tokens: the calls that the picture shows, the first of each name."""
    rng = np.random.default_rng(0)
    heads = {"realm.pooler.dense": [HIDDEN] * 2, "cls.dense": [PROJ, HIDDEN], "cls.LayerNorm": [PROJ]}
    transform = "cls.predictions.transform"
    encoder = initial(CONFIG, rng, {f"{transform}.dense": [HIDDEN] * 2, f"{transform}.LayerNorm": [HIDDEN]})
    encoder["cls.predictions.bias"] = np.zeros(VOCABULARY, np.float32)
    models = {"embedder": initial(CONFIG, rng, heads), "encoder": encoder}
    x = [[104, 105, textbook.MASK]] * BATCH
    z = [[106 + i, 104, 105, 107][: TOKENS - 6] for i in range(DOCUMENTS - 1)] + [[]]
    candidates = np.array([[0, 2, DOCUMENTS - 1], [1, 3, DOCUMENTS - 1]])
    pairs = textbook.join([(x[row], z[i]) for row in range(BATCH) for i in candidates[row]])
    labels = np.full((BATCH, TOKENS), textbook.NO_LABEL)
    labels[:, 3] = 108
    examples = textbook.join([(text,) for text in x]), textbook.join([(text,) for text in z]), candidates, pairs, labels
    names = ("embed", "masked_words", "marginal_log_likelihood")
    with watched(*names, *(f"{name}_backward" for name in names)) as calls:
        textbook.pretrain_step(models, CONFIG, examples)
    order = [call.name for call in calls]
    assert order == [
        "embed",
        "embed",
        *names[1:],
        f"{names[2]}_backward",
        f"{names[1]}_backward",
        *["embed_backward"] * 2,
    ]
    return dict(zip(("x", "z", "words", "marginal", "r", "dwords", "dx", "dz"), calls, strict=True))


def pretraining_step() -> Picture:
    """Figure 2 of the paper, with what flows through it and its gradients."""
    calls = watch_step()
    alternative = (
        "One pre-training step. A text x with a masked name and its candidate documents z are embedded; inner products "
        "give the relevance and the prior p(z|x). The encoder reads each pair of x and z and gives log p(y|z,x). "
        "Equation 1 sums over the candidates. Backwards, the posterior p(z|x,y) weighs what the encoder learns, and "
        "r(z), posterior less prior, is what the retriever learns."
    )
    p = Picture(1160, 640, "One pre-training step, forward and backward", alternative)
    p.box(20, 150, 230, 66, [("a text x, a name masked", ""), ("norway capital [MASK]", "code")], "data")
    p.box(20, 276, 230, 66, [("the z that were found, and ∅", ""), ("norway capital oslo", "code")], "data")
    p.box(20, 410, 230, 66, [("pairs of x and z", ""), ("[CLS] x [SEP] z [SEP]", "code")], "data")
    p.box(310, 150, 150, 66, [("embed", "name"), ("the embedder", "")], "box")
    p.box(310, 276, 150, 66, [("embed", "name"), ("the same weights", "")], "box")
    p.box(310, 410, 150, 66, [("masked_words", "name"), ("the encoder", "")], "hot")
    p.box(680, 208, 200, 76, [("f(x, z) = x · z", "name"), ("log p(z|x), the prior", "")], "box")
    p.box(680, 405, 200, 76, [("log p(y|z,x)", "name"), ("Σ over the words of y", "")], "hot")
    p.box(
        930, 296, 210, 100, [("equation 1", "name"), ("log Σ p(y|z,x) p(z|x)", ""), ("loss = −log p(y|x)", "")], "box"
    )
    for row in (183, 309, 443):
        p.path([(250, row), (308, row)])
    p.path([(460, 183), (640, 183), (640, 232), (678, 232)])
    p.text(470, 174, calls["x"].given, "shape")
    p.path([(460, 309), (640, 309), (640, 260), (678, 260)])
    p.text(470, 300, calls["z"].given, "shape")
    p.path([(460, 443), (678, 443)])
    p.text(470, 434, calls["words"].given.replace("batch · candidates", "pairs"), "shape")
    p.path([(880, 246), (990, 246), (990, 294)])
    p.text(884, 237, calls["marginal"].taken[1], "shape")
    p.path([(880, 443), (990, 443), (990, 398)])
    p.text(884, 464, calls["marginal"].taken[0], "shape")
    p.text(1000, 286, calls["marginal"].given, "shape")

    p.path([(1110, 296), (1110, 108), (1012, 108)], "flowback")
    p.box(680, 70, 330, 76, [("df = −r(z) = p(z|x) − p(z|x,y)", "back name"),
                             ("relevance rises if y is likelier with z", "back")], "gradient")  # fmt: skip
    p.path([(680, 92), (385, 92), (385, 148)], "flowback")
    p.text(400, 84, f"{calls['dx'].taken[0]} dx = Σ df z", "shape back")
    p.path([(680, 124), (660, 124), (660, 364), (385, 364), (385, 344)], "flowback")
    p.text(400, 384, f"{calls['dz'].taken[0]} dz = Σ df x", "shape back")
    p.path([(1110, 396), (1110, 548), (1012, 548)], "flowback")
    p.box(680, 510, 330, 76, [("dlog p(y|z,x) = −p(z|x,y)", "back name"),
                              ("the z that helped teaches the most", "back")], "gradient")  # fmt: skip
    p.path([(680, 548), (385, 548), (385, 478)], "flowback")
    p.text(400, 540, calls["dwords"].taken[0].replace("batch · candidates", "pairs"), "shape back")
    p.text(20, 620, "Solid: forward. Dashed: gradients of the loss. pairs = batch · candidates. Shapes: as a step of "
           "textbook.pretrain_step has them.", "")  # fmt: skip
    return p


def watch_layer() -> tuple[list[Call], list[Call]]:
    """What a layer of the book calls, and what its backward calls, in order."""
    rng = np.random.default_rng(0)
    weights = initial(CONFIG, rng, {})
    x = rng.standard_normal((BATCH, TOKENS, HIDDEN)).astype(np.float32)
    names = ("attention", "dropout", "layer_norm", "linear", "gelu")
    with watched(*names) as forward:
        y, kept = textbook.layer(weights, CONFIG, "realm.encoder.layer.0", x, np.zeros(1, np.float32), None)
    gradients = {name: np.zeros_like(value) for name, value in weights.items()}
    with watched(*(f"{name}_backward" for name in names if name != "dropout")) as backward:
        textbook.layer_backward(y, kept, gradients)
    return forward, backward


SAYS = {
    "attention": ("softmax(Q Kᵀ / √width) V, then W", "dS = A (dA − Σ dA A),  dQ = dS K / √width"),
    "dropout": ("x mask", "dx = dy mask"),
    "layer_norm": ("γ n + β,  n = (x − mean) / σ", "dx = (dn − mean dn − n mean(dn n)) / σ"),
    "linear": ("x Wᵀ + b", "dx = dy W,  dW = Σ dyᵀ x"),
    "gelu": ("x Φ(x)", "dx = dy (Φ + x dΦ/dx)"),
}


def layer() -> Picture:
    """A BERT layer: each line of the forward beside the line of the backward that undoes it."""
    forward, backward = watch_layer()
    order = [call.name for call in forward]
    undone = [f"{name}_backward" for name in reversed(order) if name != "dropout"]
    assert [call.name for call in backward] == undone, "the backward is not the forward from the last to the first"
    alternative = (
        "A BERT layer. On the left its forward, top down: " + ", ".join(order).replace("_", " ") + ". On the right the "
        "backward of each at the same height, from the bottom up. The input of each half is added to its output, so "
        "its gradient is the sum of two."
    )
    top, step, high = 100, 84, 50
    p = Picture(1120, top + step * len(order) + 90, "A layer, forward and backward", alternative)
    p.text(250, 70, f"x {forward[0].taken[0]}", "shape middle")
    p.text(800, 70, f"dx {backward[-1].given}", "shape middle back")
    added = [i for i, name in enumerate(order) if name == "layer_norm"]
    starts = [0, *(i + 1 for i in added[:-1])]
    for i, call in enumerate(forward):
        y, (said, undo) = top + step * i, SAYS[call.name]
        kind = "hot" if call.name == "attention" else "box"
        p.box(100, y, 300, high, [(call.name, "name"), (said, "")], kind)
        p.box(620, y, 360, high, [(f"{call.name}_backward" if call.name != "dropout" else "dropout", "name back"),
                                  (undo, "back")], "gradient")  # fmt: skip
        p.path([(250, y - step + high if i else 76), (250, y - 2)])
        p.path([(800, y), (800, y - step + high + 2 if i else 78)], "flowback")
        if i + 1 < len(order) and call.given != forward[0].taken[0]:
            p.text(262, y + high + 22, call.given, "shape")
    end = top + step * len(order)
    p.path([(250, end - step + high), (250, end + 4)])
    p.text(250, end + 24, f"x {forward[-1].given}", "shape middle")
    p.path([(800, end + 8), (800, end - step + high + 2)], "flowback")
    p.text(800, end + 24, f"dx {backward[0].taken[0]}", "shape middle back")
    for first, last in zip(starts, added, strict=True):
        high_y, low_y = top + step * first - 17, top + step * last - 17
        p.path([(250, high_y), (60, high_y), (60, low_y), (240, low_y)])
        p.dot(250, low_y, 9, "data")
        p.text(250, low_y + 5, "+", "middle")
        p.path([(800, low_y), (1030, low_y), (1030, high_y), (810, high_y)], "flowback")
        p.dot(800, high_y, 9, "gradient")
        p.text(800, high_y + 5, "+", "middle back")
    for i in range(len(order)):
        p.path([(402, top + step * i + 25), (618, top + step * i + 25)], "kept-line")
    p.text(510, top + 17, "kept", "middle")
    p.text(20, end + 70, "Names and order are those of textbook.layer and textbook.layer_backward.", "")
    return p


def span_triangle() -> Picture:
    """Every span of a short block, by the number that span_candidates gives it."""
    tokens, widest = ["capital", "-", "name", ":", "map", "##uto", "."], 4  # BERT's wordpieces of Maputo
    firsts, lasts = (ends.tolist() for ends in span_candidates(len(tokens), widest))
    count = span_count(len(tokens), widest)
    assert count == len(firsts)
    shown = next(i for i, ends in enumerate(zip(firsts, lasts, strict=True)) if ends == (4, 5))
    alternative = (
        f"The {count} spans of {len(tokens)} tokens, up to {widest} wide, as a triangle: a row for each width, each "
        f"span over the middle of its tokens. Span {shown}, map ##uto, is the sum of what its first and its "
        "last token give."
    )
    wide, high, left, base = 130, 58, 90, 330
    p = Picture(1120, 470, "The span triangle: every run of neighbouring tokens can be the answer", alternative)
    for number, (first, last) in enumerate(zip(firsts, lasts, strict=True)):
        x, y = left + wide * (first + last) / 2, base - high * (last - first + 1)
        p.box(x, y, wide - 8, high - 8, [(str(number), "")], "kept" if number == shown else "box")
    for i, token in enumerate(tokens):
        p.box(left + wide * i, base + 4, wide - 8, 40, [(token, "code")], "hot" if i in (4, 5) else "data")
    for width in range(1, widest + 1):
        p.text(24, base - high * width + 30, f"w = {width}", "")
    above = base - high * 2 + high - 8
    for place in (4, 5):
        p.path(
            [
                (left + wide * place + wide / 2 - 4, base + 2),
                (left + wide * 4.5 + wide / 2 - 4 + (place - 4.5) * 60, above + 2),
            ]
        )
    said = f"Span {shown}:  h = relu(S[4] + E[5]),  S_read = v · LayerNorm(h) + c.  A token gives S and E once; "
    p.text(20, 408, said + "a span costs one addition.")
    said = f"here {widest} · {len(tokens)} − {widest * (widest - 1) // 2} = {count}; "
    said += f"of a block of 320 tokens, W = 10, {span_count(320, 10):,}."
    p.text(20, 432, f"T tokens and widths up to W make W T − W (W − 1) / 2 spans: {said}")
    p.text(20, 456, "Numbers are those of span_candidates: narrow spans first.", "")
    return p


class Certificate(NamedTuple):
    """A search by groups: true scores [groups, rows]; what is known of each group's best; the threshold."""

    scores: np.ndarray
    middle: np.ndarray
    half: np.ndarray
    threshold: float


def search_certificate(groups: int = 18, dimensions: int = 48, k: int = 3) -> Certificate:
    """The scan of int8 codes of blocks that all look one way, so that the codes cannot tell all of them apart."""
    rng = np.random.default_rng(3)
    size = bounds.BASE_GROUP
    common = rng.standard_normal(dimensions)
    blocks = torch.from_numpy(common + 0.12 * rng.standard_normal((groups * size, dimensions))).float()
    query = torch.from_numpy(common[None] + 0.1 * rng.standard_normal((1, dimensions))).float()
    codes = bounds.compress(blocks, "int8")
    coded = bounds.scan_queries(query, codes, torch.float32)
    scales = codes.scale.repeat_interleave(size)[:, None]
    scan = (codes.codes.float() @ coded.codes.t()) * scales  # [rows, 1]
    maxima = bounds.group_max(scan, size).t()  # [1, groups]
    errors = bounds.rounding(dimensions, stored=2.0**-22)
    bound = bounds.error_bound(coded, codes.norm, codes.residual, errors.gamma, errors.eta)
    upper, threshold = bounds.certify(maxima, coded.unit, bound, errors.rho, k)
    middle = (maxima.double() * coded.unit[:, None])[0].numpy()
    scores = (blocks.double() @ query[0].double()).view(groups, size).numpy()
    return Certificate(scores, middle, upper[0].numpy() - middle, float(threshold[0]))


def search_bound() -> Picture:
    """Which groups the certificate of the search rules out."""
    k = 3
    found = search_certificate(k=k)
    best = found.scores.max(1)
    assert (np.abs(best - found.middle) <= found.half).all()
    answers = np.sort(found.scores.ravel())[-k:]
    kept = found.middle + found.half >= found.threshold
    holds = best >= answers[0]
    assert (kept | ~holds).all() and answers[0] >= found.threshold
    alternative = (
        f"{len(best)} groups of 16 blocks. For each the scores of its blocks as dots, and the interval in which codes "
        f"of 8 bits say that its best score lies. The threshold is the {k}rd largest lower end. {int(kept.sum())} "
        f"groups reach it and are scored again, {int(holds.sum())} of them hold the {k} best blocks; the others "
        "cannot."
    )
    p = Picture(1120, 560, f"The search bound: k = {k}, and who cannot be among the {k} best", alternative)
    low, high = float(np.quantile(found.scores, 0.5)), float((found.middle + found.half).max())

    def height(score: float) -> float:
        return 440 - 370 * (score - low) / (high - low)

    for g, scores in enumerate(found.scores):
        x = 60 + 57 * g
        kind = "kept" if holds[g] else "vain" if kept[g] else "out"
        top, bottom = height(found.middle[g] + found.half[g]), height(found.middle[g] - found.half[g])
        p.rect(x, top, 36, bottom - top, kind, 2)
        p.path([(x, height(found.middle[g])), (x + 36, height(found.middle[g]))], "line")
        for score in np.sort(scores)[-6:]:
            if score >= low:
                p.dot(x + 18, height(score), 2.6, "")
    line = height(found.threshold)
    p.path([(40, line), (1090, line)], "threshold")
    p.text(1100, line + 5, "t", "back")
    said = "Dots: true scores q·e. Boxes: maximum of the scan ± b, where b ≥ |q·e − q·ê| by Cauchy and Schwarz: "
    p.text(20, 470, said + "the group's best score lies inside.")
    said = f"t: the {k}rd largest lower end. {k} groups surely reach it, "
    p.text(20, 494, said + f"so nothing below t is among the {k} best.")
    for x, kind, said in (
        (20, "kept", f"holds an answer ({int(holds.sum())})"),
        (240, "vain", f"scored again in vain ({int((kept & ~holds).sum())})"),
        (510, "out", f"upper end below t: ruled out, never looked at again ({int((~kept).sum())})"),
    ):
        p.rect(x, 518, 26, 18, kind, 2)
        p.text(x + 36, 533, said, "")
    return p


PICTURES = {
    "pretraining-step.svg": pretraining_step, "layer.svg": layer, "span-triangle.svg": span_triangle,
    "search-bound.svg": search_bound,
}  # fmt: skip


def main() -> None:
    for name, draw in PICTURES.items():
        (FOLDER / name).write_text(draw().source(), encoding="utf-8", newline="\n")
        print(FOLDER.name, name, sep="/")


if __name__ == "__main__":
    main()
