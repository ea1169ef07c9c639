"""One output for a range of texts, and shorter texts filled up: exact at every length.

The truth is diffusers' own module or pipeline on keys subsampled by the oracle.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
from tiny_bundles import compiled, with_oracle
from zoo_bundles import Pooled, call, made, zoo

import todo_compile
from todo_compile.batches import TextRange
from todo_compile.bundle import manifest as manifests
from todo_compile.bundle.bundle import read_bundle
from todo_compile.capture.recording.lengths import reads_apart
from todo_compile.errors import CaptureError, ConfigError, InputError
from todo_compile.models import Resolution
from todo_compile.runtime.generate import generate


@pytest.fixture(scope="module")
def ranged(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("texts") / "unet.onnx"
    return compiled(model, out, batch="1..2", text_tokens="20..154")


def called(length: int, rows: int = 2) -> dict[str, torch.Tensor]:
    noise = torch.Generator().manual_seed(length)
    return {
        "sample": torch.randn(rows, 4, 16, 16, generator=noise),
        "timestep": torch.tensor([7.0]),
        "encoder_hidden_states": torch.randn(rows, length, tiny.TEXT, generator=noise),
    }


def test_every_length_equals_the_oracle(ranged: Path) -> None:
    ours = todo_compile.load(ranged, batching="strict")
    truth, dense = with_oracle(tiny.sd()).unet, tiny.unet()
    for length, rows in ((20, 2), (77, 1), (154, 2)):
        sample, timestep, text = called(length, rows).values()
        with torch.no_grad():
            expected = truth(sample, timestep.expand(rows), text).sample
            other = dense(sample, timestep.expand(rows), text).sample
        torch.testing.assert_close(ours(sample, 7, text).sample, expected, rtol=1e-4, atol=1e-5)
        assert float((other - expected).abs().max()) > 1e-3


def test_the_range_is_in_the_manifest_and_a_long_prompt_draws(ranged: Path) -> None:
    found = manifests.read(ranged)
    spec = next(one for one in found.inputs if one.name == "encoder_hidden_states")
    assert (spec.shape, spec.texts) == ((-1, -1, tiny.TEXT), TextRange(20, 154, 154))
    assert spec.profile == ((1, 20, 24), (2, 154, 24), (2, 154, 24))
    assert [s["action"] for s in found.sites].count("rewritten") == 3
    assert {s["key_tokens"] for s in found.sites if s["kind"] == "cross"} == {154}
    torch.manual_seed(0)
    texts = {
        name: torch.randn(1, 154, tiny.TEXT) for name in ("prompt_embeds", "negative_prompt_embeds")
    }

    def pixels(pipeline: Any) -> Any:
        pipeline.set_progress_bar_config(disable=True)
        return pipeline(
            **texts, num_inference_steps=2, height=tiny.PIXELS, width=tiny.PIXELS,
            output_type="np", generator=torch.Generator().manual_seed(0),
        ).images  # fmt: skip

    ours, truth = tiny.sd(), tiny.sd()
    ours.unet = todo_compile.load(ranged)
    truth.unet = with_oracle(tiny.sd()).unet
    assert np.abs(pixels(ours) - pixels(truth)).max() < 5e-6


def test_other_lengths_are_refused_with_the_range_that_has_them(ranged: Path) -> None:
    ours = todo_compile.load(ranged)
    given = called(200)
    with pytest.raises(
        InputError, match=r"\(2, 200, 24\) instead of \(1\.\.2, 20\.\.154, 24\)"
    ) as found:
        ours(*given.values())
    assert "--text-tokens 20..200" in str(found.value.remedy)


def test_a_range_that_rises_not_or_ends_too_far_is_refused(model: Path, tmp_path: Path) -> None:
    for texts, says in (
        ("77..20", "is not a range of lengths of text: its numbers must rise"),
        ("77..5000", "A text of 5000 tokens is not possible"),
        ("77-154", "is not a length of text"),
        ((0, 9), "A length of text of 0 is not possible"),
    ):
        with pytest.raises(ConfigError, match=says):
            compiled(model, tmp_path / "x.onnx", text_tokens=texts)
    assert not list(tmp_path.iterdir())


def test_joint_attention_is_refused_with_the_reason(tmp_path: Path) -> None:
    folder = zoo.save(zoo.make("sd3"), tmp_path / "model")
    with pytest.raises(ConfigError, match="text and picture in one sequence") as found:
        todo_compile.compile(
            str(folder), res="192x128", out=tmp_path / "x.onnx", precision="fp32", factors="2",
            text_tokens="200..333",
        )  # fmt: skip
    assert "--text-tokens 333" in str(found.value.remedy)
    assert not (tmp_path / "x.onnx").exists()


def pictures(pipeline: Any, bundle: Path, name: str, prompt: str) -> tuple[Any, Any, Any]:
    """(dense, by the oracle, by the bundle)."""
    given = {**call(pipeline, name), "prompt": prompt}
    dense = generate(pipeline, **given).pixels
    with Pooled(pipeline, name) as pooled:
        truth = generate(pipeline, **given).pixels
    assert pooled.sites
    return dense, truth, generate(todo_compile.load_pipeline(bundle), **given).pixels


def test_a_bundle_draws_prompts_of_every_length(tmp_path: Path) -> None:
    """Qwen-Image passes texts as they are: they are filled up beside the mask."""
    pipeline, bundle = made("qwen_image", tmp_path)
    for prompt in ("a", "a b a b a b a b a b"):
        dense, truth, found = pictures(pipeline, bundle, "qwen_image", prompt)
        assert np.abs(found - truth).max() < 0.1 * np.abs(truth - dense).max()
    transformer = todo_compile.load_pipeline(bundle).transformer
    given = {
        "hidden_states": torch.zeros(1, 96, 16), "timestep": torch.zeros(1),
        "img_shapes": [[(1, 8, 12)]], "encoder_hidden_states": torch.zeros(1, 600, 16),
    }  # fmt: skip
    with pytest.raises(InputError, match="passes 600 tokens of text") as found:
        transformer(**given)
    assert "--text-tokens 600" in str(found.value.remedy)


def test_a_text_in_complex_tables_has_one_length(tmp_path: Path) -> None:
    folder = zoo.save(zoo.make("qwen_image"), tmp_path / "model")
    with pytest.raises(CaptureError, match="several lengths: You marked text as dynamic") as found:
        todo_compile.plan(str(folder), res="96x64", precision="fp32", text_tokens="16..512")
    assert "one number" in str(found.value.remedy)


@pytest.mark.slow
def test_a_unet_whose_pipeline_fills_no_text_up_has_a_range_by_itself(tmp_path: Path) -> None:
    """Kandinsky 3 takes the mean of its text: filled up it would be another picture."""
    pipeline, bundle = made("kandinsky3", tmp_path)
    unet = manifests.read(bundle / read_bundle(bundle).components["unet"].file)
    texts = {one.name: one.texts for one in unet.inputs}
    assert texts["encoder_hidden_states"] == TextRange(1, 128, 128)
    for prompt in ("a", "a b a b a b a b a b"):
        dense, truth, found = pictures(pipeline, bundle, "kandinsky3", prompt)
        assert np.abs(found - truth).max() < 0.1 * np.abs(truth - dense).max()


@pytest.mark.slow
def test_an_engine_has_a_profile_of_both_ranges(model: Path, tmp_path: Path) -> None:
    """The builder takes it; that its shapes are the manifest's is checked when it is loaded."""
    pytest.importorskip("tensorrt_rtx")
    result: Any = todo_compile.compile(
        str(model), res=tiny.PIXELS, out=tmp_path / "x.plan", batch="1..2",
        text_tokens="20..77..154",
    )  # fmt: skip
    texts = {one.name: one.text for one in result.manifest.inputs}
    assert texts["encoder_hidden_states"] == f"1..2, 20..154, {tiny.TEXT}"
    spec = next(one for one in result.manifest.inputs if one.texts is not None)
    assert spec.profile == ((1, 20, 24), (2, 77, 24), (2, 154, 24))


@pytest.mark.slow
def test_texts_that_are_read_with_the_picture_have_one_length(tmp_path: Path) -> None:
    """Z-Image: without guidance there is one text; with it, prompt and negative prompt differ."""
    pipeline = zoo.make("z_image")
    folder = zoo.save(pipeline, tmp_path / "model")
    call: dict[str, Any] = {"steps": 2, "resolution": Resolution(192, 128)}

    def built(batch: int) -> Any:
        out = tmp_path / f"bundle{batch}"
        todo_compile.compile_bundle(
            str(folder), res="192x128", out=out, format="onnx", precision="fp32", factors="off",
            batch=batch, text_tokens=4,
        )  # fmt: skip
        return todo_compile.load_pipeline(out)

    alone = built(1)
    truth = generate(pipeline, "a b a", guidance=0.0, **call).pixels
    assert np.abs(generate(alone, "a b a", guidance=0.0, **call).pixels - truth).max() < 1e-3
    with pytest.raises(InputError, match=r"passes 3 tokens of text; .* with 4") as found:
        generate(alone, "a b", guidance=0.0, **call)
    assert "--text-tokens 3" in str(found.value.remedy)
    with pytest.raises(InputError, match=r"tokens of text; .* with 4") as found:
        generate(built(2), "a b a", **call)
    assert "a negative prompt as long as the prompt" in str(found.value.remedy)
    assert "--batch 1 and --text-tokens" in str(found.value.remedy)


def test_what_reads_its_text_apart() -> None:
    """Keys that grow with the text by as much as it does, and attention that was seen at all."""
    attend = torch.nn.functional.scaled_dot_product_attention
    picture = torch.ones(1, 6, 4)

    def apart(call: Any) -> object:
        return attend(picture, call["text"], value=call["text"]), attend(picture, picture, picture)

    def joined(call: Any) -> object:
        tokens = torch.cat([picture, call["text"]], 1)
        return attend(tokens, tokens, tokens)

    def spelled_out(call: Any) -> object:
        return (picture @ call["text"].mT).softmax(-1) @ call["text"]

    def raises(call: Any) -> object:
        return call["nothing"]

    calls = [{"text": torch.ones(1, length, 4)} for length in (3, 5)]
    found = [reads_apart(run, calls, (3, 5)) for run in (apart, joined, spelled_out, raises)]
    assert found == [True, False, False, False]
