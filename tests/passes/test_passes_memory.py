"""Memory that is shared and written between a projection and the attention, against the oracle.

Which operations share memory is not listed here: every name in `torch` and `torch.Tensor` is tried
on a real tensor, and those whose result shares its storage are the views.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import oracle
import pytest
import torch
import torch.nn.functional as F
from graphs import (
    DIALECTS,
    ImageAttention,
    assert_close,
    capture,
    image,
    only_site,
)
from torch import nn

from todo_compile._torch import fake_mode
from todo_compile.options import PlanOptions
from todo_compile.passes.memory import Memory

GRID, HALF = (4, 6), PlanOptions(factors=((2, 2),))
View = Callable[[torch.Tensor], Any]

# Arguments that make an operation of a tensor (1, 24, 8) possible; most need none.
_ARGUMENTS: tuple[tuple[Any, ...], ...] = (
    (), (1, 2), (1,), (0,), ((1, 24, 8),), (1, 24, 8), (1, 2, 2), (0, 1, 2), ((0, 1, 2),), (2, 1),
    (torch.float32,), (1, 0, 8), (1, 0, 12), (1, [12, 12]),
)  # fmt: skip
# They change what they are given, or the whole process; the test is about what shares memory.
_NOT_VIEWS = ("set_", "resize", "requires_grad", "share_memory", "pin", "rename", "refine", "align")


def _first(result: Any) -> torch.Tensor | None:
    if isinstance(result, (tuple, list)) and result:
        return _first(result[0])
    return result if isinstance(result, torch.Tensor) else None


def _shares(name: str, arguments: tuple[Any, ...]) -> bool:
    x = torch.randn(1, 24, 8)
    before = x.clone()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = getattr(x, name)
            result = _first(found(*arguments) if callable(found) else found)
        if result is None or result.numel() == 0 or not result.is_floating_point():
            return False
        same = result.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    except (
        AssertionError, AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError,
        ValueError,
    ):  # fmt: skip
        return False
    return same and x.shape == before.shape and torch.equal(x, before)


def _views() -> dict[str, View]:
    found: dict[str, View] = {
        "itself": lambda t: t,
        "dropout in eval mode": lambda t: F.dropout(t, 0.5, training=False),
        "alpha dropout in eval mode": lambda t: F.alpha_dropout(t, 0.5, training=False),
        "square brackets": lambda t: t[:, 3:],
    }
    for name in dir(torch.Tensor):
        if name.startswith("_") or name.endswith("_") or any(w in name for w in _NOT_VIEWS):
            continue
        fitting = next((given for given in _ARGUMENTS if _shares(name, given)), None)
        if fitting is not None:
            found[name] = _call(name, fitting)
    return found


def _call(name: str, arguments: tuple[Any, ...]) -> View:
    """The view as something that Dynamo can trace: nothing is asked at run time."""
    if not callable(getattr(torch.randn(1, 24, 8), name)):
        return lambda t: getattr(t, name)
    if isinstance(getattr(torch.randn(1, 24, 8), name)(*arguments), torch.Tensor):
        return lambda t: getattr(t, name)(*arguments)
    return lambda t: getattr(t, name)(*arguments)[0]


VIEWS = _views()
WRITES: dict[str, Callable[[torch.Tensor], Any]] = {
    "add_": lambda w: w.add_(3),
    "copy_": lambda w: w.copy_(torch.full_like(w, 2.0)),
    "setitem": lambda w: w.__setitem__(..., 2.0),
    "relu inplace": lambda w: F.relu(w, inplace=True),
    "out": lambda w: torch.mul(w, -1.0, out=w),
    "fill_": lambda w: w.fill_(0.5),
}


def _lists() -> dict[str, Callable[[torch.Tensor], Any]]:
    """Every function of torch that writes into a list of tensors, and takes any number."""
    found: dict[str, Callable[[torch.Tensor], Any]] = {}
    for name in dir(torch):
        if not (name.startswith("_foreach_") and name.endswith("_")):
            continue
        function = getattr(torch, name)
        for more in ((), (2.0,), ([torch.ones(1, 24, 8)],), ([torch.ones(1, 24, 8)],) * 2):
            x = torch.full((1, 24, 8), -3.0)
            try:
                function([x], *more)
            except (RuntimeError, TypeError):
                continue
            if x.isfinite().all() and not torch.equal(x, torch.full_like(x, -3.0)):
                found[name] = _writing(function, more)
                break
    return found


def _writing(function: Any, more: tuple[Any, ...]) -> Callable[[torch.Tensor], Any]:
    def write(w: torch.Tensor) -> None:
        function([w], *([torch.ones_like(w)] if isinstance(m, list) else m for m in more))

    return write


LISTS = _lists()


class Written(ImageAttention):
    """Tokens are written through a view, after the keys were projected and before the values."""

    def __init__(self, view: View, write: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.view, self.write = view, write

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.tokens(image).contiguous()
        key = self.pool(self.keys(x))
        self.write(self.view(x))
        value = self.pool(self.values(x))
        out = self.attend(self.split(self.to_q(x)), key, value)
        return self.to_out(out.transpose(1, 2).flatten(2))


FOLLOWED = (
    "itself", "dropout in eval mode", "square brackets", "movedim", "moveaxis", "unfold",
    "diagonal", "tensor_split", "hsplit", "ravel", "mT",
)  # fmt: skip


def test_the_views_of_torch_were_found() -> None:
    wanted = {
        "movedim", "moveaxis", "expand_as", "broadcast_to", "unfold", "diagonal", "tensor_split",
        "hsplit", "ravel", "view", "transpose", "mT", "float", "type_as", "data", "real",
        "permute", "unbind", "chunk", "narrow", "select", "detach", "contiguous",
    }  # fmt: skip
    assert wanted - set(VIEWS) <= {"expand_as", "type_as", "broadcast_to"}, wanted - set(VIEWS)
    assert len(VIEWS) > 40


def _check(model: ImageAttention, dialect: str, action: str | None) -> None:
    x = image(*GRID)
    captured = capture(model, [x], dialect)
    site = only_site(captured.rewrite(HALF))
    assert action in (None, site.action), site.reason
    if site.action == "rewritten":
        model.pool = lambda t: oracle.stand_ins(t, 2, GRID, (2, 2))
    with torch.no_grad():
        assert_close(captured.run(), model(x))


@pytest.mark.parametrize("view", VIEWS)
def test_a_write_through_any_view(view: str) -> None:
    for dialect in DIALECTS:
        if dialect == "export" and view in ("data", "resolve_conj", "resolve_neg"):
            continue  # torch.export refuses what it cannot lift
        # Of the others only the numbers are asked: evidence may get lost on the way.
        plain = view in FOLLOWED
        _check(Written(VIEWS[view], WRITES["add_"]), dialect, "rewritten" if plain else None)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("view", ["itself", "mT", "square brackets", "dropout in eval mode"])
def test_every_kind_of_write(view: str, write: str, dialect: str) -> None:
    if (view, write, dialect) == ("mT", "out", "dynamo"):
        pytest.skip("Dynamo takes no out= that is not contiguous")
    elsewhere = write in ("copy_", "setitem", "fill_")  # values that come from no known place
    _check(Written(VIEWS[view], WRITES[write]), dialect, "refused" if elsewhere else "rewritten")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_module_that_works_in_place_between_the_projections(dialect: str) -> None:
    class Active(Written):
        def __init__(self) -> None:
            super().__init__(lambda t: t, nn.ReLU(inplace=True))

    model, x = Active(), image(*GRID)
    captured = capture(model, [x], dialect)
    site = only_site(captured.rewrite(HALF))
    assert site.action == "rewritten", site.reason
    assert any("writes into the memory" in stop.reason for stop in site.stops)
    model.pool = lambda t: oracle.stand_ins(t, 2, GRID, (2, 2))
    with torch.no_grad():
        assert_close(captured.run(), model(x))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_without_writes_all_is_hoisted(dialect: str) -> None:
    captured = capture(ImageAttention(), [image(*GRID)], dialect)
    report = captured.rewrite(HALF)
    assert next(p.detail for p in report.passes if p.name == "hoist")["merged"] == 1
    assert {s.operand for s in only_site(report).stops} == {"key", "value"}


def test_the_writes_into_lists_were_found() -> None:
    assert {"_foreach_add_", "_foreach_mul_", "_foreach_copy_", "_foreach_zero_"} <= set(LISTS)
    assert len(LISTS) > 20


@pytest.mark.parametrize("write", sorted({"_foreach_add_", *list(LISTS)[::4]}))
def test_a_write_into_a_list(write: str) -> None:
    """Version counters of fake tensors do not tell of these."""
    for dialect in DIALECTS:
        _check(Written(lambda t: t, LISTS[write]), dialect, None)


def test_an_operator_without_a_graph_of_its_own_may_write() -> None:
    """A kernel of the user's own, which no schema describes and no body shows."""
    graph = torch.fx.Graph()
    tokens = graph.placeholder("tokens")
    # Any of the kind will do: without bodies among its operands nothing can be looked into.
    writer = graph.call_function(torch.ops.higher_order.cond, (tokens,))
    graph.output((tokens,))
    with fake_mode():
        values = {tokens: torch.empty(1, 24, 8)}
    memory = Memory(torch.fx.GraphModule({}, graph), values.get, values.get)
    assert memory.is_written(tokens)
    assert memory.writes(writer)


def test_writes_into_every_list_are_seen() -> None:
    """The same of all of them, from a graph alone."""
    for name, write in LISTS.items():
        graph = torch.fx.Graph()
        tokens = graph.placeholder("tokens")
        before = graph.call_function(torch.neg, (tokens,))
        more = inspect.getclosurevars(write).nonlocals["more"]
        given = [[tokens] if isinstance(one, list) else one for one in more]
        writer = graph.call_function(getattr(torch, name), ([tokens], *given))
        after = graph.call_function(torch.neg, (tokens,))
        graph.output((before, after))
        with fake_mode():
            fakes = dict.fromkeys((tokens, before, after), torch.empty(1, 24, 8))
        memory = Memory(torch.fx.GraphModule({}, graph), fakes.get, fakes.get)
        assert memory.writer([tokens], memory.position(before), memory.position(after)) is writer


_TORCH: Any = torch  # with what its stubs leave out
# What puts `other` in the place of tokens.
REPLACING: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {
    "mul out": lambda place, other: torch.mul(other, 2.0, out=place),
    "neg out": lambda place, other: torch.neg(other, out=place),
    "add out": lambda place, other: torch.add(other, place, out=place.view(1, 24, 8)),
    "clamp out": lambda place, other: torch.clamp(other, min=-1.0, out=place[:]),
    "where out": lambda place, other: torch.where(other > 0, other, -other, out=place),
    "copy": lambda place, other: place.copy_(other),
    "assignment": lambda place, other: place.__setitem__(slice(None), other),
    "index_copy": lambda place, other: place.index_copy_(1, torch.arange(24), other),
    "lists": lambda place, other: _TORCH._foreach_copy_([place], [other]),
}


class Replaced(ImageAttention):
    """Keys and values of tokens over which others, in another order, were written."""

    def __init__(self, write: Callable[[torch.Tensor, torch.Tensor], Any]) -> None:
        super().__init__()
        self.write = write

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.tokens(image)
        place = x.contiguous() + 0.0
        self.write(place, x[:, torch.arange(24) * 7 % 24])
        operands = (self.to_q(x), self.to_k(place), self.to_v(place))
        out = self.attend(*map(self.split, operands))
        return self.to_out(out.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("name", REPLACING)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_is_written_over_tokens_takes_their_place(name: str, dialect: str) -> None:
    """``out=`` is no write that keeps every element where it was."""
    model, x = Replaced(REPLACING[name]), image(*GRID)
    captured = capture(model, [x], dialect)
    assert only_site(captured.rewrite(HALF)).action == "refused"
    with torch.no_grad():
        assert_close(captured.run(), model(x))
