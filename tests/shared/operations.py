"""What the host does of a kernel's work: torch's operations and Triton's launches, counted under the interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime import interpreter


class Operations(TorchDispatchMode):
    """Names of torch's operations, in order, and the kernels' names between them."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@contextmanager
def counted(monkeypatch, module: ModuleType, suffix: str = "_kernel") -> Iterator[list[str]]:
    """The names of operations and of `module`'s kernels, as they run while the block does."""
    operations = Operations()

    class Launched:
        def __init__(self, name: str):
            self.name, self.kernel = name, getattr(module, name)

        def __getitem__(self, grid: Any) -> Any:
            operations.names.append(self.name)
            return self.kernel[grid]

    class Quiet(interpreter.GridExecutor):
        """The interpreter copies tensors from the host to the host: that is not counted."""

        def __call__(self, *args: Any, **kwargs: Any) -> None:
            before = len(operations.names)
            super().__call__(*args, **kwargs)
            del operations.names[before:]

    with monkeypatch.context() as patch:
        for name in [name for name in vars(module) if name.endswith(suffix)]:
            patch.setattr(module, name, Launched(name))
        patch.setattr(interpreter, "GridExecutor", Quiet)
        with operations:
            yield operations.names
