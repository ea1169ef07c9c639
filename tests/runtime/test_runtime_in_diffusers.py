"""What diffusers' pipelines do with their modules besides calling them, done to compiled ones."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines as tiny
import torch

import todo_compile
from todo_compile.errors import InputError
from todo_compile.runtime.compiled import CompiledError


@pytest.fixture(scope="module")
def pipe(bundle: Path) -> Any:
    return todo_compile.load_pipeline(bundle)


def test_save_pretrained_is_refused(pipe: Any, unet_file: Path, tmp_path: Path) -> None:
    """Of a loaded bundle, and of a torch pipeline that was given one component."""
    mixed = tiny.sd()
    mixed.unet = todo_compile.load(unet_file)
    for number, one in enumerate((pipe, mixed)):
        folder = tmp_path / str(number)
        with pytest.raises(
            CompiledError, match=r"compiled: it cannot be saved[\s\S]*Copy the bund"
        ):
            one.save_pretrained(folder)
        assert not (folder / "unet").exists()
        assert one.config["unet"] != (None, None)


def test_a_copy_draws_the_same(pipe: Any) -> None:
    expected = tiny.picture(pipe, steps=2)
    copied = copy.deepcopy(pipe)
    assert copied.unet is not pipe.unet
    assert copied.unet.parts[0].session is pipe.unet.parts[0].session
    # The copy's schedule is its own: the pair must not look at the other's.
    pipe.scheduler.set_timesteps(7)
    assert tiny.picture(copied, steps=2).equal(expected)
    copied.scheduler.set_timesteps(9)
    assert tiny.picture(pipe, steps=2).equal(expected)
    assert copy.copy(pipe.unet).parts[0] is pipe.unet.parts[0]


@pytest.mark.parametrize(
    "dump",
    [pickle.dumps, lambda module: torch.save(module, io.BytesIO())],
    ids=["pickle", "torch.save"],
)
def test_pickling(pipe: Any, dump: Callable[[Any], Any]) -> None:
    for module in (pipe, pipe.unet, pipe.unet.dense, pipe.vae, pipe.text_encoder):
        with pytest.raises(CompiledError, match=r"cannot be pickled[\s\S]*Send the path"):
            dump(module)


def test_weights(pipe: Any) -> None:
    for module in (pipe.unet, pipe.unet.dense, pipe.vae, pipe.text_encoder):
        with pytest.raises(CompiledError, match="weights are inside the engine"):
            module.state_dict()


def test_offloading(bundle: Path) -> None:
    """What moves weights about is refused; groups of layers, which there are none of, are not."""
    pipe = todo_compile.load_pipeline(bundle)
    expected = tiny.picture(pipe, steps=2)
    with pytest.raises(
        CompiledError, match=r"compiled, and offloading .*cannot be used with it[\s\S]*Leave it"
    ):
        pipe.enable_model_cpu_offload(device="cpu")
    with pytest.raises(CompiledError, match=r"inside the engine[\s\S]*leave offloading out"):
        pipe.enable_sequential_cpu_offload(device="cpu")
    again = todo_compile.load_pipeline(bundle)
    again.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    assert tiny.picture(again, steps=2).equal(expected)


def test_moving(pipe: Any, bundle: Path) -> None:
    """To where it is; elsewhere it says what to do, by the kind of file."""
    assert pipe.to("cpu", torch.float32) is pipe
    with pytest.raises(InputError, match=r'cannot be moved to meta[\s\S]*device="meta"'):
        pipe.to("meta")
    with pytest.raises(InputError, match=r"cannot be moved[\s\S]*--precision that you need"):
        pipe.unet.parts[0].half()
    unet = todo_compile.load(bundle / "unet.onnx")
    # As from a GPU, which there is not everywhere.
    assert "do without offloading" in unet._instead(torch.empty(0))
    object.__setattr__(unet.origin, "name", "unet.plan")
    assert "runs on its GPU alone: delete the pipeline" in unet._instead(torch.empty(0))


def test_ip_adapters(bundle: Path) -> None:
    unet = todo_compile.load(bundle / "unet.onnx")
    pipe = tiny.sd()
    pipe.unet = unet
    weights = {"image_proj": {"norm.weight": torch.ones(4)}, "ip_adapter": {"x": torch.ones(4)}}
    with pytest.raises(
        CompiledError, match=r"compiled: it has no _load_ip_adapter_weights[\s\S]*torch"
    ):
        pipe.load_ip_adapter(weights, subfolder=None, weight_name=None, image_encoder_folder=None)
    with pytest.raises(CompiledError, match=r"no encoder_hid_proj[\s\S]*IP-Adapters are layers"):
        _ = pipe.unet.encoder_hid_proj
    assert not hasattr(unet, "_no_such_thing")
