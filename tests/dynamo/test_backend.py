"""``torch.compile(…, backend="todo_inductor")`` against the oracle."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
from backend_helpers import inputs, small_unet, with_oracle
from graphs import ImageAttention, assert_close, image, make_unet, unet_inputs
from oracle import stand_ins
from torch import nn

import todo_compile
from todo_compile.dynamo.backend_options import grids_at
from todo_compile.errors import ConfigError


def truth(x: torch.Tensor, factor: int, sampling: str = "nearest") -> torch.Tensor:
    model = ImageAttention()
    grid = (x.shape[2], x.shape[3])
    if factor > 1:
        model.pool = lambda t: stand_ins(t, 2, grid, (factor, factor), sampling)
    with torch.no_grad():
        return model(x)


def compiled(**options: Any) -> Any:
    return torch.compile(ImageAttention(), backend="todo_inductor", options=options, fullgraph=True)


def test_found_by_name_in_a_process_that_never_imported_us() -> None:
    code = (
        "import torch, sys; assert 'todo_compile' not in sys.modules;"
        "o = {'inner': 'eager'};"
        "f = torch.compile(torch.nn.Linear(2, 2), backend='todo_inductor', options=o);"
        "print(tuple(f(torch.ones(1, 2)).shape)); assert 'todo_compile' in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "(1, 2)"


def test_compile_caches_never_mix_dense_and_rewritten() -> None:
    """Plain first, then factors 2 → 4 → 2, then another sampling: each its own numbers."""
    x = image(8, 8)
    with torch.no_grad():
        plain = torch.compile(ImageAttention(), backend="inductor")(x)
        assert_close((plain,), truth(x, 1))
        for factor, sampling in ((2, "nearest"), (4, "nearest"), (2, "nearest"), (2, "average")):
            torch.compiler.reset()
            got = compiled(factors=factor, sampling=sampling)(x)
            assert_close((got,), truth(x, factor, sampling))
    assert not torch.allclose(truth(x, 2), truth(x, 4), atol=1e-3)


@pytest.mark.parametrize("dynamic", [None, True])
def test_every_size_gets_its_own_plan(dynamic: bool | None) -> None:
    model = ImageAttention()
    run = torch.compile(
        model,
        backend="todo_inductor",
        dynamic=dynamic,
        options={"kv_tokens": 16, "inner": "aot_eager"},
    )
    with torch.no_grad():
        for rows, columns, batch, factor in ((8, 8, 1, 2), (12, 12, 2, 3), (4, 4, 3, 1)):
            x = image(rows, columns, batch)
            assert_close((run(x),), truth(x, factor))
            if factor > 1:
                site = todo_compile.reports()[-1].sites[0]
                assert (site.grid, site.factor) == ((rows, columns), (factor, factor))


@pytest.mark.parametrize("axes", [(2,), (3,), (2, 3)])
def test_sizes_marked_dynamic_stay_dense(axes: tuple[int, ...]) -> None:
    """A plan is for one size; torch takes it for an error if a marked one is specialised."""
    first = image(8, 6)
    torch._dynamo.mark_dynamic(first, axes)  # noqa: TID251 - what users call
    model = compiled(factors=2, inner="eager")
    second = image(12 if 2 in axes else 8, 10 if 3 in axes else 6)
    with torch.no_grad(), pytest.warns(UserWarning, match="nearest miss.*maybe_mark_dynamic"):
        model(first)
    with torch.no_grad():
        for x in (first, second):
            assert_close((model(x),), truth(x, 1))
    (report,) = todo_compile.reports()
    assert [(s.action, "marked so by mark_dynamic" in s.reason) for s in report.sites] == [
        ("refused", True)
    ]


def test_sizes_that_may_be_dynamic_get_a_plan() -> None:
    model = compiled(factors=2, inner="eager")
    with torch.no_grad():
        for sides in ((8, 6), (12, 6)):
            x = image(*sides)
            torch._dynamo.maybe_mark_dynamic(x, 2)  # noqa: TID251 - as above
            assert_close((model(x),), truth(x, 2))
    assert [report.rewritten for report in todo_compile.reports()] == [1, 1]


def test_batch_stays_dynamic() -> None:
    run = torch.compile(
        ImageAttention(), backend="todo_inductor", options={"factors": 2, "inner": "eager"}
    )
    with torch.no_grad():
        for batch in (2, 3, 4, 5):
            x = image(6, 4, batch)
            assert_close((run(x),), truth(x, 2))
    assert len(todo_compile.reports()) <= 4  # not one a batch size, twice each


def test_unet_through_inductor_equals_the_oracle() -> None:
    unet = small_unet()
    with torch.no_grad():
        expected = with_oracle(unet)(*inputs()).sample
        fast = torch.compile(unet, backend="todo_inductor", options={"factors": "2"})
        assert_close((fast(*inputs()).sample,), expected)
    assert todo_compile.reports()[0].counts == {"rewritten": 3, "dense": 3, "refused": 0}


def test_gradients_equal_the_oracles() -> None:
    x = image(6, 6)
    gradients: list[list[torch.Tensor]] = []
    for rewritten in (True, False):
        model = ImageAttention()
        run: Any = model
        if rewritten:
            options = {"factors": 2, "inner": "aot_eager"}
            run = torch.compile(model, backend="todo_inductor", options=options)
        else:
            model.pool = lambda t: stand_ins(t, 2, (6, 6), (2, 2))
        run(x).square().mean().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(ImageAttention().parameters()))
    assert_close(tuple(gradients[0]), tuple(gradients[1]))


def test_autocast() -> None:
    x = image(8, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        got = compiled(factors=2, inner="aot_eager")(x).float()
    assert todo_compile.reports()[-1].rewritten == 1
    expected, dense = truth(x, 2), truth(x, 1)
    assert (got - expected).norm() < 0.3 * (dense - expected).norm()


class Block(nn.Module):
    """A transformer block as regional compilation sees it: (B, N, C) only."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = ImageAttention()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.attention
        q, k, v = inner.split(inner.to_q(x)), inner.keys(x), inner.values(x)
        return inner.attend(q, k, v)


@pytest.mark.parametrize("res", [{}, {"res": "128x96"}, {"res": "256x192"}])
def test_block_is_no_picture_for_its_number_of_tokens(res: dict[str, str]) -> None:
    """12×16 is the whole latent, or the packed patches: a block says of neither that it is it."""
    x, options = torch.randn(1, 12 * 16, 8), {"factors": 2, "inner": "eager", **res}
    with torch.no_grad(), pytest.warns(UserWarning, match=r"miss.*token_grids=.192: .rows, col"):
        torch.compile(Block(), backend="todo_inductor", options=options)(x)
    assert [site.action for site in todo_compile.reports()[-1].sites] == ["refused"]


def test_block_whose_grid_is_named() -> None:
    x = torch.randn(1, 12 * 16, 8)
    options = {"factors": 2, "inner": "eager", "token_grids": {192: (12, 16)}}
    with torch.no_grad():
        block = Block()
        got = torch.compile(block, backend="todo_inductor", options=options)(x)
        inner = block.attention
        k, v = (stand_ins(f(x), 2, (12, 16), (2, 2)) for f in (inner.keys, inner.values))
        assert_close((got,), inner.attend(inner.split(inner.to_q(x)), k, v))


def test_grids_of_a_resolution() -> None:
    assert grids_at("1920x1080") == {
        32400: (135, 240), 8160: (68, 120), 2040: (34, 60), 510: (17, 30), 135: (9, 15), 40: (5, 8)
    }  # fmt: skip


def test_warns_once_when_nothing_is_rewritten() -> None:
    x = image(4, 4)
    with torch.no_grad(), pytest.warns(UserWarning, match="rewrote no attention"):
        compiled(kv_tokens=64, inner="eager")(x)
    torch.compiler.reset()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        compiled(kv_tokens=64, inner="eager")(x)
    assert len(todo_compile.reports()) == 2


def test_a_line_with_counts_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with torch.no_grad(), caplog.at_level(logging.INFO, "todo_compile"):
        compiled(factors=2, inner="eager")(image(4, 4))
    (line,) = [r.getMessage() for r in caplog.records if r.name == "todo_compile"]
    (report,) = todo_compile.reports()
    assert line.startswith(report.summary())
    assert "1 attention site rewritten, 0 left dense" in line
    assert line.endswith(" ms)")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": 2}, "Did you mean 'factors'"),
        ({"factors": "zwei"}, "not a positive factor"),
        ({"inner": "no_such_backend"}, "Unknown inner backend"),
        ({"inner": "eager", "max_autotune": True}, "cannot be given to inner backend"),
        ({"inner": "todo_inductor"}, "its own inner backend"),
        ({"factors": 9}, "exceeds its grid"),
        ({"inner": 3}, "inner must be text"),
        ({"res": "8"}, "less than two latent cells"),
        ({"token_grids": [64]}, "must be a mapping"),
        ({"token_grids": {64: (8, 9)}}, "64 tokens are a grid of"),
        ({"token_grids": {"64": (8, 8)}}, "'64' tokens are a grid of"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message) as caught, torch.no_grad():
        compiled(**options)(image(8, 8))
    chain = [caught.value, caught.value.__cause__, getattr(caught.value, "inner_exception", None)]
    assert any(isinstance(e, ConfigError) for e in chain) or "Config" in repr(chain)


def test_accelerate_and_restore() -> None:
    class Pipe:
        unet = make_unet("upper level").unet

    inputs = unet_inputs(6, 6)
    with torch.no_grad():
        dense = Pipe.unet(*inputs).sample  # type: ignore[operator]
        pipe = todo_compile.accelerate(Pipe(), factors="2", inner="eager")
        fast = pipe.unet(*inputs).sample  # type: ignore[operator]
        assert todo_compile.reports()[-1].rewritten == 3
        assert not torch.allclose(fast, dense, atol=1e-4)
        todo_compile.restore(pipe)
        assert torch.equal(pipe.unet(*inputs).sample, dense)  # type: ignore[operator]
    with pytest.raises(todo_compile.TodoError, match="no unet or transformer"):
        todo_compile.accelerate(object())
