"""A question's answer as a picture, for `realm-min ask --plot`: what was retrieved, which spans scored, what was read.

Four parts, from f(x, z) to the answer's wordpieces: p(z|x) of the blocks read; S_retr + S_read, what the answer is
chosen by, of the spans about it and of every span of its block; the last layer's attention of the answer's tokens,
averaged over them, head by head; and its mean over heads laid over the text.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..interface.open_qa import Answer, RealmForOpenQA
from ..jobs import loop
from ..jobs.calibration import Bin
from ..jobs.statistics import wilson
from .figures import drawable, large_letters, save_figure

BARS = 20  # blocks drawn at most, best first
NEIGHBOURS = 9  # tokens on either side of the answer, in the close-up
LINE = 150  # characters in a line of the coloured text
ADVANCE = 0.602  # a monospaced character's width over its font size (DejaVu Sans Mono)
WIDTH = 15  # of the figure, in inches
SCORE = "S_retr + S_read"  # ORQA's score of a span: its block's f(x, z) and what the reader makes of the span
ANSWER, OTHER, OUTSIDE = "#d1495b", "#7d98b3", "#e8e8e8"


@large_letters()
def plot_answer(model: RealmForOpenQA, answer: Answer, path: Path) -> None:
    """Draw an answer of `model` as a PNG.

    Raises:
        ModuleNotFoundError: matplotlib is not installed (the extra `plot`).
    """
    from matplotlib.figure import Figure

    block = answer.blocks[answer.block_rank]
    read = model.score_spans(
        answer.question, [block.text], torch.tensor([block.score], device=model.device), output_attentions=True
    )
    best = int(read.logits[0].argmax())
    start, end = int(read.starts[best]), int(read.ends[best])
    scores = span_table(read)
    attention = read.attentions[-1][0, :, start : end + 1].mean(1).cpu().numpy()  # [heads, tokens]
    tokenizer = model.retriever.tokenizer
    tokens = list(map(drawable, tokenizer.convert_ids_to_tokens(read.ids[0].tolist())))
    words = ~np.isin(read.ids[0].cpu().numpy(), (tokenizer.cls_token_id, tokenizer.sep_token_id))
    lines = laid_out(tokens)

    text_height = 0.2 * (1 + max(line for line, _ in lines))
    heights = [max(2.6, 0.24 * min(BARS, len(answer.blocks))), 2.0, 0.5 + 0.17 * len(attention), text_height]
    figure = Figure(figsize=(WIDTH, sum(heights) + 2.6), layout="constrained")
    rows = figure.add_gridspec(4, 1, height_ratios=heights)
    top = rows[0].subgridspec(1, 2, width_ratios=[1, 1.6])
    draw_retrieval(figure.add_subplot(top[0]), answer)
    draw_spans_near(figure.add_subplot(top[1]), scores, tokens, start, end)
    whole = figure.add_subplot(rows[1])
    draw_all_spans(whole, scores, start, end)
    draw_heads(figure.add_subplot(rows[2], sharex=whole), attention, words, start, end)
    draw_text(figure.add_subplot(rows[3]), tokens, lines, attention.mean(0), words, start, end)
    asked, said = (drawable(shortened(text, width)) for text, width in ((answer.question, 110), (answer.text, 80)))
    figure.suptitle(f"{asked}\n{said}   p(y|x) = {answer.probability:.3g}", fontsize=13, x=0.01, ha="left")
    save_figure(figure, path)


def shortened(text: str, width: int) -> str:
    return textwrap.shorten(text, width, placeholder=" …")


def span_table(read: Any) -> np.ndarray:
    """S_retr + S_read of the first block's spans, [widths, tokens] by width - 1 and first token; NaN outside it."""
    starts, ends = read.starts.cpu().numpy(), read.ends.cpu().numpy()
    inside = read.in_block[0].cpu().numpy()
    table = np.full(((ends - starts).max() + 1, len(inside)), np.nan)
    table[ends - starts, starts] = read.logits[0].cpu().numpy()
    table[ends - starts, starts] = np.where(inside[starts] & inside[ends], table[ends - starts, starts], np.nan)
    return table


def laid_out(tokens: list[str]) -> list[tuple[int, int]]:
    """Line and column of each token, set in lines of `LINE` characters; wordpieces follow their word without a gap."""
    places, line, column = [], 0, 0
    for i, token in enumerate(tokens):
        piece = i > 0 and token.startswith("##")
        width = len(shown(token))
        if column + width + (not piece) > LINE:
            line, column = line + 1, 0
        elif column and not piece:
            column += 1
        places.append((line, column))
        column += width
    return places


def shown(token: str) -> str:
    return token.removeprefix("##").replace(r"\$", "$")


def draw_retrieval(axes: Any, answer: Answer) -> None:
    """p(z|x) of the blocks that were read, the answer's in another colour."""
    ranks = list(range(min(BARS, len(answer.blocks))))
    if answer.block_rank not in ranks:
        ranks[-1] = answer.block_rank
    blocks = [answer.blocks[rank] for rank in ranks]
    colours = [ANSWER if rank == answer.block_rank else OTHER for rank in ranks]
    places = range(len(ranks))
    axes.barh(places, [block.probability for block in blocks], color=colours)
    labels = [f"{rank + 1}. {shortened(block.text, 34)}" for rank, block in zip(ranks, blocks, strict=True)]
    axes.set_yticks(places, list(map(drawable, labels)))
    axes.invert_yaxis()
    for place, block in zip(places, blocks, strict=True):
        axes.annotate(f"{block.probability:.3g}", (block.probability, place), xytext=(3, 0),
                      textcoords="offset points", va="center")  # fmt: skip
    axes.margins(x=0.14)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("p(z|x)")
    rest = "" if len(ranks) == len(answer.blocks) else f", {len(ranks)} of {len(answer.blocks)}"
    axes.set_title(f"Retrieval: the blocks read{rest}", loc="left")


def draw_spans_near(axes: Any, scores: np.ndarray, tokens: list[str], start: int, end: int) -> None:
    """The spans that begin near the answer, with their first tokens named."""
    inside = np.flatnonzero(~np.isnan(scores[0]))
    first, last = max(inside[0], start - NEIGHBOURS), min(inside[-1], end + NEIGHBOURS)
    heat(axes, scores[:, first : last + 1], SCORE)
    frame(axes, start - first, end - start)
    axes.set_xticks(range(last - first + 1), tokens[first : last + 1], rotation=60, ha="right", rotation_mode="anchor")
    widths_axis(axes, len(scores))
    axes.set_title("Spans that begin near the answer (framed), by first token and width", loc="left")


def draw_all_spans(axes: Any, scores: np.ndarray, start: int, end: int) -> None:
    """Every span of the block; the axis of tokens is that of the attention below."""
    heat(axes, scores, SCORE)
    frame(axes, start, end - start)
    widths_axis(axes, len(scores))
    axes.tick_params(labelbottom=False)
    axes.set_title("All spans of the answer's block, by first token and width; grey: no span of the block", loc="left")


def draw_heads(axes: Any, attention: np.ndarray, words: np.ndarray, start: int, end: int) -> None:
    """Attention [heads, tokens] of the answer's tokens; the scale ends at the largest on a token of `words`."""
    heat(axes, attention, "attention", "Reds", 0.0, attention[:, words].max())
    for edge in (start - 0.5, end + 0.5):
        axes.axvline(edge, color="black", linewidth=0.8)
    axes.set_ylabel("head")
    axes.set_yticks(range(len(attention)), range(1, len(attention) + 1))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("token of [CLS] question [SEP] block [SEP]")
    axes.set_title("Last layer: attention of the answer's tokens (between the lines), averaged over them", loc="left")


def draw_text(
    axes: Any,
    tokens: list[str],
    places: list[tuple[int, int]],
    weight: np.ndarray,
    words: np.ndarray,
    start: int,
    end: int,
) -> None:
    """The tokens in lines, shaded by `weight` [tokens], darkest for the largest weight of the `words` [tokens]."""
    from matplotlib.patches import Rectangle

    largest = max(weight[words].max(), np.finfo(np.float32).tiny)
    lines = 1 + max(line for line, _ in places)
    axes.set(xlim=(-0.5, LINE + 0.5), ylim=(lines, 0))
    axes.set_axis_off()
    size = 0.94 * WIDTH * 72 / (LINE + 1) / ADVANCE
    for i, (token, (line, column)) in enumerate(zip(tokens, places, strict=True)):
        answers = start <= i <= end
        shade = min(1.0, weight[i] / largest)
        box = (column - 0.1, line + 0.05), len(shown(token)) + 0.2, 0.9
        axes.add_patch(Rectangle(*box, facecolor="#d62728", alpha=0.75 * shade, linewidth=0))
        axes.text(column, line + 0.52, shown(token).replace("$", r"\$"), family="monospace", fontsize=size, va="center",
                  weight="bold" if answers else "normal", color="black")  # fmt: skip
        if answers:
            axes.plot([column - 0.1, column + len(shown(token)) + 0.1], [line + 0.97] * 2, color=ANSWER, linewidth=2)
    axes.set_title(
        "The same, mean of heads, over question and block; the answer is underlined. Full shade: "
        f"{largest:.2g}, the largest of any word ([CLS] and [SEP] may have more)", loc="left",
    )  # fmt: skip


def heat(
    axes: Any,
    values: np.ndarray,
    label: str,
    colours: str = "viridis",
    lowest: float | None = None,
    highest: float | None = None,
) -> None:
    axes.set_facecolor(OUTSIDE)
    image = axes.imshow(values, aspect="auto", interpolation="nearest", cmap=colours, vmin=lowest, vmax=highest)
    axes.figure.colorbar(image, ax=axes, label=label, pad=0.01, fraction=0.03, aspect=12)


def frame(axes: Any, first: int, row: int) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((first - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=ANSWER, linewidth=2, clip_on=False))


def widths_axis(axes: Any, widths: int) -> None:
    axes.set_yticks(range(widths), range(1, widths + 1))
    axes.set_ylabel("tokens in the span")


PLOT_FILE = "training.png"


# ---- the plot
@large_letters()
def plot_training(folder: str | os.PathLike) -> Path:
    """Draw loss, retrieval utility and staleness of a run's log.csv against its steps, into training.png beside it.

    Raises:
        ModuleNotFoundError: matplotlib is not installed (the extra `plot`).
        FileNotFoundError: there is no log.
    """
    from matplotlib.figure import Figure

    log = loop.read_log(Path(folder) / loop.LOG_FILE)
    steps = np.array(log["step"])
    width = max(1, len(steps) // 40)
    shown = {
        "loss": "loss,\nnats a masked wordpiece",
        "retrieval_utility": "retrieval utility,\nnats a masked wordpiece",
        "null_probability": "p(∅|x)",
        "staleness": "age of the index,\nsteps",
    }
    shown = {column: label for column, label in shown.items() if column in log}
    figure = Figure(figsize=(8, 1 + 2 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), 1, sharex=True)
    for axis, (column, label) in zip(axes, shown.items(), strict=True):
        values = np.array(log[column])
        averaged = np.convolve(values, np.ones(width) / width, "valid") if column != "staleness" else values
        axis.plot(steps, values, color="0.8", linewidth=0.7)
        axis.plot(steps[len(steps) - len(averaged) :], averaged, linewidth=1.3)
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        if column == "retrieval_utility":
            axis.axhline(0, color="0.4", linewidth=0.8)
    axes[0].set_title(f"Pre-training; bold: mean of {width} steps" if width > 1 else "Pre-training")
    axes[-1].set_xlabel("step")
    path = Path(folder) / PLOT_FILE
    save_figure(figure, path)
    return path


# ---- how far confidence is to be believed


@large_letters()
def plot_reliability(found: Sequence[Bin], path: str | os.PathLike) -> None:
    """Draw how often answers of each confidence are right (`jobs/calibration.py`), with 95 % intervals, as a PNG.

    Raises:
        ModuleNotFoundError: matplotlib is not installed (the extra `plot`).
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--")
    confidence, right = (np.array([getattr(one, name) for one in found]) for name in ("confidence", "right"))
    low, high = np.array([wilson(one.right, one.count) for one in found]).T
    bars = np.maximum([right - low, high - right], 0)
    axes.errorbar(confidence, right, bars, fmt="o", color=ANSWER, ecolor=OTHER, capsize=3)
    for one in found:
        axes.annotate(f"{one.count}", (one.confidence, one.right), xytext=(6, -10), textcoords="offset points")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence, mean of the answers in a bin", ylabel="share that is right")
    axes.set_title("Reliability; numbers: answers in a bin")
    save_figure(figure, path)
