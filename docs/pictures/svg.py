"""Boxes, arrows and text as SVG: as much of it as the pictures of this folder need."""

from __future__ import annotations

from xml.sax.saxutils import escape

STYLE = """
text { font-family: "DejaVu Sans", Verdana, Arial, sans-serif; font-size: 15px; fill: #1d2733; }
.title { font-size: 20px; font-weight: bold; }
.name { font-weight: bold; text-anchor: middle; }
.middle { text-anchor: middle; }
.shape, .code { font-family: "DejaVu Sans Mono", Menlo, Consolas, monospace; }
.shape { font-size: 14px; fill: #3a4856; }
.back, .back.name { fill: #a3231b; }
.page { fill: #ffffff; }
.box { fill: #dcebf7; stroke: #3a6f9f; }
.hot { fill: #ffe3b8; stroke: #b26a00; }
.data { fill: #f4f6f8; stroke: #6b7884; }
.gradient { fill: #fbe3e1; stroke: #b3261e; }
.kept { fill: #cfe8d0; stroke: #2e7d32; }
.vain { fill: #ffe3b8; stroke: #b26a00; }
.out { fill: #eceff1; stroke: #90a0ac; }
.flow, .flowback, .line { fill: none; stroke-width: 1.8; stroke: #1d2733; }
.flow { marker-end: url(#black); }
.flowback { stroke: #b3261e; stroke-dasharray: 6 4; marker-end: url(#red); }
.kept-line { fill: none; stroke: #90a0ac; stroke-width: 1.2; marker-end: url(#grey); }
.threshold { stroke: #b3261e; stroke-width: 2; stroke-dasharray: 7 4; }
"""
MARKERS = "".join(
    f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
    f'orient="auto"><path d="M0 0 L10 5 L0 10 z" fill="{colour}"/></marker>'
    for name, colour in (("black", "#1d2733"), ("red", "#b3261e"), ("grey", "#90a0ac"))
)


class Picture:
    """A drawing of a width and height in pixels; `alternative` says in words what it shows."""

    def __init__(self, width: int, height: int, title: str, alternative: str) -> None:
        self.width, self.height, self.alternative = width, height, alternative
        self.parts: list[str] = []
        self.text(20, 34, title, "title")

    def text(self, x: float, y: float, text: str, kind: str = "") -> None:
        self.parts.append(f'<text class="{kind}" x="{x:.0f}" y="{y:.0f}">{escape(text)}</text>')

    def rect(self, x: float, y: float, width: float, height: float, kind: str, radius: int = 6) -> None:
        place = f'x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height:.0f}" rx="{radius}"'
        self.parts.append(f'<rect class="{kind}" {place}/>')

    def box(self, x: float, y: float, width: float, height: float, lines: list[tuple[str, str]], kind: str) -> None:
        """A box with lines of (text, kind), centred."""
        self.rect(x, y, width, height, kind)
        first = y + height / 2 - 10 * (len(lines) - 1) + 5
        for i, (text, of) in enumerate(lines):
            self.text(x + width / 2, first + 20 * i, text, f"{of} middle")

    def path(self, points: list[tuple[float, float]], kind: str = "flow") -> None:
        places = " L".join(f"{x:.0f} {y:.0f}" for x, y in points)
        self.parts.append(f'<path class="{kind}" d="M{places}"/>')

    def dot(self, x: float, y: float, radius: float, kind: str) -> None:
        self.parts.append(f'<circle class="{kind}" cx="{x:.0f}" cy="{y:.0f}" r="{radius:.1f}"/>')

    def source(self) -> str:
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" role="img" aria-label="{escape(self.alternative, {chr(34): "&quot;"})}">'
        )
        page = f'<rect class="page" width="{self.width}" height="{self.height}"/>'
        return "\n".join([head, f"<style>{STYLE}</style>", f"<defs>{MARKERS}</defs>", page, *self.parts, "</svg>", ""])
