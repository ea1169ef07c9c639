"""What goes into a session and comes out, and what is refused before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from tiny_bundles import compiled

import todo_compile
from todo_compile.errors import ConfigError, EngineError, InputError
from todo_compile.runtime.compiled import CompiledError


@pytest.fixture(scope="module")
def unet(bundle: Path):
    return todo_compile.load(bundle / "unet.onnx")


def feeds(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    noise = torch.Generator().manual_seed(0)
    return {
        "sample": torch.randn(2, 4, 16, 16, generator=noise),
        "timestep": torch.tensor([7.0]),
        "encoder_hidden_states": torch.randn(2, 77, 24, generator=noise),
        **changes,
    }


def test_a_session_gives_what_bare_onnxruntime_gives(bundle: Path, unet) -> None:
    bare = onnxruntime.InferenceSession(str(bundle / "unet.onnx"))
    expected = bare.run(None, {name: value.numpy() for name, value in feeds().items()})[0]
    found = unet.session.run(feeds())
    assert list(found) == ["out_sample"]
    # Not the same bits: attention is fused as the file is loaded, see `runtime.fused`.
    torch.testing.assert_close(
        found["out_sample"], torch.from_numpy(expected), rtol=1e-4, atol=1e-5
    )
    again = unet.session.run(feeds())["out_sample"]
    assert again.data_ptr() != found["out_sample"].data_ptr()  # fresh, never a shared buffer


def test_strides_do_not_matter(unet) -> None:
    sample = feeds()["sample"].to(memory_format=torch.channels_last)
    assert not sample.is_contiguous()
    found = unet.session.run(feeds(sample=sample))["out_sample"]
    torch.testing.assert_close(found, unet.session.run(feeds())["out_sample"], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        (
            "sample",
            torch.zeros(2, 4, 32, 32),
            r"shape \(2, 4, 32, 32\) instead of \(2, 4, 16, 16\)",
        ),
        ("sample", torch.zeros(3, 4, 16, 16), "instead of .*batch 2"),
        ("sample", torch.zeros(2, 4, 16, 16).half(), "is float16 instead of float32"),
        ("timestep", torch.tensor([7]), "is int64 instead of float32"),
        ("sample", torch.zeros(2, 4, 16, 16, device="meta"), "lies on meta, the engine on cpu"),
        ("sample", torch.zeros(2, 4, 16, 16, requires_grad=True), "requires a gradient"),
        ("mask", torch.zeros(1), "with mask, which it does not have"),
    ],
)
def test_refused_before_it_runs(unet, name: str, value: torch.Tensor, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        unet.session.run(feeds(**{name: value}))
    assert caught.value.remedy
    if name != "mask" and "gradient" not in says:
        assert "unet.onnx was built for 32x32 px, batch 2, fp32" in caught.value.message


def test_an_absent_input_is_named(unet) -> None:
    given = feeds()
    del given["encoder_hidden_states"]
    with pytest.raises(InputError, match="without encoder_hidden_states"):
        unet.session.run(given)


def test_the_component_looks_like_the_module(unet) -> None:
    assert issubclass(type(unet), torch.nn.Module)
    config: Any = unet.config
    assert type(unet.config) is FrozenDict
    assert config.in_channels == 4
    assert config.time_cond_proj_dim is None
    assert config.flip_sin_to_cos is True  # a default of the class
    assert config.sample_size == 16  # the size that pipelines take by default
    assert (unet.dtype, unet.device) == (torch.float32, torch.device("cpu"))
    given = feeds()
    tuple_ = unet(*given.values(), return_dict=False)
    found = unet(given["sample"], 7, encoder_hidden_states=given["encoder_hidden_states"])
    assert isinstance(found, UNet2DConditionOutput)
    torch.testing.assert_close(found.sample, tuple_[0], rtol=0, atol=0)
    assert "32x32 px" in repr(unet)


def test_what_needs_layers_says_so(unet) -> None:
    """As `load_lora_weights`, `set_adapters` and others of a pipeline call it."""
    for name in ("load_lora_adapter", "set_attn_processor", "fuse_qkv_projections"):
        assert not hasattr(unet, name)
        with pytest.raises(CompiledError, match=f"{name} of UNet2DConditionModel") as caught:
            getattr(unet, name)
        assert "--lora" in str(caught.value.remedy)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = unet.nonsense


def test_moving_is_tolerated_where_it_changes_nothing(unet) -> None:
    assert unet.to("cpu") is unet
    assert unet.to(torch.float32) is unet
    assert unet.to("cpu", torch.float32).eval().requires_grad_(False) is unet
    for says, move in (
        ("--precision", unet.half),
        ("device=", lambda: unet.to("meta")),
        ("--precision", lambda: unet.to(torch.bfloat16)),
    ):
        with pytest.raises(InputError, match="cannot be moved") as caught:
            move()
        assert says in str(caught.value.remedy)
    with pytest.raises(InputError, match="cannot be saved"):
        unet.save_pretrained("x")


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"mid_block_additional_residual": torch.zeros(1)}, "ControlNet residuals"),
        ({"down_block_additional_residuals": (torch.zeros(1),)}, "ControlNet residuals"),
        ({"down_intrablock_additional_residuals": [torch.zeros(1)]}, "T2I-Adapter"),
        ({"cross_attention_kwargs": {"scale": 0.5}}, "cross_attention_kwargs"),
        ({"class_labels": torch.zeros(2)}, "class_labels"),
        ({"added_cond_kwargs": {"image_embeds": torch.zeros(2, 3)}}, "image_embeds"),
        ({"attention_mask": torch.ones(2, 256)}, "attention_mask"),
    ],
)
def test_what_the_engine_lacks_is_named(unet, extra: dict, says: str) -> None:
    with pytest.raises(InputError, match=f"passes {says}.*without it") as caught:
        unet(*feeds().values(), **extra)
    assert caught.value.remedy


def test_timesteps_of_a_batch(unet) -> None:
    given = feeds()
    alike = unet(given["sample"], torch.tensor([7, 7]), given["encoder_hidden_states"]).sample
    torch.testing.assert_close(alike, unet(*given.values()).sample, rtol=0, atol=0)
    with pytest.raises(InputError, match="different timesteps"):
        unet(given["sample"], torch.tensor([7, 8]), given["encoder_hidden_states"])


def test_batches_are_cut_and_filled_up_or_refused(bundle: Path, unet) -> None:
    three = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    text = torch.randn(3, 77, 24, generator=torch.Generator().manual_seed(2))
    fresh = todo_compile.load(bundle / "unet.onnx", threads=1)
    with pytest.warns(UserWarning, match="1 of 4 rows"):
        found = fresh(three, 7, text).sample
    assert found.shape == three.shape
    for rows in (slice(0, 2), slice(1, 3)):
        expected = unet(three[rows], 7, text[rows]).sample
        torch.testing.assert_close(found[rows], expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="a batch of 3 was expected"):
        fresh(three, 7, text[:2])
    strict = todo_compile.load(bundle / "unet.onnx", batching="strict")
    with pytest.raises(InputError, match="--batch 3") as caught:
        strict(three, 7, text)
    assert "batching='strict'" in str(caught.value.remedy)


def test_the_decoder_casts_and_encodes_only_with_help(bundle: Path) -> None:
    vae = todo_compile.load(bundle / "vae_decoder.onnx")
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    picture = vae.decode(latents).sample
    assert picture.shape == (1, 3, 32, 32)
    half = vae.decode(latents.half(), return_dict=False)[0]
    assert half.dtype == torch.float16
    asked = next(iter(vae.post_quant_conv.parameters()))  # by pipelines that upcast by hand
    assert (asked.dtype, list(vae.parameters())) == (torch.float32, [])
    torch.testing.assert_close(half.float(), picture, rtol=0.02, atol=0.02)
    assert vae.config.scaling_factor == 0.18215
    vae.enable_slicing()
    with pytest.raises(InputError, match="no tiles"):
        vae.enable_tiling()
    with pytest.raises(InputError, match="only decodes") as caught:
        vae.encode(picture)
    assert "encoder=vae" in str(caught.value.remedy)


def test_what_a_text_encoder_does_not_have(bundle: Path) -> None:
    encoder = todo_compile.load(bundle / "text_encoder.onnx")
    ids = torch.randint(0, 90, (1, 77))
    found = encoder(ids, output_hidden_states=True)
    assert found[0].shape == (1, 77, 24)
    assert len(found.hidden_states) == 4
    norm = encoder.text_model.final_layer_norm
    torch.testing.assert_close(norm(found.hidden_states[-1]), found[0])
    with pytest.raises(InputError, match="for the states of its latest call alone"):
        norm(2 * found.hidden_states[-1])
    with pytest.raises(InputError, match="attention_mask"):
        encoder(ids, attention_mask=torch.zeros(1, 77))


def test_options_that_do_not_go(bundle: Path) -> None:
    path = bundle / "unet.onnx"
    for options, says in (
        ({"device": "cuda"}, "no CUDA provider"),
        ({"device": "tpu"}, "Unknown device"),
    ):
        with pytest.raises(EngineError, match=says):
            todo_compile.load(path, **options)
    for options, says in (
        ({"cuda_graph": True}, "TensorRT"),
        ({"verify": "no"}, "Unknown verify"),
        ({"batching": "no"}, "Unknown batching"),
    ):
        with pytest.raises(ConfigError, match=says):
            todo_compile.load(path, **options)


def test_bf16_on_the_cpu_is_refused_or_right(model: Path, unet, tmp_path: Path) -> None:
    path = compiled(model, tmp_path / "u.onnx", precision="bf16")
    given = {k: v.bfloat16() if k != "timestep" else v for k, v in feeds().items()}
    try:
        ours = todo_compile.load(path)
    except EngineError as error:
        assert "fp32 or fp16" in str(error.remedy)  # noqa: PT017
        return
    exact = unet(*feeds().values()).sample
    found = ours(*given.values()).sample
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=0.1, atol=0.1)
