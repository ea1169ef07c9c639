"""ComfyUI's kind of denoiser under `torch.compile`: sites counted, numbers against the oracle."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from comfy_flux import Flux
from comfy_shapes import SPELLINGS, Level, UNet
from graphs import assert_close
from oracle import pooled_fused_attention
from torch import nn

import todo_compile

GRID, HALF = (12, 8), (6, 4)
LEVELS = {96: (0, GRID, (2, 2)), 24: (0, HALF, (2, 2))}
"""Keys of a self-attention → (text before them, grid, factors)."""
JOINT = {29: (5, HALF, (2, 2))}
"""Five tokens of text before an image of 2×2 patches."""


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.compiler.reset()
    todo_compile.clear_reports()
    with torch.no_grad():
        yield
    torch.compiler.reset()


def sharp(make: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
    """A model with the weights of one seed, whose attention is far from uniform."""
    torch.manual_seed(3)
    model = make(*args, **keywords)
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("to_q", "to_k", "qkv", "linear1")):
            parameter.data *= 4
    return model.eval()


def latent() -> torch.Tensor:
    return torch.randn(2, 4, *GRID, generator=torch.Generator().manual_seed(1))


def text() -> torch.Tensor:
    return torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(2))


TIME = torch.tensor([500.0, 20.0])


def compiled(model: nn.Module, *, fullgraph: bool = True, **options: Any) -> Any:
    chosen = {"factors": "2", "inner": "eager", **options}
    return torch.compile(model, backend="todo_inductor", fullgraph=fullgraph, options=chosen)


def truth(model: Any, segments: Any, *args: Any, **keywords: Any) -> torch.Tensor:
    """Of a model with the fused spelling; its sites are counted, and dense attention differs."""
    with pooled_fused_attention(segments, "nearest") as seen:
        result = model(*args, **keywords)
    assert len(seen) == rewritten(), "as many sites as the passes rewrote"
    return result


def rewritten() -> int:
    return sum(s.action == "rewritten" for r in todo_compile.reports() for s in r.sites)


@pytest.mark.parametrize("spelling", ["products", "written"])
def test_attention_as_products(spelling: str) -> None:
    """einsums in single precision, results written into their place; weights cast where used."""
    model = sharp(Level, SPELLINGS[spelling][0]).bfloat16().float()
    for part in (model.spatial.blocks, model.spatial.proj_in, model.spatial.proj_out):
        part.bfloat16()
        for norm in (m for m in part.modules() if isinstance(m, nn.LayerNorm)):
            norm.float()
    got = compiled(model)(latent(), text(), {})
    assert rewritten() == 1
    wanted = truth(sharp(Level).bfloat16().float(), LEVELS, latent(), text())
    assert_close((got,), wanted)


def test_unet() -> None:
    """Both levels, 1×1 convolutions, a list of contexts, ControlNet's list and a written dict."""
    model = sharp(UNet, linear=False)
    added = torch.randn(2, 8, *GRID, generator=torch.Generator().manual_seed(4))
    options: dict[str, Any] = {"sigmas": torch.tensor([1.0])}
    given = {"context": [text()], "control": {"input": [added]}}
    run = compiled(model, factors="2,2")
    got = run(latent(), TIME, **copy.deepcopy(given), transformer_options=options)
    assert rewritten() == 3
    assert options["transformer_index"] == 3
    assert options["block"] == ("output", 0)
    assert options["original_shape"] == [2, 4, *GRID]
    assert_close((got,), truth(model, LEVELS, latent(), TIME, **copy.deepcopy(given)))


def test_steps_share_one_graph_and_patches_do_not() -> None:
    """What a sampler changes in the dict at every step compiles nothing again; a patch does."""
    model = sharp(Level)
    run = compiled(model)
    plain = latent()
    for step, conditions in enumerate(([1, 0], [1], [0, 1])):
        options = {
            "sigmas": torch.tensor([10.0 - step]),
            "cond_or_uncond": conditions,
            "uuids": [f"{step}"],
            "wrappers": {},
        }
        plain = run(latent(), text(), options)
        assert options["block_index"] == 0
    assert len(todo_compile.reports()) == 1
    assert_close((plain,), truth(model, LEVELS, latent(), text()))

    options = {"patches": {"attn1_output": [lambda n, _: n * 0.25]}}
    patched = run(latent(), text(), options)
    assert len(todo_compile.reports()) == 2
    assert not torch.allclose(plain, patched)
    with pooled_fused_attention(LEVELS, "nearest"):
        assert_close((patched,), model(latent(), text(), options))


@torch.compiler.disable
def untraceable(n: torch.Tensor, _: dict[str, Any]) -> torch.Tensor:
    """What a patch of another node may be to Dynamo."""
    return n * 0.5


def test_broken_by_a_patch() -> None:
    """Parts that see tokens alone stay dense, and it is said where the graph was cut."""
    model = sharp(Level)
    options = {"patches": {"attn1_output": [untraceable]}}
    with pytest.warns(UserWarning, match="Dynamo splits this module"):
        got = compiled(model, fullgraph=False)(latent(), text(), dict(options))
    assert rewritten() == 0
    assert_close((got,), model(latent(), text(), dict(options)))


@pytest.mark.parametrize(("kernel", "size"), [(False, {}), (True, {"res": "64x96"})])
def test_flux(kernel: bool, size: dict[str, str]) -> None:
    """Patches cut in the model give the grid; rotations by table, queries and keys normed.

    Written out, or by one operator for both: then they are pooled where they enter attention.
    Nothing in it resizes a picture, and it is a whole model all the same: there is no warning.
    """
    model = sharp(Flux)
    model.kernel = kernel
    options: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = compiled(model, **size)(latent(), TIME, text(), options)
    assert [s.kind for r in todo_compile.reports() for s in r.sites] == ["joint", "joint"]
    assert rewritten() == 2
    assert options["block"] == ("single_block", 0)
    assert_close((got,), truth(model, JOINT, latent(), TIME, text()))


def test_queries_in_chunks_stay_dense() -> None:
    """The sub-quadratic spelling: a chunk of the queries is no image to the passes, which say so.

    ComfyUI takes it where neither xformers nor ``--use-pytorch-cross-attention`` is at work.
    """
    got = compiled(sharp(Level, SPELLINGS["chunked"][0]))(latent(), text(), {})
    own = [s for r in todo_compile.reports() for s in r.sites if "image tokens" in s.reason]
    assert [s.action for s in own] == ["dense", "dense"]
    assert_close((got,), sharp(Level)(latent(), text()))
