"""What pipelines add to a UNet's call are inputs of the UNet as a module of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from torch.overrides import TorchFunctionMode

import todo_compile

TEXT, IMAGE, SIDE = 24, 20, 8


class Pooled(TorchFunctionMode):
    """Self-attention over the picture with every other row and column of its keys."""

    sites = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.scaled_dot_product_attention and args[1].shape[2] == SIDE * SIDE:
            self.sites += 1
            key, value = (
                t.unflatten(2, (SIDE, SIDE))[:, :, ::2, ::2].flatten(2, 3) for t in args[1:3]
            )
            args = (args[0], key, value)
        return func(*args, **(kwargs or {}))


def with_ip_adapter() -> Any:
    """A UNet whose cross-attention also looks at four tokens made of an image's embedding."""
    torch.manual_seed(0)
    unet: Any = UNet2DConditionModel(
        sample_size=SIDE, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), cross_attention_dim=TEXT,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), attention_head_dim=2,
    ).eval().requires_grad_(False)  # fmt: skip
    cross = [name for name in unet.attn_processors if "attn2" in name]
    widths = {"mid": 32, "dow": 16, "up_": 16}
    layers: dict[str, Tensor] = {}
    for number, name in enumerate(cross):
        for key in ("to_k_ip", "to_v_ip"):
            layers[f"{2 * number + 1}.{key}.weight"] = torch.randn(widths[name[:3]], TEXT) / 3
    projection = {
        "proj.weight": torch.randn(4 * TEXT, IMAGE), "proj.bias": torch.zeros(4 * TEXT),
        "norm.weight": torch.ones(TEXT), "norm.bias": torch.zeros(TEXT),
    }  # fmt: skip
    unet._load_ip_adapter_weights(
        [{"image_proj": projection, "ip_adapter": layers}], low_cpu_mem_usage=False
    )
    return unet


def call(seed: int) -> dict[str, Any]:
    """Rows of different times, an image's embedding, and a T2I-Adapter's residuals."""
    made = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=made)

    return {
        "sample": noise(2, 4, SIDE, SIDE),
        "timestep": 1000 * torch.rand(2, generator=made),
        "encoder_hidden_states": noise(2, 7, TEXT),
        "added_cond_kwargs": {"image_embeds": [noise(2, 1, IMAGE)]},
        "down_intrablock_additional_residuals": [
            noise(2, 16, SIDE, SIDE), noise(2, 32, SIDE // 2, SIDE // 2),
        ],
        "return_dict": False,
    }  # fmt: skip


@pytest.fixture(scope="module")
def unet() -> Any:
    return with_ip_adapter()


def test_adapters_and_times_of_rows_are_inputs(unet: Any, tmp_path: Path) -> None:
    out = tmp_path / "unet.onnx"
    result: Any = todo_compile.compile(unet, args=(), kwargs=call(0), out=out, factors="2")
    assert result.report is not None
    names = {spec.name for spec in result.manifest.inputs}
    assert len(names) == 6
    assert result.report.rewritten == 3
    loaded = todo_compile.load(out)
    with torch.no_grad():
        (dense,) = unet(**call(1))
        with Pooled() as pooled:
            (expected,) = unet(**call(1))
    assert pooled.sites == 3
    (found,) = loaded(**call(1))
    assert (found - expected).abs().max() < 0.01 * (dense - expected).abs().max()
    for changed in ("timestep", "added_cond_kwargs", "down_intrablock_additional_residuals"):
        (other,) = loaded(**{**call(1), changed: call(2)[changed]})
        assert (other - found).abs().max() > 1e-2, changed
