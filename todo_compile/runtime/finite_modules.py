"""Torch modules of a pipeline, watched for NaN and infinity while it draws."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from todo_compile.runtime.component import Component
from todo_compile.runtime.finite import check_finite


@contextmanager
def finite_modules(pipeline: Any) -> Generator[None]:
    """Check what a pipeline's torch modules give while it draws; compiled ones do so themselves."""
    parts: dict[str, Any] = dict(getattr(pipeline, "components", {}))
    vae = parts.pop("vae", None)
    parts["vae decoder"] = getattr(vae, "decoder", None)  # `decode` calls it, and not `forward`
    handles = [
        part.register_forward_hook(_hook(name))
        for name, part in parts.items()
        if isinstance(part, nn.Module) and not isinstance(part, Component)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(name: str) -> Any:
    def check(module: nn.Module, _: object, output: Any) -> None:
        values: Any = output.values() if isinstance(output, dict) else output
        found: Any = (values,) if isinstance(values, Tensor) else values
        tensors = [value for value in found if isinstance(value, Tensor)]
        check_finite(tensors, f"{name} ({type(module).__name__})")

    return check
