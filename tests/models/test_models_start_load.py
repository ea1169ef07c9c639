"""Weights that are filled in the background while the model is traced."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import make_unet

from todo_compile import models
from todo_compile.capture import capture
from todo_compile.errors import ModelError
from todo_compile.models import loading


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_unet().save_pretrained(tmp_path / "m" / "unet")
    return tmp_path / "m"


def find(folder: Path, text: str = "auto") -> tuple[Any, Any]:
    source = models.resolve(str(folder))
    return source, models.find_weights(source, models.WeightsChoice.parse(text))


@pytest.mark.parametrize("text", ["auto", "random:3"])
def test_traced_before_the_weights_are_there(
    folder: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, weights = find(folder, text)
    expected = models.load(source, weights, dtype=torch.float32).module.state_dict()
    go = threading.Event()
    filling = loading._filling

    def late(*args: Any) -> Callable[[], None]:
        fill = filling(*args)

        def wait_and_fill() -> None:
            assert go.wait(60)
            fill()

        return wait_and_fill

    monkeypatch.setattr(loading, "_filling", late)
    loaded = models.start_load(source, weights, dtype=torch.float32)
    example = models.example_inputs(loaded, models.Resolution(64, 64))
    program = capture(example.wrapper, example.args)
    go.set()
    loaded.finish()
    # The program refers to the tensors that were filled.
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
