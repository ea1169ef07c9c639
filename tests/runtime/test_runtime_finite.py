"""NaN and infinity are errors that name the place; what is wrong with a drawing is said plainly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines as tiny
import torch

from todo_compile.errors import ConfigError, EngineError, InputError
from todo_compile.models import Resolution
from todo_compile.runtime.finite import NotFiniteError, check_finite
from todo_compile.runtime.generate import check_settings, generate
from todo_compile.runtime.loading import load
from todo_compile.runtime.schedulers import check_steps


def draw(pipe: Any, steps: int = 3) -> Any:
    return generate(pipe, "a cat", steps=steps, resolution=Resolution(tiny.PIXELS, tiny.PIXELS))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_check(value: float) -> None:
    check_finite([torch.ones(2), torch.tensor([1, 2]), torch.empty(0)], "x")
    with pytest.raises(NotFiniteError, match="came out of x"):
        check_finite([torch.ones(2), torch.tensor([0, value])], "x")


def test_compiled_component(unet_file: Path) -> None:
    unet = load(unet_file)
    sample = torch.full((2, 4, 16, 16), float("nan"))
    with pytest.raises(NotFiniteError, match=r"came out of unet\.onnx") as caught:
        unet(sample, 1, torch.zeros(2, 77, tiny.TEXT))
    assert "--precision fp32" in str(caught.value)


@pytest.mark.parametrize(
    ("part", "name"),
    [("unet", "unet"), ("text_encoder", "text_encoder"), ("vae", "vae decoder")],
)
def test_weights_with_nan(part: str, name: str) -> None:
    pipe = tiny.sd()
    with torch.no_grad():
        for parameter in getattr(pipe, part).parameters():
            parameter.fill_(float("nan"))
    step = "step 3 of 3" if part == "vae" else "step 1 of 3"
    with pytest.raises(NotFiniteError, match=f"{name} .* at {step}"):
        draw(pipe)


def test_hooks_are_gone_afterwards() -> None:
    pipe = tiny.sd()
    draw(pipe)
    assert not pipe.unet._forward_hooks
    assert not pipe.vae.decoder._forward_hooks


def test_scheduler_that_makes_nan() -> None:
    scheduler = tiny.scheduler()
    scheduler.alphas_cumprod = scheduler.alphas_cumprod * float("nan")
    with pytest.raises(ConfigError, match="NaN or infinity"):
        check_steps(scheduler, 3)


@pytest.mark.parametrize(
    ("raised", "expected", "says"),
    [
        (InputError("ours", remedy="mend"), InputError, "^ours\nmend$"),
        (torch.OutOfMemoryError("CUDA out of memory"), EngineError, "Memory ran out"),
        (MemoryError(), EngineError, "Memory ran out"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you"), EngineError, "Memory ran"),
        (RuntimeError("shapes do not fit"), InputError, "cannot draw this"),
        (ValueError("bad"), InputError, "cannot draw this"),
    ],
)
def test_what_goes_wrong(raised: Exception, expected: type[Exception], says: str) -> None:
    pipe = tiny.sd()

    def fail(*_: Any, **__: Any) -> Any:
        raise raised

    pipe.unet.forward = fail
    with pytest.raises(expected, match=says) as caught:
        draw(pipe)
    assert type(caught.value) is expected


@pytest.mark.parametrize(
    ("guidance", "seed"), [(-1.0, 0), (float("nan"), 0), (7.5, -1), (7.5, 2**64)]
)
def test_settings(guidance: float, seed: int) -> None:
    with pytest.raises(ConfigError):
        check_settings(1, guidance, seed)
