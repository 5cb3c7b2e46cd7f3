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


class Absent:
    """Stands for the oracle: its parts can be named at will, and what calls one is skipped."""

    __doc__ = ""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent()

    def __call__(self, *args, **kwargs):
        pytest.skip(f"the oracle, transformers {VERSION}, is not installed (found: {installed()})")


if installed() == VERSION:
    import transformers

    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    # Its documentation names the activation, its table lacks it.
    transformers.activations.ACT2FN["selu"] = torch.nn.SELU
    realm_modeling = transformers.models.realm.modeling_realm
    TheirRetriever = transformers.models.realm.retrieval_realm.RealmRetriever
else:
    transformers = realm_modeling = TheirRetriever = Absent()

__all__ = ["TheirRetriever", "realm_modeling", "transformers"]
