"""The site of these documents, for Sphinx: `make docs`. Its front page is the README."""

from pathlib import Path

project, author = "realm-min", "The realm-min maintainers"
extensions = ["myst_parser"]
root_doc = "README"
include_patterns = ["*.md", "docs/*.md"]
exclude_patterns = [".*", "out", "build", "dist", "realm_min", "kernels", "tests", "notebooks", "benchmarks"]
myst_heading_anchors = 3  # links name headings as they do in a repository
html_theme, html_title = "furo", project
html_copy_source = html_show_sourcelink = False


def with_contents(app: object, docname: str, source: list[str]) -> None:
    """Give the front page what a site has beside it and a repository has not: the list of all pages."""
    if docname == root_doc:
        pages = sorted(path.stem for path in Path(__file__).parent.glob("*.md"))
        others = ("MODEL_CARD", "CONTRIBUTING", "CHANGELOG")
        listed = "\n".join([*(f"docs/{page}" for page in pages), *others])
        source[0] += f"\n```{{toctree}}\n:hidden:\n:maxdepth: 1\n\n{listed}\n```\n"


def setup(app: object) -> None:
    app.connect("source-read", with_contents)  # type: ignore[attr-defined]
