"""T2I-Adapters beside a compiled UNet: pictures against torch's, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines as tiny
import torch
from diffusers.models.adapter import T2IAdapter
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.t2i_adapter.pipeline_stable_diffusion_adapter import (
    StableDiffusionAdapterPipeline,
)
from tiny_bundles import with_oracle
from torch.overrides import TorchFunctionMode

import todo_compile
from todo_compile.errors import ConfigError, InputError, ModelError
from todo_compile.models.t2i_adapter import adapter_shapes
from todo_compile.options import PlanOptions

TOLERANCE = 5e-6  # as ControlNets'


def adapter(seed: int = 7) -> T2IAdapter:
    torch.manual_seed(seed)
    return T2IAdapter(in_channels=3, channels=[16, 32], num_res_blocks=1, downscale_factor=2).eval()


def hint() -> torch.Tensor:
    made = torch.Generator().manual_seed(2)
    return torch.rand(1, 3, tiny.PIXELS, tiny.PIXELS, generator=made)


def in_torch(pipe: Any, net: T2IAdapter) -> Any:
    parts = {k: v for k, v in pipe.components.items() if k != "image_encoder"}
    found = StableDiffusionAdapterPipeline(**parts, adapter=net, requires_safety_checker=False)
    found.set_progress_bar_config(disable=True)
    return found


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a whole pipeline of its kind, whose adapter stays in torch."""
    root = tmp_path_factory.mktemp("adapted")
    in_torch(tiny.sd(), adapter()).save_pretrained(root / "model")
    todo_compile.compile_bundle(
        str(root / "model"), res=tiny.PIXELS, out=root / "bundle", format="onnx",
        precision="fp32", t2i_adapter=True, vae_options=PlanOptions.create(kv_tokens=64),
    )  # fmt: skip
    return root / "bundle"


def test_the_picture_is_torchs(bundle: Path) -> None:
    ours = todo_compile.load_pipeline(bundle)
    assert type(ours) is StableDiffusionAdapterPipeline
    ours.set_progress_bar_config(disable=True)
    found = tiny.picture(ours, image=hint())
    expected = tiny.picture(in_torch(with_oracle(tiny.sd()), adapter()), image=hint())
    assert (found - expected).abs().max() < TOLERANCE
    other = tiny.picture(ours, image=1 - hint())
    assert (other - found).abs().max() > 1e-3, "the adapter must matter"


def test_without_an_adapter_the_unet_draws_as_if_it_took_none(bundle: Path) -> None:
    plain = todo_compile.load_pipeline(bundle, pipeline_class="StableDiffusionPipeline")
    plain.set_progress_bar_config(disable=True)
    found = tiny.picture(plain)
    assert (found - tiny.picture(with_oracle(tiny.sd()))).abs().max() < TOLERANCE


def test_inputs(bundle: Path) -> None:
    manifest = json.loads((bundle / "unet.onnx.json").read_text())
    shapes = {s["name"]: s["shape"] for s in manifest["inputs"] if "adapter" in s["name"]}
    assert shapes == {
        "adapter_residual_0": [2, 16, 16, 16], "adapter_residual_1": [2, 32, 8, 8],
        "adapter_residual_2": [2, 32, 8, 8],
    }  # fmt: skip
    assert manifest["model"]["t2i_adapter"] is True


def test_other_adapters_are_refused(bundle: Path) -> None:
    unet = todo_compile.load_pipeline(bundle).unet
    call: dict[str, Any] = {
        "sample": torch.zeros(2, 4, 16, 16), "timestep": 1,
        "encoder_hidden_states": torch.zeros(2, 77, tiny.TEXT),
    }  # fmt: skip
    with pytest.raises(InputError, match="passes 5 residuals of a T2I-Adapter"):
        unet(**call, down_intrablock_additional_residuals=[torch.zeros(1)] * 5)


def test_what_takes_none() -> None:
    with pytest.raises(ConfigError, match="--t2i-adapter is for UNets"):
        todo_compile.compile("pixart", res=512, out="x.onnx", t2i_adapter=True, weights="random")
    with pytest.raises(ModelError, match="what is added to a AttnDownBlock2D"):
        adapter_shapes({"down_block_types": ["AttnDownBlock2D"]}, (8, 8))


BLOCKS: dict[str, dict[str, Any]] = {
    "sd15": {"block_out_channels": (8, 16, 16, 24), "down_block_types": (
        "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3},
    "sdxl": {"block_out_channels": (8, 16, 24), "down_block_types": (
        "DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")},
}  # fmt: skip


@pytest.mark.parametrize("name", BLOCKS)
def test_shapes_are_those_that_the_unet_adds(name: str) -> None:
    unet: Any = UNet2DConditionModel(
        sample_size=16, layers_per_block=2, norm_num_groups=8, cross_attention_dim=8,
        attention_head_dim=2, **BLOCKS[name],
    ).eval()  # fmt: skip
    added: list[tuple[int, ...]] = []
    shapes = adapter_shapes(dict(unet.config), (16, 12))

    given = [torch.ones(1, *shape) for shape in shapes]

    class Seen(TorchFunctionMode):
        """What one of the residuals is added to."""

        def __torch_function__(
            self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if "add" in getattr(func, "__name__", "") and any(args[1] is one for one in given):
                added.append(tuple(args[0].shape))
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Seen():
        unet(
            torch.zeros(1, 4, 16, 12), 1, torch.zeros(1, 3, 8),
            down_intrablock_additional_residuals=list(given),
        )  # fmt: skip
    assert [shape[1:] for shape in added] == list(shapes)
