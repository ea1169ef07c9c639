"""diffusers' own features together with `accelerate`: what happens, on tiny models on the CPU.

    python benchmarks/features.py

A tiny UNet with random weights, keys and values by factor 2, Dynamo without code generation. Each
feature is turned on before the model is compiled, and its output compared with that of the same
model compiled without it. Writes ``results/features.json``; `report.py` makes the table of it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from common import save
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

import todo_compile

OTHERS = ("torchao", "bitsandbytes")  # in an environment apart: no test needs them
PASSED: dict[str, Any] = {"inner": "eager", "factors": "2"}
Feature = Callable[[Any], None]


def unet() -> Any:
    """Self-attention over 16×16 and 8×8 tokens."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=24,
        attention_head_dim=2,
        norm_num_groups=8,
    ).eval()


def call(model: Any) -> torch.Tensor:
    """Twice, as a sampler does: hooks and caches act from the second call on."""
    noise = torch.Generator().manual_seed(1)
    sample = torch.randn(2, 4, 16, 16, generator=noise)
    text = torch.randn(2, 7, 24, generator=noise)
    with torch.no_grad():
        model(sample, torch.tensor(500), text)
        return model(sample, torch.tensor(480), text).sample


def accelerated(model: Any) -> None:
    """The usual way."""
    todo_compile.accelerate(model, **PASSED)


def in_blocks(model: Any) -> None:
    """One graph for all blocks that repeat: they see tokens alone, whose grid is told."""
    grids = {256: (16, 16), 64: (8, 8)}
    options = {**PASSED, "token_grids": grids}
    model.compile_repeated_blocks(backend="todo_inductor", options=options)


def group_offloading(kind: str) -> Feature:
    """With the CPU on both sides, since there is no GPU."""

    def turn_on(model: Any) -> None:
        place = torch.device("cpu")
        groups = {"num_blocks_per_group": 1} if kind == "block_level" else {}
        model.enable_group_offload(place, place, offload_type=kind, **groups)

    return turn_on


def casting(model: Any) -> None:
    """Weights lie in fp8 and are computed with in fp32."""
    model.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)


def cache(model: Any) -> None:
    """Attention of some steps again in the next."""
    from diffusers.hooks.pyramid_attention_broadcast import (
        PyramidAttentionBroadcastConfig,
        apply_pyramid_attention_broadcast,
    )

    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
    )
    if hasattr(model, "enable_cache"):
        model.enable_cache(config)
    else:
        apply_pyramid_attention_broadcast(model, config)


def torchao(config: str) -> Feature:
    """Linear layers quantised by torchao's configuration of that name."""

    def turn_on(model: Any) -> None:
        from torchao import quantization  # pyright: ignore[reportMissingImports]

        quantization.quantize_(model, getattr(quantization, config)())

    return turn_on


def bitsandbytes(kind: str, **options: Any) -> Feature:
    """Linear layers replaced by bitsandbytes' of that name, as diffusers' loader replaces them."""

    def turn_on(model: Any) -> None:
        import bitsandbytes  # pyright: ignore[reportMissingImports]

        linear = [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
        for name, old in linear:
            new = getattr(bitsandbytes.nn, kind)(
                old.in_features, old.out_features, bias="bias" in old.state_dict(), **options
            )
            new.load_state_dict(old.state_dict())
            model.set_submodule(name, new.to("cpu"))  # moving it quantises

    return turn_on


# (name, what turns it on, what compiles, package that it needs)
FEATURES: list[tuple[str, Feature | None, Feature, str]] = [
    ("accelerate alone", None, accelerated, "diffusers"),
    ("compile_repeated_blocks", None, in_blocks, "diffusers"),
    (
        "set_attention_backend",
        lambda model: model.set_attention_backend("native"),
        accelerated,
        "diffusers",
    ),
    ("enable_group_offload, leaves", group_offloading("leaf_level"), accelerated, "diffusers"),
    ("enable_group_offload, blocks", group_offloading("block_level"), accelerated, "diffusers"),
    ("enable_layerwise_casting", casting, accelerated, "diffusers"),
    ("PyramidAttentionBroadcast", cache, accelerated, "diffusers"),
    ("torchao, int8 weights", torchao("Int8WeightOnlyConfig"), accelerated, "torchao"),
    (
        "torchao, int8 weights and activations",
        torchao("Int8DynamicActivationInt8WeightConfig"),
        accelerated,
        "torchao",
    ),
    (
        "bitsandbytes, int8",
        bitsandbytes("Linear8bitLt", has_fp16_weights=False),
        accelerated,
        "bitsandbytes",
    ),
    (
        "bitsandbytes, NF4",
        bitsandbytes("Linear4bit", quant_type="nf4", compute_dtype=torch.float32),
        accelerated,
        "bitsandbytes",
    ),
]


def tried(turn_on: Feature | None, compiled: Feature, wanted: torch.Tensor) -> dict[str, Any]:
    """What became of the sites, and how far the output is from `wanted`; or the error."""
    model = unet()
    torch.compiler.reset()
    todo_compile.clear_reports()
    try:
        if turn_on is not None:
            turn_on(model)
        compiled(model)
        found = call(model)
    except Exception as error:  # noqa: BLE001 - whatever another library has to say is the result
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"}
    sites = [site for report in todo_compile.reports() for site in report.sites]
    return {
        "graphs": len(todo_compile.reports()),
        "rewritten": sum(site.action == "rewritten" for site in sites),
        "sites": len(sites),
        "relative_l2": float((found - wanted).norm() / wanted.norm()),
    }


def main() -> None:
    """Try each, and keep what happened."""
    model = unet()
    dense = call(model)
    accelerated(model)
    wanted = call(model)
    rows: list[dict[str, Any]] = []
    for name, turn_on, compiled, package in FEATURES:
        if importlib.util.find_spec(package) is None:
            rows.append({"name": name, "absent": package})
        else:
            rows.append({"name": name, **tried(turn_on, compiled, wanted)})
        print(rows[-1])
    drift = float((wanted - dense).norm() / dense.norm())
    others = {name: version(name) for name in OTHERS if importlib.util.find_spec(name)}
    save("features", {"others": others, "dense_relative_l2": drift, "rows": rows})


if __name__ == "__main__":
    main()
