"""Precisions by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from todo_compile.errors import ConfigError

if TYPE_CHECKING:
    import torch

PRECISIONS = ("fp16", "bf16", "fp32")


def dtype_of(precision: str) -> torch.dtype:
    """The torch dtype of ``fp16``, ``bf16`` or ``fp32``.

    Raises:
        ConfigError: anything else.
    """
    import torch

    names = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
    if precision not in names:
        raise ConfigError(
            f"Unknown precision {precision!r}.", remedy=f"Known: {', '.join(PRECISIONS)}."
        )
    return names[precision]
