"""The title and the visible text of an HTML page, in one pass.

A page may be broken in any way, and is read in linear time all the same: Python's own parser, before its releases of
2025, looks for the end of what never ends anew from every "<" on, and takes hours for a megabyte of them.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import NamedTuple

SILENT = frozenset("script style template noscript svg".split())
RAW = frozenset(("script", "style"))  # in which "<" begins nothing but their own end
LINES = frozenset(
    "address article aside blockquote br caption dd details div dl dt figcaption figure footer form h1 h2 h3 h4 h5 "
    "h6 header hr li main nav ol option p pre section summary table title tr ul".split()
)
CELLS = frozenset(("td", "th"))

# A tag, up to its ">" or the page's end; it matches from wherever a tag begins, so nothing is ever tried twice.
_TAG = re.compile(r"""<(/?)([a-zA-Z][^\s/>]*)((?:[^>=]+|=\s*(?:"[^"]*"|'[^']*')|=)*)(>?)""")
_EMPTY = re.compile(r"""(?:^|[\s"'])/$""")  # of <br/>, not of <a href=x/>
_ENDS = {name: re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE) for name in RAW}
_LONG_REFERENCE = re.compile("&(?=#[xX]?[0-9a-fA-F]{8})")  # to no character: Python reads it digit by digit


class Tag(NamedTuple):
    name: str
    kind: str  # "start", "end", or "both": <br/>


def title_and_text(page: str) -> tuple[str, str]:
    """Its title, and its text: a line for each paragraph, item, heading or row."""
    title, parts = "", []
    depth = dict.fromkeys((*SILENT, "title"), 0)  # how many of each are open
    for piece in _pieces(page):
        if isinstance(piece, Tag):
            name, kind = piece
            if name in depth and kind != "both":
                depth[name] = max(depth[name] + (1 if kind == "start" else -1), 0)
            parts.append("\n" if name in LINES else " " if name in CELLS and kind == "start" else "")
            continue
        text = " ".join(re.split(r"[\n\r]+", html.unescape(_LONG_REFERENCE.sub("&amp;", piece))))
        if any(depth[name] for name in SILENT):
            continue
        if depth["title"]:
            title += text
        else:
            parts.append(text)
    lines = (" ".join(line.split()) for line in "".join(parts).split("\n"))
    return title.strip(), "\n".join(line for line in lines if line)


def _pieces(page: str) -> Iterator[str | Tag]:
    """Tags, and the texts between them. What ends nowhere is text, from its beginning on."""
    at = begin = 0  # the place that is looked at, and where the text before it begins
    last_comment = page.rfind("-->")
    while (at := page.find("<", at)) >= 0:
        if tag := _TAG.match(page, at):
            if not tag[4]:
                break
            yield page[begin:at]
            name = tag[2].lower()
            kind = "end" if tag[1] else "both" if _EMPTY.search(tag[3]) else "start"
            yield Tag(name, kind)
            at = begin = tag.end()
            if name in RAW and kind == "start":
                end = _ENDS[name].search(page, at)
                at = begin = end.start() if end else len(page)
        elif page.startswith(("<!", "<?", "</"), at):  # a comment, or what is read as one
            long = page.startswith("<!--", at) and at + 4 <= last_comment
            end = page.index("-->", at + 4) + 3 if long else page.find(">", at) + 1
            if not end:
                break
            yield page[begin:at]
            at = begin = end
        else:
            at += 1
    yield page[begin:]
