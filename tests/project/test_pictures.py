"""The pictures of docs/ are those that the code draws now, and what they show stays on them."""

import re
from pathlib import Path
from xml.etree import ElementTree

import draw
import numpy as np
import pytest

from realm_min import textbook

NUMBER = re.compile(r"(?<![\w.#])\d+(?:\.\d+)?")
by_name = pytest.mark.parametrize("name", draw.PICTURES)


@by_name
def test_stored_pictures_are_those_of_the_code(name):
    """To a pixel, since another processor may round otherwise."""
    found, stored = draw.PICTURES[name]().source(), (draw.FOLDER / name).read_text(encoding="utf-8")
    assert NUMBER.sub("#", found) == NUMBER.sub("#", stored), f"{name} is out of date: make pictures"
    numbers = ([float(number) for number in NUMBER.findall(text)] for text in (found, stored))
    assert np.allclose(*numbers, atol=1.01), f"{name} is out of date: make pictures"


@by_name
def test_pictures_can_be_read_aloud_and_fit_their_page(name):
    root = ElementTree.fromstring((draw.FOLDER / name).read_text(encoding="utf-8"))
    assert root.get("role") == "img" and len(root.get("aria-label").split()) > 30
    width, height = float(root.get("width")), float(root.get("height"))
    texts = [node for node in root if node.tag.endswith("text")]
    assert len(texts) > 5
    for node in texts:
        size = 12.0 if "title" in node.get("class") else 8.0  # pixels that a letter takes at most
        half = len(node.text) * size / (2 if "middle" in node.get("class") or "name" in node.get("class") else 1)
        x, y = float(node.get("x")), float(node.get("y"))
        assert 0 < y < height and 0 < x and x + half <= width, node.text
    page = (Path(draw.FOLDER).parent / "pictures.md").read_text(encoding="utf-8")
    assert f"](pictures/{name})" in page


def test_a_picture_follows_the_code(monkeypatch):
    """Another order of spans is drawn as it is; a backward that leaves a part out is not drawn at all."""
    firsts, lasts = draw.span_candidates(7, 4)
    monkeypatch.setattr(draw, "span_candidates", lambda tokens, widest: (firsts.flip(0), lasts.flip(0)))
    assert draw.span_triangle().source() != (draw.FOLDER / "span-triangle.svg").read_text(encoding="utf-8")
    short = textbook.layer_norm_backward
    monkeypatch.setattr(textbook, "layer_backward", lambda dx, kept, g: short(dx, kept[-1], g))
    with pytest.raises(AssertionError, match="the backward is not the forward from the last to the first"):
        draw.layer()


def test_no_plot_asks_for_small_letters():
    """What says nothing of sizes has those of `large_letters`."""
    root, checked = Path(draw.FOLDER).parents[1], 0
    for path in (*root.glob("realm_min/**/*.py"), *root.glob("kernels/**/*.py"), root / "benchmarks/realm_report.py"):
        text = path.read_text(encoding="utf-8")
        assert not [size for size in re.findall(r"fontsize=(\d+)", text) if int(size) < 11], path
        if "save_figure(figure" in text and path.name != "figures.py":
            assert "large_letters()" in text, path
            checked += 1
    assert checked == 6
