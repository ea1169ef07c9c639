"""Right numbers on this device: small UNets against fp32 eager with torch's own resize operators.

What is allowed is the error of the arithmetic alone, measured on the dense model.
"""

from __future__ import annotations

import copy
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from plain_unet import Attention, PlainUNet, Pool

import todo_compile
from todo_compile._torch import inductor_mode
from todo_compile.dynamo.backend import todo_inductor

SMALL: dict[str, Any] = {"widths": (64, 128, 128), "text": 64, "heads": 4, "layers": 1}
FACTOR = 2


@dataclass(frozen=True)
class Case:
    """One comparison with the truth, at one or several latent sizes of one compiled module."""

    name: str
    dtype: torch.dtype
    inner: str = "inductor"
    sampling: str = "nearest"
    sizes: tuple[tuple[int, int], ...] = ((32, 32),)
    channels_last: bool = False
    mode: str | None = None
    calls: int = 1
    """More than one where later calls replay what the first recorded (CUDA graphs)."""


def cases(device: str, inner: str) -> list[Case]:
    """Few on a CPU, where they only prove that this script runs."""
    fp32 = torch.float32
    found = [
        Case("fp32 graph, no code generation", fp32, "eager"),
        Case("bf16", torch.bfloat16, inner),
    ]
    if device == "cpu":
        return found
    half = torch.float16
    return [
        *found,
        Case("fp16", half),
        Case("fp16, nearest-exact", half, sampling="nearest-exact"),
        Case("fp16, average", half, sampling="average"),
        Case("fp16, channels last", half, channels_last=True),
        Case("fp16, second size", half, sizes=((32, 32), (48, 32), (33, 47))),
        Case("fp16, CUDA graphs", half, mode="reduce-overhead", calls=4),
    ]


def truth_pool(sampling: str) -> Pool:
    """Subsampling by torch's resize operators, on sides that the factor divides or not."""

    def pool(x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        planes = x.transpose(1, 2).unflatten(2, grid)
        if sampling == "average":
            pooled = F.avg_pool2d(planes, FACTOR, ceil_mode=True, count_include_pad=False)
        elif all(side % FACTOR == 0 for side in grid):
            pooled = F.interpolate(planes, scale_factor=1 / FACTOR, mode=sampling)
        else:
            pooled = F.max_pool2d(planes, 1, stride=FACTOR)  # the first of each cell
        return pooled.flatten(2).transpose(1, 2)

    return pool


def with_truth(model: PlainUNet, sampling: str) -> PlainUNet:
    """An fp32 copy whose largest grid's self-attentions subsample their keys."""
    other = copy.deepcopy(model).float()
    width = other.width
    for module in other.modules():
        if isinstance(module, Attention) and module.to_q.in_features == width:
            module.pool = truth_pool(sampling)
    return other


@torch.no_grad()
def check(case: Case, config: dict[str, Any], device: str) -> dict[str, Any]:
    """Compare; an error of the arithmetic alone is allowed, measured on the dense model."""
    torch.compiler.reset()
    todo_compile.clear_reports()
    model = PlainUNet(**config).to(device)
    for module in model.modules():
        if isinstance(module, Attention):  # far from uniform, so that lost keys show
            module.to_q.weight.mul_(4)
            module.to_k.weight.mul_(4)
    model.to(case.dtype)
    if case.channels_last:
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    truth, exact = with_truth(model, case.sampling), copy.deepcopy(model).float()
    options: dict[str, Any] = {
        "factors": FACTOR,
        "sampling": case.sampling,
        "inner": case.inner,
        **(inductor_mode(case.mode) if case.mode else {}),
    }
    run: Callable[..., torch.Tensor] = torch.compile(
        model, backend=todo_inductor, options=options, fullgraph=True
    )
    rows: list[dict[str, Any]] = []
    for rows_columns in case.sizes:
        generator = torch.Generator().manual_seed(1)
        latent = torch.randn(2, 4, *rows_columns, generator=generator)
        text = torch.randn(2, 77, config["text"], generator=generator)
        made = [t.to(device, case.dtype) for t in (latent, text)]
        time_step = torch.full((2,), 500.0, device=device)
        arguments = made[0], time_step, made[1]
        wide = made[0].float(), time_step, made[1].float()
        got = torch.empty(0)
        for _ in range(case.calls):
            got = run(*arguments).float()
        expected, dense = truth(*wide), exact(*wide)
        rounding = float((model(*arguments).float() - dense).norm() / dense.norm())
        error = float((got - expected).norm() / expected.norm())
        effect = float((dense - expected).norm() / expected.norm())
        allowed = max(2 * rounding, 1e-4)
        rows.append(
            {
                "latent": rows_columns,
                "error": error,
                "allowed": allowed,
                "effect_of_rewrite": effect,
                "ok": error <= allowed and error < effect / 2,
            }
        )
    rewritten = [report.rewritten for report in todo_compile.reports()]
    return {
        "case": case.name,
        "rewritten_sites": rewritten,
        "sizes": rows,
        "ok": all(r["ok"] for r in rows) and len(rewritten) >= len(rows) and all(rewritten),
    }


def gpu() -> dict[str, Any] | None:
    """Card, driver and CUDA of this machine; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    found: dict[str, Any] = {
        "name": torch.cuda.get_device_name(),
        "capability": torch.cuda.get_device_capability(),
        "memory": torch.cuda.get_device_properties(0).total_memory,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
    tool = shutil.which("nvidia-smi")
    if tool is not None:
        query = [tool, "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv"]
        asked = subprocess.run(query, capture_output=True, text=True, check=False)
        found["nvidia_smi"] = asked.stdout.strip()
    return found
