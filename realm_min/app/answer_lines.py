"""An answer on a terminal: itself, its sentence and its source in a line each, and where asked for the blocks read.

Five answers, or one with its five blocks, fit on a screen of 24 lines of 80 columns.
"""

from __future__ import annotations

from rich.cells import cell_len, set_cell_size

from ..interface.open_qa import Answer, RetrievedBlock
from ..jobs.calibration import Judge
from ..text.corpus import split_sentences
from .console import Console, Text
from .printable import printable

INDENT, BRACKETS = 2, 4  # columns: before each line, and what marks the answer where there is no colour
OWN_LINES, OTHER_LINES = 4, 2  # of the answer's block, and of each other
CREDULOUS = Judge(0.0)  # finds every answer
FULL = 0.9  # of so many lines: words that do not fit move to the next

Parts = tuple[str, str, str]  # what stands before the answer, the answer, what stands after it


def print_answer(answer: Answer, judge: Judge = CREDULOUS, *, asked: bool = True, blocks: bool = False) -> None:
    """Print an answer.

    Args:
        judge: where it finds the answer too doubtful, that counts as not found; what was read is shown all the same.
        asked: whether to say the question, too; at a prompt it stands there already.
        blocks: whether to show each block that was read, best first.
    """
    console = Console()
    if asked:
        console.print(Text(" ".join(answer.question.split()), style="bold"))
    own = answer.blocks[answer.block_rank]
    show(console, verdict(answer, judge))
    show(console, marked(in_a_line(sentence(own.text, answer.start_char, answer.end_char), width(console)), console))
    source = f"from {name(own)}, the {ordinal(answer.block_rank + 1)} of {len(answer.blocks)} blocks read"
    show(console, Text(cut(printable(source), width(console)), style="cyan"))
    for rank, block in enumerate(answer.blocks if blocks else ()):
        heading = f"{rank + 1}. {name(block)}   score {block.score:.3f}   p(z|x) {block.probability:.3g}"
        show(console, Text(cut(printable(heading), width(console)), style="cyan"))
        if rank == answer.block_rank:
            parts = split_at(block.text, answer.start_char, answer.end_char)
            text = marked(in_a_line(parts, int(FULL * OWN_LINES * width(console))), console)
        else:
            text = Text(cut(plain(block.text), int(FULL * OTHER_LINES * width(console))), style="dim")
        show(console, text)


def show(console: Console, text: Text) -> None:
    """Print a text, each of its lines indented."""
    for line in text.wrap(console, max(console.width - INDENT, 1)):
        line.rstrip()
        console.print(Text.assemble(" " * INDENT, line))


def width(console: Console) -> int:
    return max(console.width - INDENT - BRACKETS, 1)


def verdict(answer: Answer, judge: Judge) -> Text:
    text, confidence = plain(answer.text), judge.confidence(answer)
    share = f"p(y|x) {answer.probability:.3g}" if confidence is None else f"P(right) {confidence:.3g}"
    if judge.found(answer):
        return Text.assemble((text, "bold green"), f"   {share}")
    best = (" The best of what was read, ", (text, "bold"), f", has {share}, below {judge.threshold:.3g}")
    return Text.assemble(("Not found.", "bold yellow"), *best)


def name(block: RetrievedBlock) -> str:
    """A block by its document and, where that has one, its title, "Uruguay (uy/Government)"."""
    if block.title and block.title != block.document:
        return f"{' '.join(block.title.split())} ({block.document})"
    return block.document if block.document_start is not None else f"block {block.document}"


def ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


# ---- a text in the room there is


def plain(text: str) -> str:
    """`text` in one line."""
    return printable(" ".join(text.split()))


def split_at(text: str, start: int, end: int) -> Parts:
    """What stands before, at and after text[start:end], all white space single spaces."""
    whole = " ".join(text.split())
    start, end = (len(" ".join(f"{text[:at]}|".split())) - 1 for at in (start, end))
    return whole[:start], whole[start:end], whole[end:]


def sentence(text: str, start: int, end: int) -> Parts:
    """The sentence of text[start:end], or the sentences that it lies in, parted as `split_at` parts the whole."""
    before, answer, after = split_at(text, start, end)
    first, stop = 0, 0
    for one in split_sentences(before + answer + after):
        stop += len(one)
        if stop <= len(before):
            first = stop + 1  # the space
        if stop >= len(before) + len(answer):
            break
        stop += 1
    return before[first:], answer, after[: max(stop - len(before) - len(answer), 0)]


def in_a_line(parts: Parts, room: int) -> Parts:
    """Parts of a text cut to at most `room` columns in all, the answer whole if it can be, about in the middle."""
    before, answer, after = map(printable, parts)
    answer = cut(answer, room)
    room -= cell_len(answer)
    left = max(room // 2, room - cell_len(after))
    before = cut(before[::-1], left)[::-1]
    return before, answer, cut(after, room - cell_len(before))


def cut(text: str, room: int) -> str:
    """`text`, or what of it goes into `room` columns with an ellipsis."""
    if cell_len(text) <= room:
        return text
    return f"{set_cell_size(text, room - 2).rstrip()} …" if room > 2 else "…"[:room]


def marked(parts: Parts, console: Console) -> Text:
    """The parts as one text, the answer in colour, or in brackets where colours are not shown."""
    before, answer, after = parts
    opening, closing = ("", "") if console.color_system and not console.no_color else ("[[", "]]")
    return Text.assemble(before, opening, (answer, "bold black on green"), closing, after)
