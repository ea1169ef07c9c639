"""How an adapter's layers are scaled, where the file itself has no alphas: its configuration.

diffusers stores peft's configuration in the file's header, peft in ``adapter_config.json`` beside
it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from todo_compile.errors import ModelError
from todo_compile.foreign import ForeignError, parse_object, read_object
from todo_compile.models.lora_names import component_of, literal_pattern

_HEADER = "lora_adapter_metadata"
_BESIDE = "adapter_config.json"
_COMPONENTS = (
    "unet",
    "transformer",
    "transformer_2",
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
)


@dataclass(frozen=True)
class Scaling:
    """What a configuration says of one component.

    Attributes:
        alpha: of all layers.
        patterns: alphas of single layers.
        stabilised: alpha is divided by the rank's root (Kalajdzievski, arXiv 2312.03732).
        rank: as configured; counts where a layer's parts have none (LoKr in full matrices).
    """

    alpha: float
    patterns: Mapping[str, float] = field(default_factory=dict[str, float], hash=False)
    stabilised: bool = False
    rank: int | None = None

    def factor(self, layer: str, rank: int | None) -> float:
        """alpha / rank of a layer.

        Raises:
            ValueError: the configuration does not say it in a way that is understood.
        """
        found = literal_pattern(self.patterns, layer)
        alpha = self.alpha if found is None else float(found)
        rank = rank or self.rank
        if rank is None:
            raise ValueError(f"{layer} has no rank")
        return alpha / (math.sqrt(rank) if self.stabilised else rank)

    def describe(self) -> dict[str, Any]:
        """What decides whether an output can be reused."""
        return {
            "alpha": self.alpha,
            "alpha_pattern": dict(self.patterns),
            "use_rslora": self.stabilised,
            "r": self.rank,
        }


def read_scalings(path: Path, header: Mapping[str, str], *, beside: bool) -> dict[str, Scaling]:
    """By component (`lora_names.component_of`), as far as there is a configuration.

    Args:
        path: the adapter's file.
        header: texts of its header.
        beside: the file has peft's own names, so that the scale must be beside it.

    Raises:
        ModelError: damaged, or missing although needed.
    """
    try:
        if _HEADER in header:
            values = parse_object(header[_HEADER])
            found = {name: _scaling(_of(values, name)) for name in _COMPONENTS}
        elif beside:
            scaling = _scaling(read_object(path.parent / _BESIDE, within=path.parent))
            found = {"unet": scaling, "text_encoder": scaling}
        else:
            return {}
    except FileNotFoundError as error:
        raise ModelError(
            f"{path} is an adapter as peft saves it, and the {_BESIDE} that says how it is scaled "
            "is not beside it.",
            remedy=f"Put {_BESIDE} into the same folder.",
        ) from error
    except (OSError, ForeignError, ValueError, TypeError) as error:
        raise ModelError(
            f"{path} has a damaged adapter configuration: {error}.", remedy="Save the LoRA again."
        ) from error
    return {component_of(name): scaling for name, scaling in found.items() if scaling is not None}


def _of(values: Mapping[str, Any], component: str) -> dict[str, Any]:
    prefix = f"{component}."
    return {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}


def _scaling(values: Mapping[str, Any]) -> Scaling | None:
    """Of peft's LoraConfig (``lora_alpha``), LoHaConfig or LoKrConfig (``alpha``)."""
    alpha = values.get("lora_alpha", values.get("alpha"))
    if alpha is None:
        return None
    patterns = values.get("alpha_pattern") or {}
    rank = values.get("r")
    return Scaling(
        float(alpha),
        {str(name): float(value) for name, value in dict(patterns).items()},
        bool(values.get("use_rslora")),
        int(rank) if rank is not None else None,
    )
