"""What people give `torch.compile` besides our options, and what they give `accelerate`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from backend_helpers import inputs, small_unet, with_oracle
from graphs import Decoder, ImageAttention, assert_close, image

import todo_compile
from todo_compile._torch import inductor_mode
from todo_compile.dynamo import backend
from todo_compile.dynamo.backend_options import BackendOptions
from todo_compile.errors import ConfigError

SIZES = ((8, 8), (8, 12), (12, 12), (16, 12), (6, 10))


def test_a_mode_among_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch takes its own ``mode`` or ``options``, not both."""
    given: list[Any] = []

    def inductor(graph: torch.fx.GraphModule, _: Any, options: Any) -> Any:
        given.append(options)
        return graph.forward

    monkeypatch.setattr(backend, "inductor", inductor)
    options: Any = {"mode": "max-autotune-no-cudagraphs", "factors": 2, "epilogue_fusion": False}
    module = torch.compile(ImageAttention(), backend="todo_inductor", options=options)
    with torch.no_grad():
        module(image(8, 8))
    expected = {**inductor_mode("max-autotune-no-cudagraphs"), "epilogue_fusion": False}
    assert given == [expected]
    assert todo_compile.reports()[-1].rewritten == 1
    unet = todo_compile.accelerate(small_unet(), mode="max-autotune-no-cudagraphs", factors="2")
    with torch.no_grad():
        unet(*inputs())
    assert given[1] == inductor_mode("max-autotune-no-cudagraphs")


def test_modes_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="Unknown mode 'fastest'"):
        BackendOptions.parse({"mode": "fastest"}, None)
    with pytest.raises(ConfigError, match="mode must be text"):
        BackendOptions.parse({"mode": 3}, None)
    with pytest.raises(ConfigError, match="mode 'max-autotune' cannot be given to inner backend"):
        BackendOptions.parse({"mode": "max-autotune", "inner": "eager"}, None)
    assert BackendOptions.parse({"mode": "default"}, None).inductor == {}


def graphs(module: Any, made: Callable[[], int]) -> list[int]:
    """Graphs compiled so far, after each size."""
    found: list[int] = []
    with torch.no_grad():
        for size in SIZES:
            module(image(*size))
            found.append(made())
    return found


@pytest.mark.parametrize("dynamic", [True, None])
def test_off_is_as_free_as_plain_dynamo(dynamic: bool | None) -> None:
    """No graph more than without us, at any size."""
    calls: list[int] = []

    def plain(graph: torch.fx.GraphModule, _: Any) -> Any:
        calls.append(1)
        return graph.forward

    expected = graphs(
        torch.compile(ImageAttention(), dynamic=dynamic, backend=plain), lambda: len(calls)
    )
    assert expected[-1] < len(SIZES)
    torch.compiler.reset()
    options: Any = {"factors": "off", "inner": "eager"}
    ours = torch.compile(
        ImageAttention(), dynamic=dynamic, backend="todo_inductor", options=options
    )
    assert graphs(ours, lambda: len(todo_compile.reports())) == expected
    assert all(report.rewritten == 0 for report in todo_compile.reports())


def test_a_component_without_its_pipeline() -> None:
    unet = small_unet()
    with torch.no_grad():
        wanted, dense = with_oracle(unet)(*inputs()).sample, unet(*inputs()).sample
        assert todo_compile.accelerate(unet, factors="2", inner="eager") is unet
        assert_close((unet(*inputs()).sample,), (wanted,))
        assert todo_compile.restore(unet) is unet
        assert unet(*inputs()).sample.equal(dense)


def test_an_autoencoder_without_its_pipeline() -> None:
    vae: Any = Decoder().vae
    vae.register_to_config(sample_size=4)
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        dense = vae.decode(latent).sample
        todo_compile.accelerate(vae, inner="eager")
        assert not vae.decode(latent).sample.equal(dense)
    (report,) = todo_compile.reports()
    assert (report.options["kv_tokens"], report.rewritten) == (16, 1)


@pytest.mark.parametrize("name", ["native", "_native_math"])
def test_attention_backends_of_diffusers(name: str) -> None:
    unet = small_unet()
    with torch.no_grad():
        wanted = with_oracle(unet)(*inputs()).sample
        unet.set_attention_backend(name)
        todo_compile.accelerate(unet, factors="2", inner="eager")
        assert_close((unet(*inputs()).sample,), (wanted,))
    assert todo_compile.reports()[-1].rewritten == 3
