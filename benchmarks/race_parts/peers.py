"""Other methods on the same UNet, and what they can be used with.

The rows are called by what the methods do; who had the idea stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from fidelity_parts import peers as built
from fidelity_parts.settings import PEERS as SETTINGS
from fidelity_parts.settings import Setting
from torch import nn

from race_parts.variants import Variant
from race_parts.workloads import Workload

ABOUT = {
    "tomesd 0.5": "half of the tokens merged with what is alike (ToMe, `tomesd`)",
    "tomesd 0.75": "three quarters merged (ToMe, `tomesd`)",
    "all tokens 2": "every 2nd query, key and value of rows and columns, the result repeated",
    "tiles 2": "attention within 2 × 2 tiles (HyperTile's idea)",
    "patched keys 2": "every 2nd key and value, by a patched processor (ToDo as its paper has it)",
    "reuse 3": "deep blocks at every 3rd step only (DeepCache's idea)",
    "reuse 3; 4,2": "both: deep blocks at every 3rd step, keys and values by 4 and 2",
}
"""Setting → what it does."""


def of_workload(setting: Setting) -> Callable[[Workload], nn.Module]:
    """The workload's UNet under a method."""

    def change(work: Workload) -> nn.Module:
        unet = next(m for m in work.module.modules() if type(m).__name__.startswith("UNet2D"))
        rows, columns = work.inputs[0].shape[-2:]
        return built.build(setting, unet, (rows, columns))

    return change


def period(setting: Setting) -> int:
    """After how many calls a method begins anew."""
    return int(setting.factors.partition("; ")[0]) if setting.sampling == "reuse" else 1


PEERS = [
    Variant(setting.name, change=of_workload(setting), calls=period(setting))
    for setting in SETTINGS
]


def fits(
    setting: Setting,
    unet: Any,
    grid: tuple[int, int],
    text: int,
    ways: Sequence[str] = ("fullgraph", "onnx"),
) -> dict[str, str]:
    """What a method survives: ``yes``, or the first line of why not.

    A method survives if as many successive calls as its period has, with different inputs, give
    what they give eagerly.

    Args:
        unet: a `UNet2DConditionModel` on the CPU.
        grid: (rows, columns) of the latents.
        text: width of its text.
        ways: which of the two to try.
    """
    generator = torch.Generator().manual_seed(0)
    width = unet.config.in_channels
    calls = [
        (
            torch.randn(2, width, *grid, generator=generator),
            torch.full((1,), 500.0 - 100 * index),
            torch.randn(2, 5, text, generator=generator),
        )
        for index in range(max(2, period(setting)))
    ]
    found: dict[str, str] = {}
    for name in ways:
        way = {"fullgraph": _fullgraph, "onnx": _onnx}[name]
        module = built.build(setting, unet, grid)
        try:
            run = way(module, calls[0])
        except Exception as error:  # noqa: BLE001 - any failure is the finding
            found[name] = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
            continue
        found[name] = "yes" if _same(run, module, calls) else "runs, with other numbers"
    return found


def _begin(module: nn.Module) -> None:
    built.reseed(module, ())


@torch.no_grad()
def _same(run: Callable[..., Any], module: nn.Module, calls: list[Any]) -> bool:
    _begin(module)
    got = [run(*inputs) for inputs in calls]
    _begin(module)
    return all(
        torch.allclose(one, module(*inputs), atol=1e-4, rtol=1e-3)
        for one, inputs in zip(got, calls, strict=True)
    )


def _fullgraph(module: nn.Module, inputs: Any) -> Callable[..., Any]:
    """One graph of every call, by `torch.compile`; code generation is not what is asked."""
    torch.compiler.reset()
    run = torch.compile(module, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        _begin(module)
        run(*inputs)
    return run


def _onnx(module: nn.Module, inputs: Any) -> Callable[..., Any]:
    """The file that the compiler writes of it with everything left dense, in onnxruntime."""
    import tempfile
    from pathlib import Path

    import todo_compile
    from todo_compile.options import PlanOptions

    _begin(module)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "peer.onnx"
        todo_compile.compile(module, inputs, out=path, options=PlanOptions(factors=()))
        return todo_compile.load(path, device="cpu", threads=1)
