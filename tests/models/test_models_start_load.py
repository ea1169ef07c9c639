"""Weights that are filled in the background while the model is traced."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import make_unet

from todo_compile import models
from todo_compile.capture.inputs import example_inputs
from todo_compile.capture.trace import capture
from todo_compile.errors import ModelError
from todo_compile.models import loading


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_unet().save_pretrained(tmp_path / "m" / "unet")
    return tmp_path / "m"


def find(folder: Path, text: str = "auto") -> tuple[Any, Any]:
    source = models.resolve(str(folder))
    return source, models.find_weights(source, models.WeightsChoice.parse(text))


def save_lora(file: Path) -> models.Lora:
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    layer = make_unet().get_submodule(name.removeprefix("unet."))
    assert isinstance(layer, torch.nn.Linear)
    width = layer.out_features
    parts = {"lora_A": torch.randn(2, width), "lora_B": torch.randn(width, 2)}
    save_file({f"{name}.{side}.weight": value for side, value in parts.items()}, file)
    return models.parse_lora(str(file))


@pytest.mark.parametrize("inside", [False, True], ids=["after tracing", "while tracing"])
@pytest.mark.parametrize("text", ["auto", "random:3"])
def test_filled_late(
    folder: Path, text: str, inside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program's tensors are filled, also while export has fake ones in their place."""
    source, weights = find(folder, text)
    loras = [save_lora(folder / "lora.safetensors")]
    expected = models.load(source, weights, dtype=torch.float32, loras=loras).module.state_dict()
    go = threading.Event()
    filling = loading._filling

    def late(*args: Any) -> Callable[[], None]:
        fill = filling(*args)

        def wait_and_fill() -> None:
            assert go.wait(60)
            fill()

        return wait_and_fill

    monkeypatch.setattr(loading, "_filling", late)
    loaded = models.start_load(source, weights, dtype=torch.float32, loras=loras)
    filled: list[int] = []

    def fill_now(*_: object) -> None:
        go.set()
        loaded.finish()
        filled.append(1)

    if inside:
        block = loaded.module.get_submodule("mid_block")
        block.register_forward_pre_hook(fill_now)
    example = example_inputs(loaded, models.Resolution(64, 64))
    program = capture(example.wrapper, example.args)
    assert bool(filled) == inside
    go.set()
    loaded.finish()
    for name, value in program.state_dict.items():
        assert torch.equal(value, expected[name.removeprefix("unet.")]), name


def test_a_checkpoint_that_does_not_fit_is_refused_at_once(folder: Path) -> None:
    other = make_unet(cross_attention_dim=20)
    other.save_pretrained(folder / "other")
    source, weights = find(folder, str(folder / "other"))
    with pytest.raises(ModelError, match="does not fit the model"):
        models.start_load(source, weights, dtype=torch.float32)


def test_what_fails_later_is_not_lost(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, weights = find(folder)
    go = threading.Event()

    def broken() -> None:
        assert go.wait(60)
        raise ModelError("the disk is gone")

    monkeypatch.setattr(loading, "_filling", lambda *_: broken)
    loaded = models.start_load(source, weights, dtype=torch.float32)
    go.set()
    with pytest.raises(ModelError, match="the disk is gone"):
        loaded.finish()
