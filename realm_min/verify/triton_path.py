"""The kernels' path: as torch's, but for the two operations that have Triton kernels."""

from __future__ import annotations

import torch

from ..config import RealmConfig
from .stages import StateDict
from .torch_path import TorchPath


class TritonPath(TorchPath):
    """The torch path on a GPU, span logits and search by the Triton kernels.

    Under TRITON_INTERPRET=1 the kernels are interpreted on the CPU, slowly; the rest is then the CPU's torch path.
    """

    def __init__(self, kind: str, config: RealmConfig, state_dict: StateDict) -> None:
        super().__init__(kind, config, state_dict, name="triton")
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        from realm_min.kernels import mips_topk as search
        from realm_min.kernels import span_logits as logits

        self.search, self.all_span_logits = search.mips_topk, logits.span_logits
