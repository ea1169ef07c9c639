"""Example inputs: the right shapes, and wrappers that export and change nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from tiny_models import TINY_XL, make_unet

from todo_compile.capture.inputs import example_inputs, input_specs
from todo_compile.errors import ConfigError, ModelError
from todo_compile.models import (
    LoadedModel,
    Resolution,
    Source,
    WeightsChoice,
    find_weights,
    load,
    resolve,
)


def open_folder(folder: Path, dtype: torch.dtype = torch.float32) -> LoadedModel:
    source = resolve(str(folder))
    return load(source, find_weights(source, WeightsChoice("random")), dtype=dtype)


def open_tiny(tmp_path: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> LoadedModel:
    make_unet(**changes).save_pretrained(tmp_path / "tiny")
    return open_folder(tmp_path / "tiny", dtype)


def shapes(source: Source, size: str, batch: int = 2) -> dict[str, tuple[int, ...]]:
    specs = input_specs(source, Resolution.parse(size), batch=batch, dtype=torch.float16)
    return {spec.name: spec.shape for spec in specs}


def test_shapes_of_sd15_and_sdxl() -> None:
    assert shapes(resolve("sd15"), "1920x1080") == {
        "sample": (2, 4, 135, 240),
        "timestep": (1,),
        "encoder_hidden_states": (2, 77, 768),
    }
    assert shapes(resolve("sdxl"), "2048", batch=1) == {
        "sample": (1, 4, 256, 256),
        "timestep": (1,),
        "encoder_hidden_states": (1, 77, 2048),
        "text_embeds": (1, 1280),
        "time_ids": (1, 6),
    }


def test_fake_model_gives_fake_inputs_that_export_at_any_size(tmp_path: Path) -> None:
    make_unet(**TINY_XL).save_pretrained(tmp_path)
    model = load(resolve(str(tmp_path)), dtype=torch.float16, fake=True)
    inputs = example_inputs(model, Resolution.parse("2048"))
    assert [tuple(a.shape) for a in inputs.args] == [s.shape for s in inputs.specs]
    assert {type(a).__name__ for a in inputs.args} == {"FakeTensor"}
    exported = torch.export.export(inputs.wrapper, inputs.args)
    (output,) = [n for n in exported.graph.nodes if n.op == "output"]
    assert output.args[0][0].meta["val"].shape == (2, 4, 256, 256)
    assert output.args[0][0].meta["val"].dtype == torch.float16
    # TensorRT refuses a Concat of two dtypes: none may promote.
    cats = [n for n in exported.graph.nodes if str(n.target).startswith(("aten.cat", "aten.conc"))]
    assert len(cats) > 3
    for node in cats:
        assert len({n.meta["val"].dtype for n in node.args[0]}) == 1, node


@pytest.mark.parametrize("size", ["128", "104x72"])
def test_export_equals_calling_the_unet(tmp_path: Path, size: str) -> None:
    model = open_tiny(tmp_path)
    inputs = example_inputs(model, Resolution.parse(size))
    sample, timestep, text = inputs.args
    expected = model.module(sample, int(timestep), text).sample
    exported = torch.export.export(inputs.wrapper, inputs.args)

    assert torch.equal(inputs.wrapper(*inputs.args), expected)
    torch.testing.assert_close(exported.module()(*inputs.args), expected)
    assert exported.graph_signature.user_inputs == inputs.input_names
    assert inputs.output_names == ("out_sample",)
    convolutions = [n for n in exported.graph.nodes if "conv2d" in str(n.target)]
    paths = [[path for path, _ in n.meta["nn_module_stack"].values()] for n in convolutions]
    assert any("unet.down_blocks.0.resnets.0.conv1" in path for path in paths)


def test_odd_latent_sides_run(tmp_path: Path) -> None:
    # 135 × 240 in small: levels that do not halve evenly, and sides that vanish.
    blocks = {
        "block_out_channels": (8, 8, 8, 8),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "norm_num_groups": 4,
    }
    model = open_tiny(tmp_path, **blocks)
    for size in ("136x120", "8", "16x40"):
        inputs = example_inputs(model, Resolution.parse(size), batch=1)
        expected = model.module(inputs.args[0], 500, inputs.args[2]).sample
        assert expected.shape == inputs.args[0].shape
        assert torch.equal(inputs.wrapper(*inputs.args), expected)
    inputs = example_inputs(model, Resolution.parse("136x120"), batch=1)
    exported = torch.export.export(inputs.wrapper, inputs.args).module()
    torch.testing.assert_close(exported(*inputs.args), inputs.wrapper(*inputs.args))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_sdxl_wrapper_is_bit_identical(tmp_path: Path, dtype: torch.dtype) -> None:
    model = open_tiny(tmp_path, dtype, **TINY_XL)
    inputs = example_inputs(model, Resolution.parse("128x96"))
    named = dict(zip(inputs.input_names, inputs.args, strict=True))
    assert named["text_embeds"].dtype == dtype
    assert named["time_ids"].tolist() == [[96, 128, 0, 0, 96, 128]] * 2
    expected = model.module(
        named["sample"],
        500,
        named["encoder_hidden_states"],
        added_cond_kwargs={k: named[k] for k in ("text_embeds", "time_ids")},
    ).sample
    assert torch.equal(inputs.wrapper(*inputs.args), expected)
    assert expected.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "extra"),
    [
        ({"num_class_embeds": 10}, {"class_labels": (2,)}),
        ({"class_embed_type": "timestep"}, {"class_labels": (2,)}),
        (
            {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 12},
            {"class_labels": (2, 12)},
        ),
        ({"time_cond_proj_dim": 10}, {"timestep_cond": (2, 10)}),
        ({**TINY_XL, "time_cond_proj_dim": 10}, {"timestep_cond": (2, 10)}),
        (
            {"encoder_hid_dim": 40, "encoder_hid_dim_type": "text_proj"},
            {"encoder_hidden_states": (2, 77, 40)},
        ),
        ({"in_channels": 9}, {"sample": (2, 9, 8, 8)}),
    ],
)
def test_other_conditions_export(
    tmp_path: Path, changes: dict[str, Any], extra: dict[str, tuple[int, ...]]
) -> None:
    model = open_tiny(tmp_path, **changes)
    inputs = example_inputs(model, Resolution(64, 64))
    given = {spec.name: spec.shape for spec in inputs.specs}
    assert extra.items() <= given.items()
    exported = torch.export.export(inputs.wrapper, inputs.args)
    assert exported.graph_signature.user_inputs == inputs.input_names
    torch.testing.assert_close(exported.module()(*inputs.args), inputs.wrapper(*inputs.args))


@pytest.mark.parametrize(
    "change",
    [
        {"addition_embed_type": "image"},
        {"encoder_hid_dim_type": "image_proj"},
        {"class_embed_type": "identity"},
    ],
)
def test_unsupported_conditions_say_so(change: dict[str, str]) -> None:
    source = resolve("sd15")
    source = dataclasses.replace(source, config={**source.config, **change})
    with pytest.raises(ModelError, match="not supported yet") as caught:
        shapes(source, "512")
    assert next(iter(change.values())) in str(caught.value)
    assert "Python API" in (caught.value.remedy or "")


def test_values_are_seeded_and_agree_over_dtypes(tmp_path: Path) -> None:
    model = open_tiny(tmp_path)
    half = dataclasses.replace(model, dtype=torch.float16)
    size = Resolution(64, 64)
    one, two = example_inputs(model, size, seed=1), example_inputs(model, size, seed=1)
    other, low = example_inputs(model, size, seed=2), example_inputs(half, size, seed=1)
    for a, b, c in zip(one.args, two.args, low.args, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a.to(c.dtype), c)
    assert low.args[0].dtype == torch.float16
    assert not torch.equal(one.args[0], other.args[0])
    assert float(one.args[0].std()) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("batch", [0, -1, 1000])
def test_impossible_batch(batch: int) -> None:
    with pytest.raises(ConfigError, match="is not possible") as caught:
        shapes(resolve("sd15"), "512", batch)
    assert "classifier-free guidance" in (caught.value.remedy or "")


def test_resolution_that_the_model_cannot_make() -> None:
    with pytest.raises(ConfigError, match="multiples of 8") as caught:
        shapes(resolve("sd15"), "1023")
    assert "1016x1016 or 1024x1024" in (caught.value.remedy or "")


def make_pixart(folder: Path, **changes: Any) -> None:
    config: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 1,
        "sample_size": 16,
        "cross_attention_dim": 32,
        "caption_channels": 24,
        "use_additional_conditions": False,
        **changes,
    }
    PixArtTransformer2DModel(**config).save_pretrained(folder)


def test_patches_need_more_than_the_vae(tmp_path: Path) -> None:
    make_pixart(tmp_path)
    with pytest.raises(ConfigError, match="multiples of 16"):
        shapes(resolve(str(tmp_path)), "1032")


# Head sizes that SDXL-like size conditions divide into three: 6 × 16 channels.
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "use_additional_conditions": True,
            "num_attention_heads": 6,
            "cross_attention_dim": 96,
        },
    ],
)
def test_pixart(tmp_path: Path, changes: dict[str, Any]) -> None:
    make_pixart(tmp_path / "transformer", **changes)
    model = open_folder(tmp_path)
    assert model.source.component == "transformer"
    inputs = example_inputs(model, Resolution(128, 96))
    assert ("aspect_ratio" in inputs.input_names) == bool(changes)
    exported = torch.export.export(inputs.wrapper, inputs.args)
    assert exported.graph_signature.user_inputs == inputs.input_names
    output = inputs.wrapper(*inputs.args)
    assert output.shape == (2, 8, 12, 16)
    torch.testing.assert_close(exported.module()(*inputs.args), output)


def test_dit(tmp_path: Path) -> None:
    DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        sample_size=8,
        num_embeds_ada_norm=10,
    ).save_pretrained(tmp_path)
    model = open_folder(tmp_path)
    inputs = example_inputs(model, Resolution(64, 64))
    exported = torch.export.export(inputs.wrapper, inputs.args).module()
    torch.testing.assert_close(exported(*inputs.args), inputs.wrapper(*inputs.args))
