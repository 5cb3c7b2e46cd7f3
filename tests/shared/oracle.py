"""transformers 4.40.2, the oracle; a test that calls it is skipped where that version is not installed."""

from importlib.metadata import PackageNotFoundError, version

import pytest
import torch

VERSION = "4.40.2"


def installed() -> str:
    try:
        return version("transformers")
    except PackageNotFoundError:
        return "none"


MISSING = f"the oracle, transformers {VERSION}, is not installed (found: {installed()})"


class Absent:
    """Stands for the oracle: its parts can be named at will, and what calls one is skipped."""

    __doc__ = ""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent()

    def __getitem__(self, key):
        return self()

    def __call__(self, *args, **kwargs):
        pytest.skip(MISSING, allow_module_level=True)


if installed() == VERSION:
    import transformers

    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    # Its documentation names the activation, its table lacks it.
    transformers.activations.ACT2FN["selu"] = torch.nn.SELU
    realm_modeling = transformers.models.realm.modeling_realm
    TheirRetriever = transformers.models.realm.retrieval_realm.RealmRetriever
else:
    transformers = realm_modeling = TheirRetriever = Absent()

# For what calls it by itself, not through this module.
needs_oracle = pytest.mark.skipif(
    installed() != VERSION, reason=f"the oracle, transformers {VERSION}, is not installed"
)

__all__ = ["TheirRetriever", "needs_oracle", "realm_modeling", "transformers"]
