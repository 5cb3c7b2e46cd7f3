"""What every test module shares."""

import os
from pathlib import Path

# Kernels run under Triton's interpreter here; the choice is made when they are imported.
os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest  # noqa: E402

import realm_min  # noqa: E402


@pytest.fixture(scope="session")
def vocabulary() -> Path:
    """The uncased WordPiece vocabulary that ships with the package."""
    return Path(realm_min.__file__).parent / "assets" / "vocab.txt"
