"""Weights that a case does not read are taken off its module: capturing takes time for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class _Readers(TorchFunctionMode):
    """Notes every tensor that an operation is given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        for value in (*args, *kwargs.values()):
            for one in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(one, Tensor):
                    self.seen.add(id(one))
        return func(*args, **kwargs)


def run_and_prune(model: nn.Module, given: Sequence[Tensor]) -> Any:
    """The model's output; what was not read is no longer a parameter or buffer afterwards."""
    with _Readers() as readers:
        result = model(*given)
    for part in model.modules():
        for name, value in [*part.named_parameters(recurse=False)]:
            if id(value) not in readers.seen:
                setattr(part, name, None)
        for name, value in [*part.named_buffers(recurse=False)]:
            if id(value) not in readers.seen:
                setattr(part, name, None)
    return result
