"""Every kind of model with a range of batches: which inputs have it, and one graph for all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from tiny_models import TINY_XL, make_unet
from torch.export import ExportedProgram

from todo_compile import PlanOptions
from todo_compile.batches import BatchRange, parse_batch
from todo_compile.build.verification import run_onnx
from todo_compile.capture.inputs import example_inputs, input_specs
from todo_compile.capture.trace import capture
from todo_compile.errors import CaptureError, ConfigError
from todo_compile.export.onnx import export_onnx
from todo_compile.models import (
    Resolution,
    WeightsChoice,
    find_weights,
    load,
    resolve,
    resolve_component,
)
from todo_compile.passes.pipeline import rewrite_graph
from todo_compile.progress import SilentProgress

RANGE = BatchRange(1, 3, 3)


def unet(folder: Path) -> None:
    make_unet().save_pretrained(folder / "unet")


def sdxl(folder: Path) -> None:
    make_unet(**TINY_XL).save_pretrained(folder / "unet")


def labelled(folder: Path) -> None:
    """Labels with the fill of a timestep, but one for each row."""
    make_unet(class_embed_type="timestep").save_pretrained(folder / "unet")


def pixart(folder: Path) -> None:
    PixArtTransformer2DModel(
        num_attention_heads=6,
        attention_head_dim=16,
        num_layers=1,
        sample_size=16,
        cross_attention_dim=96,
        caption_channels=24,
        use_additional_conditions=True,
    ).save_pretrained(folder / "transformer")


def dit(folder: Path) -> None:
    DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        sample_size=8,
        num_embeds_ada_norm=10,
    ).save_pretrained(folder / "transformer")


def decoder(folder: Path) -> None:
    unet(folder)
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1),
    ).save_pretrained(folder / "vae")  # fmt: skip


def tensor_calls(program: ExportedProgram) -> Counter[str]:
    """Operators of a graph without the arithmetic on its sizes."""
    nodes = [n for n in program.graph.nodes if n.op == "call_function"]
    return Counter(str(n.target) for n in nodes if isinstance(n.meta["val"], torch.Tensor))


@pytest.mark.parametrize(
    ("make", "rewritten"),
    [
        (unet, 3),
        pytest.param(sdxl, 4, marks=pytest.mark.slow),
        pytest.param(labelled, 3, marks=pytest.mark.slow),
        pytest.param(pixart, 1, marks=pytest.mark.slow),
        (dit, 1),
        (decoder, 0),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_one_graph_for_every_batch(
    tmp_path: Path, make: Callable[[Path], None], rewritten: int
) -> None:
    make(tmp_path)
    source = resolve_component(str(tmp_path), "vae_decoder" if make is decoder else "unet")
    weights = find_weights(source, WeightsChoice.parse("random"), dtype=torch.float32)
    model = load(source, weights, dtype=torch.float32)
    size = Resolution(128, 128 if make is dit else 96)  # diffusers' DiT is for squares
    example = example_inputs(model, size, batch=RANGE)
    have = {n for n, b in zip(example.input_names, example.batches, strict=True) if b is not None}
    assert set(example.input_names) - have <= {"timestep"}
    given = dict(zip(example.input_names, example.args, strict=True))
    assert all(len(given[name]) == 3 for name in have)

    program = capture(example.wrapper, example.args, batches=example.batches)
    fixed = capture(example.wrapper, example.args)
    options = PlanOptions.create(factors="2")
    found = rewrite_graph(program.graph_module, options, explicit_casts=True, batch=3)
    wanted = rewrite_graph(fixed.graph_module, options, explicit_casts=True)
    program.validate()
    assert [s.action for s in found.sites].count("rewritten") == rewritten
    assert found.to_dict()["sites"] == wanted.to_dict()["sites"]
    assert found.totals == wanted.totals
    assert not found.per_item
    assert tensor_calls(program) == tensor_calls(fixed)

    module, truth = program.module(), fixed.module()
    with torch.no_grad():
        all_three = truth(*example.args)
        for batch in (1, 2, 3):
            rows = module(*example.rows(batch))
            torch.testing.assert_close(rows, all_three[:batch], rtol=1e-5, atol=3e-5)

    path = tmp_path / "model.onnx"
    export_onnx(
        program,
        path,
        opset=23,
        input_names=example.input_names,
        output_names=example.output_names,
        progress=SilentProgress(),
    )
    expected = all_three[0] if isinstance(all_three, tuple) else all_three
    for batch in (1, 3):
        feeds = dict(zip(example.input_names, example.rows(batch), strict=True))
        torch.testing.assert_close(run_onnx(path, feeds)[0], expected[:batch], rtol=1e-5, atol=3e-5)


def test_limits_of_a_range() -> None:
    """diffusers makes another graph from 64 rows on, so no range may reach that far."""
    source, size = resolve("sd15"), Resolution.parse("512")

    def shape(batch: str) -> tuple[int, ...]:
        found = input_specs(source, size, batch=parse_batch(batch), dtype=torch.float16)
        return found[0].shape

    assert shape("1..63") == (63, 4, 64, 64)
    assert shape("64") == (64, 4, 64, 64)
    with pytest.raises(ConfigError, match="up to 64 is not possible") as caught:
        shape("1..64")
    assert "63" in str(caught.value.remedy)


def test_a_module_that_treats_batches_differently_is_refused() -> None:
    class Picky(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if x.shape[0] > 2 else x

    with pytest.raises(CaptureError, match="Picky cannot be captured"):
        capture(Picky(), (torch.ones(3, 2),), batches=[RANGE])
    assert capture(Picky(), (torch.ones(3, 2),)) is not None
