"""Bounds of a model's configuration, before and while a module is made of it.

A configuration from elsewhere can ask for a million layers, channels below zero or a table of a
petabyte. What its numbers are called says what they count; how much they make is counted while it
is made, before memory is taken.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, cast

from todo_compile.errors import ModelError

MAX_TENSORS = 10_000
"""Parameters and buffers of one module: Flux has 780, SDXL 1,700."""
MAX_ELEMENTS = 2**37
"""In all of them: 275 GB in fp16."""

_Bounds = tuple[int, int]
# The first that is found in a key counts. Whatever else is called so in diffusers and transformers
# is no number (types, names, switches) or may be anything that is finite.
_INTEGERS: tuple[tuple[re.Pattern[str], _Bounds], ...] = (
    (re.compile(r"^sample_size$"), (1, 2**20)),  # of sound too
    (re.compile(r"^num_attention_heads$"), (-1, 2**31 - 1)),  # -1: a level without attention
    (re.compile(r"layers_per_block"), (1, 512)),
    (re.compile(r"layers|_blocks$"), (0, 512)),
    (re.compile(r"^extra_.*channels$"), (0, 2**31 - 1)),
    (re.compile(r"channels$|_dims?$|_heads$|_groups$|_size$|_kernel$|num_embeds"), (1, 2**31 - 1)),
    (re.compile(r"_padding$|_embeddings$"), (0, 2**31 - 1)),
)
_WHICH = re.compile(r"^(?!num_).*layers$")
"""A list by such a name says which layers are meant, as SD3.5's ``dual_attention_layers`` does; it
may be empty."""
_NUMBERS = re.compile(r"_eps$|dropout|scale_factor$|scaling_factor$|shift_factor$")
_MAX_LIST = 4096
_MAX_LEVELS = 32  # 2³² pixels a latent cell
_MAX_NESTED = 4


def check_config(config: Mapping[str, Any], where: str = "config.json") -> None:
    """Refuse a configuration that no module can be made of.

    Args:
        config: of a component, as read.
        where: its name, for the message.

    Raises:
        ModelError: a number that is not finite, not whole or out of its key's bounds; a list that
            is too long.
    """
    for key, value in config.items():
        bounds = next((bounds for pattern, bounds in _INTEGERS if pattern.search(key)), None)
        if isinstance(value, (list, tuple)) and _WHICH.search(key):
            bounds = None
        wrong = _wrong(key, value, bounds)
        if wrong is not None:
            raise ModelError(
                f"{key} in the model's {where} {wrong}.",
                remedy="Compare it with the model's origin.",
            )


def _wrong(key: str, value: object, bounds: _Bounds | None, depth: int = 0) -> str | None:
    """What is wrong with a value, a clause; None if nothing is."""
    if isinstance(value, (list, tuple)):
        items = cast("list[object]", value)
        most = _MAX_LEVELS if bounds is not None or key.endswith("_types") else _MAX_LIST
        if len(items) > most:
            return f"has {len(items):,} entries; {most:,} are possible"
        if bounds is not None and not items:
            return "is an empty list"
        if depth == _MAX_NESTED:
            return "is nested too deeply"
        found = (_wrong(key, one, bounds, depth + 1) for one in items)
        return next((one for one in found if one is not None), None)
    if isinstance(value, float) and not math.isfinite(value):
        return f"is {value}, no number"
    if value is None or isinstance(value, (bool, dict)):
        return None  # a switch by a similar name, or a table that only its library reads
    if bounds is not None:
        least, most = bounds
        if not isinstance(value, int):
            return f"is {value!r:.40}, no whole number"
        if not least <= value <= most:
            return f"is {value!r:.40}; {least} to {most:,} are possible"
    elif _NUMBERS.search(key) and not isinstance(value, (int, float)):
        return f"is {value!r:.40}, no number"
    return None


class Account:
    """Counts the tensors of a module while it is made."""

    def __init__(self) -> None:
        self._tensors = 0
        self._elements = 0

    def add(self, elements: int) -> None:
        """One more tensor, not made yet.

        Raises:
            ModelError: it would be too much.
        """
        self._tensors += 1
        self._elements += elements
        if self._tensors > MAX_TENSORS or self._elements > MAX_ELEMENTS:
            much = (
                f"{self._elements / 1e9:,.0f} billion parameters"
                if self._elements > MAX_ELEMENTS
                else f"more than {MAX_TENSORS:,} tensors"
            )
            raise ModelError(
                f"The model's config.json describes a module of {much}.",
                remedy="Compare it with the model's origin: no model is as large.",
            )
