"""A question's answer as one HTML file: the page, its style and scripts, and the numbers it draws, with no server."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from ..search.mips import COMPRESSIONS
from .running import Running

FILES = Path(__file__).parent / "static"


def self_contained(running: Running, question: str, k: int | None = None) -> str:
    """The file's text: what the Ask and Search views show of a question. It loads nothing, and asks no model.

    Raises:
        ValueError: as `asked.ask`.
    """
    return with_data(data_of(running, question, k))


def data_of(running: Running, question: str, k: int | None) -> dict[str, Any]:
    """What the scripts would have asked for: the answer, attention from each block's best span, each kind of search."""
    with running.lock:
        answered = running.ask(question, k)
        attention = []
        for block in answered["blocks"]:
            first = block["prefix"] + block["best"]["first"]
            attention.append(running.attention(question, block["id"], first, first + block["best"]["width"] - 1))
        searches = {str(compression): running.search(question, k, compression) for compression in COMPRESSIONS}
        return {"about": running.about(), "ask": answered, "attention": attention, "search": searches}


def with_data(data: dict[str, Any]) -> str:
    """The page with style, scripts and data within."""
    page = (FILES / "index.html").read_text(encoding="utf-8")
    style = (FILES / "page.css").read_text(encoding="utf-8")
    page = re.sub(r'<link rel="stylesheet"[^>]*>', lambda _: f"<style>{style}</style>", page)
    scripts: list[str] = []

    def script(match: re.Match) -> str:
        scripts.append((FILES / match[1]).read_text(encoding="utf-8"))
        return f"<script>{scripts[-1]}</script>"

    page = re.sub(r'<script src="([\w.]+)"></script>', script, page)
    # "<" is written as its escape, so that no text ends the element; JSON says the same either way.
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    hashes = " ".join(f"'{digest(code)}'" for code in scripts)
    policy = f"default-src 'none'; script-src {hashes}; style-src '{digest(style)}'; img-src data:"
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    page = page.replace("<head>", f"<head>\n{head}", 1)
    return page.replace("</main>", f'</main>\n<script type="application/json" id="saved">{text}</script>', 1)


def digest(code: str) -> str:
    """As a Content-Security-Policy names what is within a page."""
    return "sha256-" + base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
