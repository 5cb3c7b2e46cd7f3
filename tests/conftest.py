"""What every test module shares."""

import os
from collections.abc import Iterator
from pathlib import Path

# Kernels run under Triton's interpreter here; the choice is made when they are imported.
os.environ.setdefault("TRITON_INTERPRET", "1")
# One thread here and in what is started: tensors are small, and threads that spin until a busy machine gives the others
# a core take many times longer than one alone. Tests of threads ask for theirs.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAYON_NUM_THREADS", "1")  # those of the tokenizers library
# transformers imports TensorFlow where that is installed, as `make test-tf` does, and Triton that is imported after
# TensorFlow ends the process (a segmentation fault of Triton 3.7 and TensorFlow 2.21).
os.environ.setdefault("USE_TF", "0")

import processes  # noqa: E402
import pytest  # noqa: E402

import realm_min  # noqa: E402

# These files take a minute each: they come first, so that no worker is left with one when the others are done.
LONGEST = (
    "data_parallel on_a_gpu tokenizer sharded_index textbook distributed_index models_drawn default_model mips".split()
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))  # stable: the others stay as they are


@pytest.fixture(autouse=True, scope="module")
def torch_seed_of_fixtures() -> None:
    """What a module's fixtures draw from torch's global generator is the same after any other module."""
    import torch  # here: the process that hands out the files needs none of it, and takes seconds to import it

    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def torch_seed(torch_seed_of_fixtures: None) -> None:
    """Tests that draw from torch's global generator draw the same in any order."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    """What a test started and did not wait for, since it failed, ends with it."""
    yield
    processes.kill_all()


@pytest.fixture(scope="session")
def vocabulary() -> Path:
    """The uncased WordPiece vocabulary that ships with the package."""
    return Path(realm_min.__file__).parent / "assets" / "vocab.txt"


@pytest.fixture(scope="session")
def default_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache for XDG_CACHE_HOME that holds the default model, made once for all processes of the suite."""
    from realm_min.app import default_model

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "default-cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        default_model.load()
    return folder
