"""NaN and infinity are errors that name the component, not black pictures.

They come from weights that are damaged or from a component that leaves the range of its precision
(fp16 ends at 65504). A scheduler carries them on to the end, and there they are clamped to black.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

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
