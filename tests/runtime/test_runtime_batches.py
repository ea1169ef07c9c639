"""One output for a range of batches: exact at each, cut and filled up only beyond it.

The truth is diffusers' own module on keys subsampled by the oracle.
"""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest
import tiny_pipelines as tiny
import torch
from helpers import weights_outside
from oracle import OracleProcessor
from tiny_bundles import compiled, with_oracle

import todo_compile
from todo_compile.batches import BatchRange
from todo_compile.bundle import entries
from todo_compile.bundle import manifest as manifests
from todo_compile.bundle.tensors import Tensor, tensors
from todo_compile.errors import BundleError, ConfigError, InputError
from todo_compile.options import PlanOptions
from todo_compile.runtime.component import PaddedBatchWarning
from todo_compile.runtime.files import Origin
from todo_compile.runtime.loading import adapt

TOLERANCE = 5e-6  # pictures in [0, 1], see test_runtime_pipelines
EVERY = (1, 2, 3, 4)


@pytest.fixture(scope="module")
def ranged(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for batches 1 to 4 with a dense twin, weights in files of their own."""
    folder = tmp_path_factory.mktemp("ranged") / "sd"
    with pytest.MonkeyPatch.context() as patch:
        weights_outside(patch)
        todo_compile.compile_bundle(
            str(model),
            res=tiny.PIXELS,
            out=folder,
            format="onnx",
            precision="fp32",
            batch="1..4",
            dense_after=0.5,
            vae_options=PlanOptions.create(kv_tokens=64),
        )
    return folder


@pytest.fixture(scope="module")
def drawing(ranged: Path) -> tuple[Any, Any]:
    """The bundle's pipeline, rewritten in all steps, and torch's on the oracle."""
    ours = todo_compile.load_pipeline(ranged)
    ours.set_progress_bar_config(disable=True)
    ours.unet = ours.unet.parts[0]
    return ours, with_oracle(tiny.sd())


def feeds(batch: int, height: int = 16, width: int = 16) -> dict[str, torch.Tensor]:
    noise = torch.Generator().manual_seed(batch)
    return {
        "sample": torch.randn(batch, 4, height, width, generator=noise),
        "timestep": torch.tensor([7.0]),
        "encoder_hidden_states": torch.randn(batch, 77, 24, generator=noise),
    }


def test_every_batch_equals_the_oracle(ranged: Path) -> None:
    ours = todo_compile.load(ranged / "unet.onnx", batching="strict")
    truth, dense = with_oracle(tiny.sd()).unet, tiny.unet()
    for batch in EVERY:
        sample, timestep, text = feeds(batch).values()
        with torch.no_grad():
            expected = truth(sample, timestep.expand(batch), text).sample
            other = dense(sample, timestep.expand(batch), text).sample
        found = ours(sample, 7, text).sample
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert float((other - expected).abs().max()) > 1e-3
    twin = todo_compile.load(ranged / "unet.dense.onnx")
    sample, timestep, text = feeds(3).values()
    with torch.no_grad():
        other = dense(sample, timestep.expand(3), text).sample
    torch.testing.assert_close(twin(sample, 7, text).sample, other, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_odd_grids_equal_the_oracle(model: Path, tmp_path: Path) -> None:
    """15×13 cells: the factors divide neither side, the second level is 8×7."""
    out = tmp_path / "odd.onnx"
    options = PlanOptions.create(factors="2")
    todo_compile.compile(
        str(model), res="26x30", out=out, precision="fp32", batch=(1, 4), options=options, opset=18
    )
    ours = todo_compile.load(out)
    truth: Any = tiny.unet()
    truth.set_attn_processor(OracleProcessor({195: (15, 13)}, {195: (2, 2)}, "nearest"))
    for batch in EVERY:
        sample, timestep, text = feeds(batch, 15, 13).values()
        with torch.no_grad():
            expected = truth(sample, timestep.expand(batch), text).sample
        torch.testing.assert_close(ours(sample, 7, text).sample, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("component", ["unet", "vae_decoder"])
def test_it_is_the_graph_of_a_fixed_batch(
    ranged: Path, model: Path, tmp_path: Path, component: str
) -> None:
    """The same decision at every site, and the same operators but for the timestep's batch."""
    most = {"unet": 4, "vae_decoder": 2}[component]
    fixed_path = compiled(model, tmp_path / "fixed.onnx", component, batch=most)
    fixed, found = manifests.read(fixed_path), manifests.read(ranged / f"{component}.onnx")
    assert found.sites == fixed.sites
    assert [s["action"] for s in found.sites].count("rewritten") == (3 if most == 4 else 1)
    assert found.totals == fixed.totals  # figures of the largest batch
    new = Counter(found.onnx["ops"]) - Counter(fixed.onnx["ops"])
    assert new.keys() <= {"Shape", "Reshape", "Concat", "Squeeze"}
    assert new.total() <= (5 if component == "unet" else 0)
    assert not Counter(fixed.onnx["ops"]) - Counter(found.onnx["ops"])
    assert not any("batches" in tensor for tensor in fixed.model_dump()["inputs"])


def test_the_file_is_valid_and_names_its_batch(ranged: Path) -> None:
    for path in ranged.glob("[uv]*.onnx"):
        onnx.checker.check_model(str(path), full_check=True)
        graph = onnx.load(str(path), load_external_data=False).graph
        for value in [*graph.input, *graph.output]:
            first, *rest = value.type.tensor_type.shape.dim
            assert (first.dim_param == "batch") == (value.name != "timestep")
            assert all(size.dim_value > 0 for size in rest)
        symbols = {
            size.dim_param
            for value in graph.value_info
            for size in value.type.tensor_type.shape.dim
        }
        assert symbols <= {"", "batch"}


def test_the_twin_shares_its_weights(ranged: Path) -> None:
    shared = manifests.read(ranged / "unet.dense.onnx").files
    assert "unet.onnx.data" in [entry.name for entry in shared]
    assert not (ranged / "unet.dense.onnx.data").exists()


def test_parts_get_the_batch_that_is_theirs(ranged: Path) -> None:
    batches = {
        name: manifests.read(ranged / f"{name}.onnx").request["batch"]
        for name in ("unet", "unet.dense", "vae_decoder", "text_encoder")
    }
    assert batches == {
        "unet": "1..4",
        "unet.dense": "1..4",
        "vae_decoder": "1..2",
        "text_encoder": 1,
    }
    (picture,) = manifests.read(ranged / "vae_decoder.onnx").outputs
    assert picture.shape == (-1, 3, 32, 32)
    assert picture.batches == BatchRange(1, 2, 2)


@pytest.mark.parametrize(
    ("images", "guidance", "runs"),
    [(1, 4.0, [2]), (2, 4.0, [4]), (3, 4.0, [4, 2]), (1, 1.0, [1])],
)
def test_pictures_equal_torch(
    drawing: tuple[Any, Any],
    images: int,
    guidance: float,
    runs: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What lies in the range runs as it is, once; nothing is ever filled up."""
    options = {"num_images_per_prompt": images, "guidance_scale": guidance}
    ours, oracle = drawing
    inner, seen = ours.unet.session, []

    class Watched:
        device, inputs, outputs = inner.device, inner.inputs, inner.outputs

        def run(self, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            seen.append(len(given["sample"]))
            return inner.run(given)

    monkeypatch.setattr(ours.unet, "session", Watched())
    with warnings.catch_warnings():
        warnings.simplefilter("error", PaddedBatchWarning)
        found = tiny.picture(ours, **options)
    expected = tiny.picture(oracle, **options)
    assert found.shape == (images, 32, 32, 3)
    assert float((found - expected).abs().max()) < TOLERANCE
    assert seen == runs * (len(seen) // len(runs)) != []


@pytest.mark.parametrize(
    ("changes", "says", "remedy"),
    [
        ({"sample": torch.zeros(5, 4, 16, 16)}, r"instead of \(1..4, 4, 16, 16\)", "--batch 1..5"),
        ({"sample": torch.zeros(0, 4, 16, 16)}, r"instead of \(1..4, 4, 16, 16\)", "--batch 0..4"),
        ({"sample": torch.zeros(2, 4, 16, 8)}, r"instead of \(1..4, 4, 16, 16\)", "resolution"),
        ({"sample": torch.zeros(2, 16, 16)}, r"instead of \(1..4, 4, 16, 16\)", "as (1..4, 4,"),
        (
            {"encoder_hidden_states": torch.zeros(3, 77, 24)},
            "different batches, 2 of sample and 3 of encoder_hidden_states;",
            "the same batch",
        ),
    ],
)
def test_refusals_name_the_range(
    ranged: Path, changes: dict[str, torch.Tensor], says: str, remedy: str
) -> None:
    ours = todo_compile.load(ranged / "unet.onnx")
    with pytest.raises(InputError, match=says) as caught:
        ours.session.run({**feeds(2), **changes})
    assert "built for 32x32 px, batch 1..4, fp32" in caught.value.message
    assert remedy in str(caught.value.remedy)


class Doubles:
    """A session for batches 3 to 4 that keeps count."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        made = tensors(
            [Tensor(name=n, shape=(4, 2), dtype="float32") for n in ("x", "y")],
            [BatchRange(3, 4, 4)] * 2,
        )
        self.inputs, self.outputs = {"latent_sample": made[0]}, {"y": made[1]}
        self.runs: list[int] = []

    def run(self, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        value = given["latent_sample"]
        assert self.inputs["latent_sample"].fits(tuple(value.shape))
        self.runs.append(len(value))
        return {"y": value * 2}


@pytest.mark.parametrize(
    ("count", "runs", "filled"),
    [(3, [3], 0), (4, [4], 0), (6, [3, 3], 0), (9, [3, 3, 3], 0), (2, [3], 1), (5, [4, 3], 2)],
)
def test_small_batches_are_filled_up(count: int, runs: list[int], filled: int) -> None:
    session = Doubles()
    origin = Origin.of("v.onnx", {"component": "vae_decoder", "class": "AutoencoderKL"})
    decoder: Any = adapt(session, origin)
    rows = torch.arange(2.0 * count).reshape(count, 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = decoder.decode(rows, return_dict=False)[0]
    assert torch.equal(found, rows * 2)
    assert session.runs == runs
    said = [str(w.message) for w in caught if w.category is PaddedBatchWarning]
    assert len(said) == (filled > 0)
    if filled:
        assert f"so {filled} of {sum(runs)} rows" in said[0]


def test_a_manifest_of_another_range_is_refused(ranged: Path, model: Path, tmp_path: Path) -> None:
    """A range is part of what the file itself must say."""
    path = compiled(model, tmp_path / "u.onnx")
    document = manifests.read(path)
    ranged_inputs = manifests.read(ranged / "unet.onnx").inputs
    changed = document.model_copy(update={"inputs": ranged_inputs})
    entries.write(changed, manifests.manifest_path(path))
    with pytest.raises(BundleError, match="does not describe its inputs"):
        todo_compile.load(path)


def test_text_has_no_range(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="text encoder has no range") as caught:
        compiled(model, tmp_path / "t.onnx", "text_encoder", batch="1..4")
    assert caught.value.remedy
    assert not list(tmp_path.iterdir())
