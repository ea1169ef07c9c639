"""NaN and infinity are errors that name the component, not black pictures.

They come from weights that are damaged or from a component that leaves the range of its precision
(fp16 ends at 65504). A scheduler carries them on to the end, and there they are clamped to black.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from todo_compile.errors import EngineError


class NotFiniteError(EngineError):
    """A component gave NaN or infinity.

    Args:
        where: what gave it.
        step: of the drawing; empty if it is not known.
    """

    def __init__(self, where: str, step: str = "") -> None:
        at = f" at {step}" if step else ""
        super().__init__(
            f"NaN or infinity came out of {where}{at}.",
            remedy="Take --precision fp32 or bf16 for it (--vae-precision of a bundle's decoder): "
            "fp16 ends at 65504. If it is fp32 already, the weights or the inputs are damaged.",
        )
        self.where = where


def check_finite(values: Iterable[Tensor], where: str) -> None:
    """Refuse outputs with NaN or infinity.

    Args:
        values: tensors; those of whole numbers pass.
        where: what gave them.

    Raises:
        NotFiniteError: one has some.
    """
    for value in values:
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise NotFiniteError(where)


@contextmanager
def finite_modules(pipeline: Any) -> Generator[None]:
    """Check what a pipeline's torch modules give while it draws; compiled ones do so themselves."""
    from todo_compile.runtime.component import Component

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
