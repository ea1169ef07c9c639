"""Memory that is new, exchanged or assigned: what a tensor lies in may hold another's values."""

from __future__ import annotations

import oracle
import pytest
import torch
from graphs import (
    DIALECTS,
    Attend,
    ImageAttention,
    assert_close,
    capture,
    einsum_heads,
    image,
    matmul_after,
    only_site,
    sdpa,
)

from todo_compile.capture.trace import capture as trace
from todo_compile.errors import CaptureError
from todo_compile.options import PlanOptions

GRID, HALF = (4, 6), PlanOptions(factors=((2, 2),))


class Exchanged(ImageAttention):
    """Memory that a tensor lies in is given to another one: ``set_`` copies nothing."""

    def __init__(self, which: str) -> None:
        super().__init__()
        self.which = which

    def tokens(self, image: torch.Tensor) -> torch.Tensor:
        x = super().tokens(image).contiguous()
        if self.which == "weights":  # every round lets memory go, which the next may get
            for _ in range(6):
                weight = self.to_q.weight.clone()
                weight.set_(self.to_q.weight * 0.5)
                x = x @ weight
            return x
        rolled = x.roll(3, 1)
        if self.which == "tokens":
            return x.set_(rolled)
        if self.which == "tokens, by name":
            x.set_(rolled)
            return x
        held = torch.zeros_like(x)
        held.set_(x)
        (x if self.which == "the new memory's owner" else held).copy_(rolled)
        return held if self.which == "the new memory's owner" else x


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    "which", ["tokens", "tokens, by name", "the new memory's owner", "the old memory's owner"]
)
def test_tokens_whose_memory_is_replaced(which: str, dialect: str) -> None:
    captured = capture(Exchanged(which), (image(*GRID),), dialect)
    before = captured.run()
    assert only_site(captured.rewrite(HALF)).action == "refused"
    assert all(torch.equal(a, b) for a, b in zip(captured.run(), before, strict=True))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_weights_whose_memory_is_replaced(dialect: str) -> None:
    """As bitsandbytes does at every step: tokens stay what they are."""
    captured = capture(Exchanged("weights"), (image(*GRID),), dialect)
    assert only_site(captured.rewrite(HALF)).action == "rewritten"


class Assigned(ImageAttention):
    def tokens(self, image: torch.Tensor) -> torch.Tensor:
        x = super().tokens(image).contiguous()
        x.data = x.roll(3, 1)
        return x


def test_data_that_is_assigned_is_no_graph() -> None:
    """`torch.export` would leave the assignment out, and the graph be another function."""
    with pytest.raises(CaptureError, match="assigns to the data of a tensor"):
        trace(Assigned(), (image(*GRID),))


def sigmoid(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return (q @ k.mT).sigmoid() @ v


class Copied(ImageAttention):
    """Queries or the picture are written into new memory, as rotary embeddings are."""

    def __init__(self, attend: Attend, what: str) -> None:
        super().__init__(attend)
        self.what = what

    def copied(self, x: torch.Tensor) -> torch.Tensor:
        made = torch.zeros_like(x) if self.what == "picture" else x.new_empty(x.shape)
        seen = made.unflatten(-1, (1, -1))
        made[..., 0::2] = x[..., 0::2] * 2
        made[..., 1::2] = x[..., 1::2]
        return seen.flatten(-2)

    def tokens(self, image: torch.Tensor) -> torch.Tensor:
        return super().tokens(self.copied(image) if self.what == "picture" else image)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        return self.copied(super().split(x)) if self.what == "heads" else super().split(x)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("what", ["picture", "heads"])
@pytest.mark.parametrize("attend", [sdpa, matmul_after, einsum_heads, sigmoid])
def test_what_is_written_into_new_memory_is_in_the_report(
    attend: Attend, what: str, dialect: str
) -> None:
    """New memory holds constants until activations are written into it."""
    model, given = Copied(attend, what), image(*GRID)
    captured = capture(model, (given,), dialect)
    site = only_site(captured.rewrite(HALF))
    assert site.action == ("refused" if attend is sigmoid else "rewritten")
    if site.action == "rewritten":
        model.pool = lambda t: oracle.stand_ins(t, 2, GRID, (2, 2))
    with torch.no_grad():
        assert_close(captured.run(), model(given))
