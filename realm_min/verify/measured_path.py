"""What the measured paths share: values converted, parts of a model loaded, whole models called."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import RealmConfig
from .stages import Stage, StateDict

# What the forwards of our models and of transformers' call the inputs that `stages.py` names.
ARGUMENTS = {
    "ids": "input_ids",
    "mask": "attention_mask",
    "types": "token_type_ids",
    "relevance": "relevance_score",
    "labels": "labels",
    "mlm mask": "mlm_mask",
    "block mask": "block_mask",
    "starts": "start_positions",
    "ends": "end_positions",
    "has answers": "has_answers",
}


class MeasuredPath:
    """A path whose errors are measured. It loads one part of a model at a time.

    name: heads its columns. tolerance: bound on relative errors, None for each stage's own.
    """

    name: str
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    tolerance: float | None = None

    def __init__(self, kind: str, config: RealmConfig, state_dict: StateDict) -> None:
        self.kind, self.config, self.state_dict = kind, config, state_dict
        self.loaded: tuple[str, Any] | None = None

    def compute(self, stage: Stage, *values: np.ndarray) -> np.ndarray | None:
        """The stage's value; None where this path has no way to compute it alone."""
        part = None
        if stage.weights or stage.repeats or stage.operation in self.needs_part:
            if self.loaded is None or self.loaded[0] != stage.part:
                self.loaded = None  # free the last part before the next is allocated
                self.loaded = (stage.part, self.load(stage.part))
            part = self.loaded[1]
        tensors = [self.tensor(value) for value in values]
        with torch.no_grad():
            found = getattr(self, stage.operation)(part, stage, *tensors)
        if found is None:
            return None
        found = found.detach().cpu()
        return (found.double() if found.is_floating_point() else found).numpy()

    # Operations without weights of their own that still go through the model.
    needs_part: tuple[str, ...] = ()

    def tensor(self, value: np.ndarray) -> Tensor:
        found = torch.from_numpy(np.ascontiguousarray(value)).to(self.device)
        return found.to(self.dtype) if found.is_floating_point() else found

    def load(self, part: str) -> Any:
        raise NotImplementedError

    def release(self) -> None:
        """Free the part that is loaded."""
        self.loaded = None

    # The operations that call a whole part: ours and transformers' take and give the same.

    def call_embedder(self, model: Any, stage: Stage, *inputs: Tensor) -> Tensor:
        return call(model, stage, *inputs).projected_score

    def call_mlm_logits(self, model: Any, stage: Stage, *inputs: Tensor) -> Tensor:
        return call(model, stage, *inputs).logits

    def call_mlm_loss(self, model: Any, stage: Stage, *inputs: Tensor) -> Tensor:
        return call(model, stage, *inputs).loss

    def call_reader_losses(self, model: Any, stage: Stage, *inputs: Tensor) -> Tensor:
        return losses_of(call(model, stage, *inputs))

    def call_answer(self, model: Any, stage: Stage, ids: Tensor, *inputs: Tensor) -> Tensor:
        output = call(model, stage, ids, *inputs)
        widest, tokens = self.config.max_span_width, ids.shape[1]
        return choice(output.block_idx, output.candidate, widest * tokens - widest * (widest - 1) // 2)


def call(model: Any, stage: Stage, *inputs: Tensor) -> Any:
    """The output of a whole part's forward, called with what the stage reads."""
    names = [ARGUMENTS[name.partition(":")[2]] for name in stage.reads]
    return model(**dict(zip(names, inputs, strict=True)), return_dict=True)


def losses_of(output: Any) -> Tensor:
    """The retriever's and the reader's loss of a reader's output, [2]."""
    return torch.stack([output.retriever_loss, output.reader_loss])


def choice(block: Tensor, candidate: Tensor, spans: int) -> Tensor:
    """The number of a span among those of all blocks laid end to end, [1, 1]."""
    return (block * spans + candidate).reshape(1, 1)
