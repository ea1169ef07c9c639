"""How ``--help`` names the values of options; typer would show types: ``<bool>``, ``<str>``."""

from __future__ import annotations

import inspect
from typing import Any

from typer.core import TyperCommand

# What stands for a value where the option's own name would not help.
_VALUES = {
    "res": "N|WxH",
    "factors": "N,N,…|off",
    "vae_factors": "N|off",
    "kv_tokens": "N",
    "masks": "prove|pool",
    "steps": "N",
    "seeds": "N",
    "seed": "N",
    "jobs": "N",
    "opset": "N",
    "dense_after": "SHARE",
    "guidance": "X",
    "dump": "FOLDER",
    "timing_cache": "FILE",
    "plot": "FILE",
    "budget": "drift=X|speedup=X",
    "candidates": "SAMPLING:N,N,…",
    "phases": "N",
    "disable": "GLOB",
    "prompts": "FILE",
    "scores": "FILE",
    "pairs": "N",
    "batch": "N",
    "text_tokens": "N",
    "frames": "N",
    "retries": "N",
    "precision": "fp16|bf16|fp32",
    "vae_precision": "fp16|bf16|fp32",
    "format": "tensorrt|onnx",
    "verify": "full|size",
    "model": "NAME|PATH",
    "module": "FILE.py:FACTORY",
    "weights": "auto|random|FILE",
    "plan": "FILE",
    "image": "FILE",
    "lora": "FILE[:SCALE]",
    "ip_adapter": "FILE[:SCALE]",
    "bundle": "FOLDER",
    "dense_bundle": "FOLDER",
    "logs": "FOLDER",
    "prompt": "TEXT",
    "negative_prompt": "TEXT",
}


def name_values(params: list[Any]) -> list[Any]:
    """Show options as people write them: a flag alone, a value by a name that says something."""
    for param in params:
        if param.param_type_name == "argument":
            param.metavar = param.metavar or (param.name or "").upper()
            param.display_type_rich = _nothing  # <path>
        elif param.param_type_name == "option" and param.metavar is None:
            flag = getattr(param, "is_flag", False) or getattr(param, "count", False)
            param.metavar = (
                "" if flag else _VALUES.get(param.name or "", (param.name or "").upper())
            )
    return params


def _nothing(ctx: Any) -> None:
    """What stands beside an argument's name."""
    del ctx


class Command(TyperCommand):
    """A command whose help names values, and breaks its paragraphs where the terminal does."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # What is indented (a file of builds) keeps its lines.
        parts = inspect.cleandoc(self.help or "").split("\n\n")
        self.help = "\n\n".join(p if "\n " in f"\n{p}" else p.replace("\n", " ") for p in parts)

    def get_params(self, ctx: Any) -> list[Any]:
        return name_values(super().get_params(ctx))
