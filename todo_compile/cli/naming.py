"""How ``--help`` names the values of options; typer would show types: ``<bool>``, ``<str>``."""

from __future__ import annotations

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
}


def name_values(params: list[Any]) -> list[Any]:
    """Show options as people write them: a flag alone, a value by a name that says something."""
    for param in params:
        if param.param_type_name == "option" and param.metavar is None:
            flag = getattr(param, "is_flag", False) or getattr(param, "count", False)
            param.metavar = (
                "" if flag else _VALUES.get(param.name or "", (param.name or "").upper())
            )
    return params


class Command(TyperCommand):
    """A command whose help names values."""

    def get_params(self, ctx: Any) -> list[Any]:
        return name_values(super().get_params(ctx))
