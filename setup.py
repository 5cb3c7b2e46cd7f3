"""What setup.cfg cannot say: README.md for a package index, on whose page the files that it links are not there."""

import re
from pathlib import Path

from setuptools import setup


def page(readme: str) -> str:
    """The text with its pictures left out and links within the project turned into names; those to elsewhere stay."""
    readme = re.sub(r"!\[[^]]*\]\((?!https?:)[^)]*\)\n*", "", readme)
    readme = re.sub(r"\[((?:[^][]|\\.)*)\]\((?!https?:)([^)]*)\)", named, readme)
    return f"{readme}\nThe files named here are in the source distribution.\n"


def named(link: re.Match) -> str:
    text, target = link[1], link[2].partition("#")[0]
    return text if not target or Path(target).name in text else f"{text} (`{target}`)"


setup(long_description=page(Path(__file__).with_name("README.md").read_text(encoding="utf-8")))
