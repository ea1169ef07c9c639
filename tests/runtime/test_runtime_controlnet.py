"""ControlNet: pictures of compiled pipelines against torch's, and what an engine refuses.

The ControlNet itself runs in torch on both sides. Its last convolutions, which are zero where
training starts, are random here, so that what it says matters.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines as tiny
import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel
from diffusers.pipelines.controlnet.pipeline_controlnet import StableDiffusionControlNetPipeline
from diffusers.pipelines.controlnet.pipeline_controlnet_sd_xl import (
    StableDiffusionXLControlNetPipeline,
)
from peft import LoraConfig
from peft.utils.save_and_load import get_peft_model_state_dict
from safetensors.torch import save_file
from tiny_bundles import compiled, with_oracle

import todo_compile
from todo_compile.errors import InputError
from todo_compile.options import PlanOptions

# In [0, 1]: fp32 rounding through three steps and a decoder, as in the other pipelines' tests.
TOLERANCE = 5e-6


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


def controlnet(unet: Any, seed: int = 11, **changes: Any) -> ControlNetModel:
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32))
    net.register_to_config(**changes)
    torch.manual_seed(seed)
    outs = [*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding]
    for out in outs:
        for parameter in out.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return net.eval()


def torch_pipeline(pipe: Any, net: Any) -> StableDiffusionControlNetPipeline:
    parts = {k: v for k, v in pipe.components.items() if k != "image_encoder"}
    found = StableDiffusionControlNetPipeline(
        **parts, controlnet=net, requires_safety_checker=False
    )
    found.set_progress_bar_config(disable=True)
    return found


def hint(height: int = tiny.PIXELS, width: int = tiny.PIXELS) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="session")
def controlled(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose UNet and dense twin take residuals."""
    folder = tmp_path_factory.mktemp("controlled") / "sd"
    todo_compile.compile_bundle(
        str(model),
        res=tiny.PIXELS,
        out=folder,
        format="onnx",
        precision="fp32",
        dense_after=0.5,
        controlnet=True,
        vae_options=PlanOptions.create(kv_tokens=64),
    )
    return folder


def ours(bundle: Path, net: Any, **options: Any) -> Any:
    found = todo_compile.load_pipeline(
        bundle, pipeline_class="StableDiffusionControlNetPipeline", controlnet=net, **options
    )
    found.set_progress_bar_config(disable=True)
    return found


@pytest.fixture(scope="module")
def net() -> ControlNetModel:
    return controlnet(tiny.unet())


@pytest.fixture(scope="module")
def rewritten(controlled: Path, net: ControlNetModel) -> Any:
    """The bundle's pipeline, whose denoiser is the rewritten one in all steps."""
    pipe = ours(controlled, net)
    pipe.unet = pipe.unet.parts[0]
    return pipe


@pytest.fixture(scope="module")
def oracle(net: ControlNetModel) -> Any:
    """What `rewritten` shall draw, in torch."""
    return torch_pipeline(with_oracle(tiny.sd()), net)


@pytest.fixture(scope="module")
def oracle_picture(oracle: Any) -> torch.Tensor:
    return tiny.picture(oracle, image=hint())


@pytest.fixture(scope="module")
def dense_picture(net: ControlNetModel) -> torch.Tensor:
    return tiny.picture(torch_pipeline(tiny.sd(), net), image=hint())


def test_manifests(controlled: Path) -> None:
    for name in ("unet", "unet.dense"):
        manifest = json.loads((controlled / f"{name}.onnx.json").read_text())
        names = [spec["name"] for spec in manifest["inputs"]]
        assert names == [
            "sample",
            "timestep",
            "encoder_hidden_states",
            "down_block_residual_0",
            "down_block_residual_1",
            "down_block_residual_2",
            "down_block_residual_3",
            "mid_block_residual",
        ]
        assert {spec["dtype"] for spec in manifest["inputs"]} == {"float32"}
        assert manifest["inputs"][5]["shape"] == [2, 16, 8, 8]
        assert manifest["model"]["controlnet"] is True
    vae = json.loads((controlled / "vae_decoder.onnx.json").read_text())
    assert vae["model"]["controlnet"] is False


def test_rewritten_equals_torch_on_the_oracle(
    rewritten: Any, oracle_picture: torch.Tensor, dense_picture: torch.Tensor
) -> None:
    assert distance(tiny.picture(rewritten, image=hint()), oracle_picture) < TOLERANCE
    assert distance(dense_picture, oracle_picture) > 500 * TOLERANCE


def test_pair_and_dense_alone(
    controlled: Path, net: ControlNetModel, dense_picture: torch.Tensor
) -> None:
    """The dense twin takes the residuals too; the decoder is the torch one here."""
    dense = ours(controlled, net, dense=True, vae=tiny.vae())
    assert distance(tiny.picture(dense, image=hint()), dense_picture) < TOLERANCE
    calls: list[str] = []
    pair = ours(controlled, net)
    for name, part in zip(("rewritten", "dense"), pair.unet.parts, strict=True):
        part.register_forward_hook(lambda *_, name=name: calls.append(name))
    tiny.picture(pair, image=hint(), steps=4)
    assert calls == ["rewritten", "rewritten", "dense", "dense"]


@pytest.mark.parametrize(
    "options",
    [
        {"guess_mode": True},
        {"controlnet_conditioning_scale": 0.4, "control_guidance_end": 0.5},
        {"prompt": ["a cat", "two dogs", "x"], "image": hint().repeat(3, 1, 1, 1)},
    ],
    ids=["guess mode", "scaled, early end", "batch of six"],
)
def test_options_of_the_pipeline(rewritten: Any, oracle: Any, options: dict[str, Any]) -> None:
    options = {"image": hint(), "steps": 2, **options}
    expected = tiny.picture(oracle, **options)
    assert distance(tiny.picture(rewritten, **options), expected) < TOLERANCE


def test_several_controlnets(
    rewritten: Any, oracle: Any, net: ControlNetModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    nets = MultiControlNetModel([net, controlnet(tiny.unet(), seed=12)])
    for pipe in (rewritten, oracle):
        monkeypatch.setattr(pipe, "controlnet", nets)
    options: dict[str, Any] = {
        "image": [hint(), 1 - hint()],
        "controlnet_conditioning_scale": [0.7, 0.3],
        "steps": 2,
    }
    expected = tiny.picture(oracle, **options)
    assert distance(tiny.picture(rewritten, **options), expected) < TOLERANCE


def test_pooled_residuals_are_spread(
    rewritten: Any, oracle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``global_pool_conditions`` makes residuals of 1×1, which torch broadcasts."""
    pooled = controlnet(tiny.unet(), global_pool_conditions=True)
    for pipe in (rewritten, oracle):
        monkeypatch.setattr(pipe, "controlnet", pooled)
    expected = tiny.picture(oracle, image=hint(), steps=2)
    assert distance(tiny.picture(rewritten, image=hint(), steps=2), expected) < TOLERANCE


def test_no_residuals_are_zeros(
    controlled: Path, rewritten: Any, oracle_picture: torch.Tensor
) -> None:
    parts = {name: rewritten.components[name] for name in ("unet", "vae", "text_encoder")}
    pipe = todo_compile.load_pipeline(controlled, **parts)
    expected = tiny.picture(with_oracle(tiny.sd()))
    assert distance(tiny.picture(pipe), expected) < TOLERANCE
    assert distance(oracle_picture, expected) > 500 * TOLERANCE  # which has residuals


@pytest.mark.slow
def test_odd_grid_and_lora_together(model: Path, tmp_path: Path) -> None:
    """34×42 px: 17×21 latent cells, 9×11 a level down. The LoRA is the UNet's alone."""
    adapted = tiny.unet()
    torch.manual_seed(7)
    adapted.add_adapter(
        LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "conv1"], init_lora_weights=False)
    )
    lora = tmp_path / "lora.safetensors"
    state = get_peft_model_state_dict(adapted)
    save_file({f"unet.{name}": tensor.contiguous() for name, tensor in state.items()}, lora)
    unet = tmp_path / "u.onnx"
    result: Any = todo_compile.compile(
        str(model),
        res="42x34",
        out=unet,
        precision="fp32",
        options=PlanOptions.create(factors="off"),
        lora=[str(lora)],
        controlnet=True,
        verify=True,
    )
    assert result.manifest.verification is not None
    assert result.manifest.verification["relative_l2"] < 1e-5
    assert [s.shape for s in result.manifest.inputs[-2:]] == [(2, 32, 9, 11), (2, 32, 9, 11)]
    net = controlnet(tiny.unet())
    pipe = torch_pipeline(tiny.sd(), net)
    pipe.unet = todo_compile.load(unet)
    oracle = torch_pipeline(tiny.sd(), net)
    oracle.unet = adapted.eval()
    options: dict[str, Any] = {"image": hint(34, 42), "height": 34, "width": 42, "steps": 2}
    expected = tiny.picture(oracle, **options)
    assert distance(tiny.picture(pipe, **options), expected) < TOLERANCE
    plain = tiny.picture(torch_pipeline(tiny.sd(), net), **options)
    assert distance(plain, expected) > 100 * TOLERANCE


def test_sdxl(tmp_path: Path) -> None:
    folder = tmp_path / "xl"
    tiny.sdxl().save_pretrained(folder)
    unet = compiled(folder, tmp_path / "u.onnx", controlnet=True)

    def pipeline() -> Any:
        pipe = tiny.sdxl()
        parts = {
            k: v
            for k, v in pipe.components.items()
            if k not in ("image_encoder", "feature_extractor")
        }
        found = StableDiffusionXLControlNetPipeline(
            **parts, controlnet=controlnet(pipe.unet), add_watermarker=False
        )
        found.set_progress_bar_config(disable=True)
        return found

    pipe, expected = pipeline(), with_oracle(pipeline())
    expected.vae = pipe.vae
    pipe.unet = todo_compile.load(unet)
    options: dict[str, Any] = {"image": hint(), "steps": 2, "negative_prompt": "a blue dog"}
    assert distance(tiny.picture(pipe, **options), tiny.picture(expected, **options)) < TOLERANCE


def test_half_precision(
    model: Path,
    tmp_path: Path,
    net: ControlNetModel,
    oracle: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Residuals have the engine's type, and are cast where it was asked for."""
    path = compiled(model, tmp_path / "u.onnx", precision="fp16", controlnet=True)
    pipe = torch_pipeline(tiny.sd(), net)
    pipe.unet = todo_compile.load(path, cast=True)
    assert pipe.unet.session.inputs["mid_block_residual"].dtype == "float16"
    monkeypatch.setattr(oracle, "vae", pipe.vae)
    options: dict[str, Any] = {"image": hint(), "steps": 2}
    found = tiny.picture(pipe, **options)
    assert distance(found, tiny.picture(oracle, **options)) < 2e-2


def feeds() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(4)
    return {
        "sample": torch.randn(2, 4, 16, 16, generator=generator),
        "timestep": 500,
        "encoder_hidden_states": torch.randn(2, 77, tiny.TEXT, generator=generator),
    }


def residuals() -> tuple[list[torch.Tensor], torch.Tensor]:
    shapes = [(16, 16, 16), (16, 16, 16), (16, 8, 8), (32, 8, 8), (32, 8, 8)]
    found = [torch.full((2, *shape), 0.1) for shape in shapes]
    return found[:-1], found[-1]


def test_without_the_flag_it_is_refused(unet_file: Path) -> None:
    down, mid = residuals()
    unet = todo_compile.load(unet_file)
    with pytest.raises(InputError, match="passes ControlNet residuals") as caught:
        unet(**feeds(), down_block_additional_residuals=down, mid_block_additional_residual=mid)
    assert "--controlnet" in str(caught.value.remedy)


def test_residuals_of_another_model_are_refused(controlled: Path) -> None:
    unet = todo_compile.load(controlled / "unet.onnx")
    down, mid = residuals()

    def call(down: Any, mid: Any) -> Any:
        return unet(
            **feeds(), down_block_additional_residuals=down, mid_block_additional_residual=mid
        )

    assert call(down, mid).sample.shape == (2, 4, 16, 16)
    with pytest.raises(InputError, match=r"passes 3 residuals of down blocks.* with 4") as caught:
        call(down[1:], mid)
    assert "ControlNet for this architecture" in str(caught.value.remedy)
    with pytest.raises(InputError, match="only one kind"):
        call(down, None)
    with pytest.raises(InputError, match="only one kind"):
        call(None, mid)
    with pytest.raises(InputError, match="mid_block_residual has the shape"):
        call(down, torch.zeros(2, 64, 8, 8))


@pytest.mark.slow
def test_several_resolutions(model: Path, tmp_path: Path) -> None:
    """Zeros have the size of the call, not of the engine that was loaded first."""
    todo_compile.compile_bundle(
        str(model),
        res=[tiny.PIXELS, "42x34"],
        out=tmp_path / "b",
        format="onnx",
        component="unet",
        precision="fp32",
        options=PlanOptions.create(factors="off"),
        controlnet=True,
    )
    unet = todo_compile.load(tmp_path / "b")
    sample = torch.randn(2, 4, 17, 21, generator=torch.Generator().manual_seed(4))
    given = {**feeds(), "sample": sample}
    with torch.no_grad():
        expected = tiny.unet()(**given).sample
    torch.testing.assert_close(unet(**given).sample, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_range_of_batches(model: Path, tmp_path: Path) -> None:
    """Residuals have the call's batch, and are cut with it."""
    path = compiled(
        model,
        tmp_path / "u.onnx",
        batch="1..3",
        controlnet=True,
        options=PlanOptions.create(factors="off"),
    )
    unet, truth = todo_compile.load(path), tiny.unet()
    generator = torch.Generator().manual_seed(4)
    for batch in (1, 3, 5):
        given = {
            "sample": torch.randn(batch, 4, 16, 16, generator=generator),
            "timestep": 500,
            "encoder_hidden_states": torch.randn(batch, 77, tiny.TEXT, generator=generator),
        }
        more = {
            "down_block_additional_residuals": [
                torch.randn(batch, *one.shape[1:], generator=generator) for one in residuals()[0]
            ],
            "mid_block_additional_residual": torch.randn(batch, 32, 8, 8, generator=generator),
        }
        for options in ({}, more):
            with torch.no_grad():
                expected = truth(**given, **options).sample
            found = unet(**given, **options).sample
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
