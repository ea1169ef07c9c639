"""A denoiser of ComfyUI under our backend, with each of ComfyUI's kinds of attention."""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

import todo_compile
from comfyui_parts.denoisers import Kind, Segments
from tests import oracle

ATTENTIONS = {
    "pytorch": "attention_pytorch",
    "basic": "attention_basic",
    "split": "attention_split",
    "sub-quadratic": "attention_sub_quad",
}
"""Names in the table → functions of ComfyUI's."""
_CHOSEN = ("optimized_attention", "optimized_attention_masked")


@contextmanager
def attention_by(function: Callable[..., torch.Tensor]) -> Generator[None]:
    """Every module of ComfyUI that took its choice of attention by name has `function`."""
    before = [
        (module, name, getattr(module, name))
        for key, module in list(sys.modules.items())
        for name in _CHOSEN
        if key.startswith("comfy.ldm.") and hasattr(module, name)
    ]
    try:
        for module, name, _ in before:
            setattr(module, name, function)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


class Truth:
    """Attention by definition, keys and values subsampled where `segments` says so.

    Has the arguments of ComfyUI's attention functions. `seen` has the key count of each that was
    subsampled.
    """

    def __init__(self, segments: Segments) -> None:
        self.segments = segments
        self.seen: list[int] = []

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        heads: int,
        mask: torch.Tensor | None = None,
        attn_precision: torch.dtype | None = None,
        skip_reshape: bool = False,
        skip_output_reshape: bool = False,
        **_: Any,
    ) -> torch.Tensor:
        assert mask is None
        if not skip_reshape:
            # Some of its modules give heads and channels apart, some as one.
            parts = (t.flatten(2).unflatten(-1, (heads, -1)) for t in (q, k, v))
            q, k, v = (t.transpose(1, 2) for t in parts)
        if attn_precision is not None:
            q, k = q.to(attn_precision), k.to(attn_precision)
        keys = k.shape[-2]
        if keys in self.segments and q.shape[-2] == keys:
            before, grid, factors = self.segments[keys]
            k, v = (oracle.stand_ins(t, 2, grid, factors, "nearest", before) for t in (k, v))
            self.seen.append(keys)
        found = oracle.attention(q, k, v.to(q.dtype)).to(v.dtype)
        return found if skip_output_reshape else found.transpose(1, 2).flatten(2)


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative, over all elements."""
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


def row(kind: Kind, attention: str, model: nn.Module, inner: str = "eager") -> dict[str, Any]:
    """Sites, and the distance to the truth: to dense attention where nothing was rewritten."""
    functions = importlib.import_module("comfy.ldm.modules.attention")
    inputs = kind.inputs()
    torch.compiler.reset()
    todo_compile.clear_reports()
    with torch.inference_mode(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with attention_by(getattr(functions, ATTENTIONS[attention])):
            dense = model(**inputs, transformer_options={})
            run = torch.compile(
                model, backend="todo_inductor", options={"inner": inner, **kind.options}
            )
            found = run(**inputs, transformer_options={})
        truth = Truth(kind.segments)
        with attention_by(truth):
            wanted = model(**inputs, transformer_options={})
    reports = todo_compile.reports()
    sites = [site for report in reports for site in report.sites]
    rewritten = sum(site.action == "rewritten" for site in sites)
    moved = distance(dense, wanted)
    if not rewritten:
        wanted = dense
    return {
        "denoiser": kind.name,
        "attention": attention,
        "inner": inner,
        "graphs": len(reports),
        "sites": len(sites),
        "rewritten": rewritten,
        "self_attentions": len(truth.seen),
        "refused": sorted({site.reason for site in sites if site.action == "refused"}),
        "split": any("splits this module" in str(warning.message) for warning in said),
        "error": distance(found, wanted),
        "moved": moved,
    }


def rows(kinds: Sequence[Kind]) -> list[dict[str, Any]]:
    """Each of `kinds` with the kinds of attention that it is tried with."""
    found: list[dict[str, Any]] = []
    for kind in kinds:
        model = kind.make()
        for attention in kind.attentions:
            found.append(row(kind, attention, model))
            print(json.dumps(found[-1]), flush=True)
    return found
