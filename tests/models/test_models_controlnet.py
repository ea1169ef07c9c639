"""Residuals by configuration against those of modules that really run: UNets and ControlNets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from tiny_models import TINY, TINY_XL, make_unet

from todo_compile import models
from todo_compile.capture.inputs import example_inputs
from todo_compile.errors import ConfigError, ModelError
from todo_compile.models.controlnet import residual_names, residual_shapes, with_controlnet
from todo_compile.models.loading import LoadedModel

CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
UP = {CROSS: "CrossAttnUpBlock2D", PLAIN: "UpBlock2D"}
SIMPLE = {
    "down_block_types": ("SimpleCrossAttnDownBlock2D", "ResnetDownsampleBlock2D"),
    "up_block_types": ("ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
}


def layout(*blocks: str, **more: Any) -> dict[str, Any]:
    return {
        "block_out_channels": tuple(16 * (i + 1) for i in range(len(blocks))),
        "down_block_types": blocks,
        "up_block_types": tuple(UP[b] for b in reversed(blocks)),
        **more,
    }


LAYOUTS: dict[str, dict[str, Any]] = {
    "sd": layout(CROSS, CROSS, CROSS, PLAIN, layers_per_block=2),
    "sdxl": {**TINY_XL, **layout(PLAIN, CROSS, CROSS, layers_per_block=2)},
    "one level": layout(CROSS),
    "layers of each level": layout(CROSS, CROSS, PLAIN, layers_per_block=(1, 3, 2)),
    "no padding": layout(CROSS, CROSS, PLAIN, downsample_padding=0),
    "averages": SIMPLE,
    "no middle": layout(CROSS, PLAIN, mid_block_type=None),
}


def really(unet: UNet2DConditionModel, height: int, width: int) -> list[tuple[int, ...]]:
    """What the down blocks pass on and the middle block is given, as the UNet runs."""
    found: list[tuple[int, ...]] = []
    unet.conv_in.register_forward_hook(lambda _m, _i, out: found.append(tuple(out.shape[1:])))
    for block in unet.down_blocks:
        block.register_forward_hook(
            lambda _m, _i, out: found.extend(tuple(one.shape[1:]) for one in out[1])
        )
    added = {"text_embeds": torch.zeros(1, 20), "time_ids": torch.zeros(1, 6)}
    with torch.no_grad():
        unet(torch.zeros(1, 4, height, width), 5, torch.zeros(1, 7, 24), added_cond_kwargs=added)
    return [*found, found[-1]]


@pytest.mark.parametrize("grid", [(16, 16), (13, 24), (9, 7)])
@pytest.mark.parametrize("name", LAYOUTS)
def test_shapes_are_those_of_a_unet_that_runs(name: str, grid: tuple[int, int]) -> None:
    unet: Any = make_unet(**LAYOUTS[name])
    if name == "averages" and grid != (16, 16):
        # diffusers' own UNet cannot add these up again; the way down is what is looked at.
        unet.up_blocks = torch.nn.ModuleList()
        unet.conv_norm_out, unet.conv_out = None, torch.nn.Identity()
    shapes = residual_shapes(dict(unet.config), grid)
    assert list(shapes) == really(unet, *grid)


@pytest.mark.parametrize("name", ["sd", "sdxl", "one level"])
def test_shapes_are_those_of_a_controlnet_that_runs(name: str) -> None:
    unet = make_unet(**LAYOUTS[name])
    controlnet = ControlNetModel.from_unet(unet, conditioning_channels=3).eval()
    added = {"text_embeds": torch.zeros(1, 20), "time_ids": torch.zeros(1, 6)}
    with torch.no_grad():
        down, mid = controlnet(
            torch.zeros(1, 4, 11, 6),
            5,
            torch.zeros(1, 7, 24),
            torch.zeros(1, 3, 88, 48),
            added_cond_kwargs=added,
            return_dict=False,
        )
    shapes = residual_shapes(dict(unet.config), (11, 6))
    assert [tuple(one.shape[1:]) for one in (*down, mid)] == list(shapes)


def test_what_a_configuration_does_not_say_is_sd15s() -> None:
    assert residual_shapes({}, (64, 64)) == residual_shapes(models.resolve("sd15").config, (64, 64))
    assert len(residual_shapes(models.resolve("sd15").config, (64, 64))) == 13
    assert len(residual_shapes(models.resolve("sdxl").config, (64, 64))) == 10
    assert residual_names(3) == (
        "down_block_residual_0",
        "down_block_residual_1",
        "mid_block_residual",
    )


@pytest.mark.parametrize("xl", [False, True])
def test_inputs_reach_the_unet(xl: bool) -> None:
    """The wrapper's flat call equals diffusers' own with the tensors as keywords."""
    unet = make_unet(**(TINY_XL if xl else TINY))
    source = _source(unet)
    example = example_inputs(
        LoadedModel(unet, source, torch.float32, None, None, 1), models.Resolution.parse("72x104")
    )
    values = dict(zip(example.input_names, example.args, strict=True))
    down = [values[n] for n in values if n.startswith("down_block_residual_")]
    assert len(down) == 4
    assert example.input_names[-1] == "mid_block_residual"
    added = {"text_embeds": values["text_embeds"], "time_ids": values["time_ids"]} if xl else None
    with torch.no_grad():
        expected = unet(
            values["sample"],
            values["timestep"],
            values["encoder_hidden_states"],
            added_cond_kwargs=added,
            down_block_additional_residuals=tuple(down),
            mid_block_additional_residual=values["mid_block_residual"],
            return_dict=False,
        )[0]
        found = example.wrapper(*example.args)
        program = torch.export.export(example.wrapper, example.args)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    named = [n.name for n in program.graph.nodes if n.op == "placeholder"]
    assert named[-len(example.args) :] == list(example.input_names)


def _source(unet: UNet2DConditionModel) -> models.Source:
    config = {**unet.config, "_class_name": "UNet2DConditionModel"}
    return with_controlnet(
        models.Source(kind="folder", identifier="x", component="unet", config=config)
    )


@pytest.mark.parametrize("component", ["vae_decoder", "text_encoder"])
def test_other_components_are_refused(component: str) -> None:
    with pytest.raises(ConfigError, match="is for UNets") as caught:
        with_controlnet(models.resolve_component("sd15", component))
    assert "Leave --controlnet out" in str(caught.value.remedy)


def test_transformers_are_refused() -> None:
    config = {"_class_name": "PixArtTransformer2DModel"}
    source = models.Source(kind="folder", identifier="x", component="transformer", config=config)
    with pytest.raises(ConfigError, match="the transformer is a PixArtTransformer2DModel"):
        with_controlnet(source)


def test_unknown_blocks_are_refused() -> None:
    """A KDownBlock2D passes on no downsampled states: ControlNets are not made of it."""
    config = {
        "_class_name": "UNet2DConditionModel",
        "block_out_channels": [16, 32],
        "down_block_types": ["KDownBlock2D", "KCrossAttnDownBlock2D"],
    }
    source = models.Source(kind="folder", identifier="x", component="unet", config=config)
    with pytest.raises(ModelError, match="residuals of a KDownBlock2D"):
        with_controlnet(source)
