"""Modes, dtypes, breaks, training and caches of ``backend="todo_inductor"``, against the oracle."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.config as dynamo_config  # noqa: TID251 - what users must set, too
from backend_helpers import inputs, small_unet, with_oracle
from graphs import ImageAttention, assert_close, image
from oracle import stand_ins
from torch import nn

import todo_compile


def oracle(model: ImageAttention, grid: tuple[int, int], factor: int = 2) -> ImageAttention:
    other = copy.deepcopy(model)
    other.pool = lambda t: stand_ins(t, 2, grid, (factor, factor))
    return other


def compiled(model: nn.Module, **options: Any) -> Any:
    chosen = {"factors": 2, "inner": "eager", **options}
    return torch.compile(model, backend="todo_inductor", options=chosen)


# Modes and dtypes -----------------------------------------------------------------------------
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("batch", [1, 2])
def test_gradient_modes_and_batches(mode: Any, batch: int) -> None:
    x, model = image(6, 4, batch), ImageAttention()
    with mode():
        assert_close((compiled(model)(x),), oracle(model, (6, 4))(x))
    assert todo_compile.reports()[-1].rewritten == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_channels_last(dtype: torch.dtype) -> None:
    model = ImageAttention().to(dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = image(6, 4, 2).to(dtype, memory_format=torch.channels_last)
    with torch.no_grad():
        got = compiled(model)(x)
        assert_close((got,), oracle(model, (6, 4))(x), rtol=0.05, atol=0.05)
        dense, exact = model(x), oracle(model.float(), (6, 4))(x.float())
    assert todo_compile.reports()[-1].rewritten == 1
    assert (got.float() - exact).norm() < 0.2 * (dense.float() - exact).norm()


@pytest.mark.parametrize("given", [{"mode": "reduce-overhead"}, {"options": "epilogue_fusion"}])
def test_modes_and_inductors_options_reach_inductor(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]
) -> None:
    seen: list[dict[str, Any]] = []

    def inductor(module: Any, _: Any, patches: dict[str, Any]) -> Any:
        seen.append(patches)
        return module.forward

    monkeypatch.setattr("todo_compile.dynamo.backend.inductor", inductor)
    if "options" in given:  # torch takes a mode or options, not both
        given = {"options": {given["options"]: False, "kv_tokens": 6}}
    run = torch.compile(ImageAttention(), backend="todo_inductor", **given)
    with torch.no_grad():
        run(image(6, 4))
    assert seen == [
        {"epilogue_fusion": False} if "options" in given else {"triton.cudagraphs": True}
    ]
    assert todo_compile.reports()[-1].rewritten == ("options" in given)


# Graph breaks ---------------------------------------------------------------------------------
class Broken(ImageAttention):
    """Attention with a call that Dynamo cannot trace before the tokens, or after attention."""

    early = False

    def tokens(self, image: torch.Tensor) -> torch.Tensor:
        x = super().tokens(image)
        return untraced(x) if self.early else x

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.tanh(untraced(super().forward(image)))


def _plus_one(x: torch.Tensor) -> torch.Tensor:
    return x + 1


untraced: Any = torch.compiler.disable(_plus_one)


def test_graph_break_after_attention() -> None:
    x, model = image(6, 4), Broken()
    with torch.no_grad():
        assert_close((compiled(model)(x),), oracle(model, (6, 4))(x))
    assert sum(r.rewritten for r in todo_compile.reports()) == 1


@pytest.mark.parametrize("grids", [None, {24: (6, 4)}])
def test_graph_break_between_image_and_tokens(grids: Any) -> None:
    """The second graph sees (B, N, C): dense with a reason, or on the grid that is named."""
    x, model = image(6, 4), Broken()
    model.early = True
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = compiled(model, res="32x48", **({} if grids is None else {"token_grids": grids}))(x)
        assert_close((got,), (model if grids is None else oracle(model, (6, 4)))(x))
    sites = [s for r in todo_compile.reports() for s in r.sites]
    assert [s.action for s in sites] == ["refused" if grids is None else "rewritten"]
    assert grids is not None or "token_grids={24: (rows, columns)}" in sites[0].reason


# Slices of the batch --------------------------------------------------------------------------
@pytest.mark.parametrize("shift", [0, 1])
def test_slices_of_the_batch_meet_only_themselves(shift: int) -> None:
    """diffusers' sliced attention; queries of one item on keys of another are no such thing."""

    def sliced(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        first = q[0:1] @ k[shift : shift + 1].mT
        return torch.cat([first.softmax(-1) @ v[shift : shift + 1], torch.zeros_like(q[1:])])

    x, model = image(6, 4, 2), ImageAttention(sliced)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = compiled(model)(x)
        assert_close((got,), (model if shift else oracle(model, (6, 4)))(x))
    (site,) = todo_compile.reports()[-1].sites
    assert (site.kind, site.action) == (("cross", "dense") if shift else ("self", "rewritten"))


# Sizes ----------------------------------------------------------------------------------------
class Frames(ImageAttention):
    """(B, F, 3, H, W): every frame attends to itself; tokens stay (B, F, N, C) up to the heads."""

    def tokens(self, image: torch.Tensor) -> torch.Tensor:
        x = self.stem(image.flatten(0, 1)).flatten(2).mT
        return x.unflatten(0, image.shape[:2])

    def split(self, x: torch.Tensor) -> torch.Tensor:
        b, f, n, c = x.shape
        return x.reshape(b * f, n, self.heads, c // self.heads).transpose(1, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.tokens(image)
        q, k, v = self.split(self.to_q(x)), self.pool(self.keys(x)), self.pool(self.values(x))
        return self.attend(q, k, v)


@pytest.mark.parametrize("dynamic", [None, True])
def test_two_dynamic_sizes_above_the_attention(dynamic: bool | None) -> None:
    """Items and frames: no view above the folded ones can be written with both."""
    model = Frames()
    run = torch.compile(
        model, backend="todo_inductor", dynamic=dynamic, options={"factors": 2, "inner": "eager"}
    )
    truth = oracle(model, (6, 4))
    with torch.no_grad():
        for items, frames in ((2, 3), (3, 2), (4, 5)):
            x = image(6, 4, items * frames).unflatten(0, (items, frames))
            assert_close((run(x),), truth(x))
    for report in todo_compile.reports():
        assert [site.action for site in report.sites] == ["rewritten"]


def test_warns_at_torchs_recompile_limit() -> None:
    """Beyond it torch runs the module eagerly, so densely, and says so only in its log."""
    model = ImageAttention()
    run = compiled(model)
    with torch.no_grad(), dynamo_config.patch(recompile_limit=2):
        assert_close((run(image(4, 4)),), oracle(model, (4, 4))(image(4, 4)))
        with pytest.warns(UserWarning, match="compiles no more than 2"):
            assert_close((run(image(6, 4)),), oracle(model, (6, 4))(image(6, 4)))
        beyond = image(8, 6)
        assert_close((run(beyond),), model(beyond))  # dense: torch's fall-back
    assert len(todo_compile.reports()) == 2


def test_report_of_a_dynamic_batch_says_what_it_counts() -> None:
    run = compiled(ImageAttention())
    with torch.no_grad():
        for batch in (2, 3):
            run(image(6, 4, batch))
    fixed, dynamic = todo_compile.reports()
    assert (fixed.per_item, dynamic.per_item) == (False, True)
    assert "one item" in dynamic.summary()
    assert "one item" not in fixed.summary()
    assert dynamic.totals.attention_flops * 2 == fixed.totals.attention_flops


# Training -------------------------------------------------------------------------------------
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_a_unet(checkpointing: bool) -> None:
    """Loss and gradients of the rewritten UNet are the oracle's, checkpointed blocks included."""
    unet = small_unet().train()
    truth = with_oracle(unet)
    if checkpointing:
        unet.enable_gradient_checkpointing()
    run = compiled(unet, inner="aot_eager")
    for model in (run, truth):
        model(*inputs(), return_dict=False)[0].square().mean().backward()
    assert sum(r.rewritten for r in todo_compile.reports()) == 3
    for (name, got), expected in zip(unet.named_parameters(), truth.parameters(), strict=True):
        assert got.grad is not None, name
        assert_close((got.grad,), expected.grad)


# Caches ---------------------------------------------------------------------------------------
PROCESS = """
import json, sys, torch
import torch.nn.functional as F
from torch._dynamo.utils import counters
torch.manual_seed(0)
x, weights = torch.randn(1, 16, 8), [torch.randn(8, 8) for _ in range(3)]
def attend(x):
    q, k, v = (F.linear(x, w).unflatten(-1, (2, 4)).transpose(1, 2) for w in weights)
    return F.scaled_dot_product_attention(q, k, v)
def hits():
    names = ("inductor", "fxgraph_cache_hit"), ("aot_autograd", "autograd_cache_hit")
    return sum(counters[group][name] for group, name in names)
results = []
for options in json.loads(sys.argv[1]):
    torch.compiler.reset()
    if options is None:
        run = torch.compile(attend, backend="inductor")
    else:
        options["token_grids"] = {16: (4, 4)}
        run = torch.compile(attend, backend="todo_inductor", options=options)
    before = hits()
    with torch.no_grad():
        out = run(x)
    results.append([out.flatten().tolist(), hits() > before])
print(json.dumps(results))
"""


def in_process(folder: Path, *options: dict[str, Any] | None) -> list[tuple[torch.Tensor, bool]]:
    """Results of a fresh process that shares the compile caches, and whether they were hit."""
    import os

    environment = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(folder),
        "TORCHINDUCTOR_FX_GRAPH_CACHE": "1",
        "TORCHINDUCTOR_AUTOGRAD_CACHE": "1",
    }
    run = subprocess.run(
        [sys.executable, "-c", PROCESS, json.dumps(options)],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return [(torch.tensor(values), hit) for values, hit in json.loads(run.stdout.splitlines()[-1])]


def block_truth(factor: int, sampling: str = "nearest") -> torch.Tensor:
    """What the subprocess must give, from the oracle."""
    from oracle import attention

    torch.manual_seed(0)
    x, weights = torch.randn(1, 16, 8), [torch.randn(8, 8) for _ in range(3)]
    own = stand_ins(x, 1, (4, 4), (factor, factor), sampling)
    q, k, v = (
        (t @ w.mT).unflatten(-1, (2, 4)).transpose(1, 2)
        for t, w in zip((x, own, own), weights, strict=True)
    )
    return attention(q, k, v).flatten()


def test_caches_shared_by_processes(tmp_path: Path) -> None:
    """Plain, then rewritten in another process, then other settings: never another's result."""
    (plain, _), (again, hit) = in_process(tmp_path, None, None)
    assert hit, "the caches are off, so this test proves nothing"
    assert_close((plain, again), (block_truth(1), block_truth(1)))
    ((two, _),) = in_process(tmp_path, {"factors": 2})
    assert_close((two,), block_truth(2))
    others = in_process(
        tmp_path, {"factors": 4}, {"factors": 2, "sampling": "average"}, {"factors": 2}, None
    )
    truths = block_truth(4), block_truth(2, "average"), block_truth(2), block_truth(1)
    assert_close(tuple(values for values, _ in others), truths)
    assert [hit for _, hit in others] == [False, False, True, True]
