"""What may stand between the products and the softmax, in every rank, order and spelling.

Each function of the scores is either rewritten, and then equal to the same attention on subsampled
keys, or refused with the reason named here.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from graphs import DIALECTS, ImageAttention, assert_close, capture, image, only_site
from oracle import subsample

from todo_compile.options import PlanOptions

GRID, FACTORS, HEADS = (4, 6), (2, 3), 2
TOKENS = GRID[0] * GRID[1]
OPTIONS = PlanOptions(factors=(FACTORS,))

T = torch.Tensor
Attend = Callable[[T, T, T], T]
BIAS = torch.randn(1, HEADS, TOKENS, TOKENS, generator=torch.Generator().manual_seed(5)) * 0.1


class Biased(ImageAttention):
    """Its bias loses the columns that the keys lose, where the truth is computed."""

    bias: T

    def __init__(self, attend: Callable[[T, T, T, T], T]) -> None:
        super().__init__(heads=HEADS)
        self.register_buffer("bias", BIAS)
        self.attend = lambda q, k, v: attend(q, k, v, self.bias)


def rewritten_right(attend: Callable[[T, T, T, T], T], dialect: str) -> None:
    x = image(*GRID)
    captured = capture(Biased(attend), [x], dialect)
    site = only_site(captured.rewrite(OPTIONS))
    assert (site.action, site.kind, site.key_tokens_after) == ("rewritten", "self", 4), site.reason
    truth = Biased(attend)
    truth.pool = lambda t: subsample(t, 2, GRID, FACTORS)
    truth.bias = subsample(BIAS, 3, GRID, FACTORS)
    with torch.no_grad():
        assert_close(captured.run(), truth(x))


def refused(attend: Callable[[T, T, T, T], T], dialect: str, reason: str, kind: str) -> None:
    captured = capture(Biased(attend), [image(*GRID)], dialect)
    before = captured.signature()
    site = only_site(captured.rewrite(OPTIONS))
    assert (site.action, site.kind) == ("refused", kind)
    assert reason in site.reason
    assert captured.signature() == before


def flat(t: T) -> T:
    return t.flatten(0, 1)


# Functions of the scores alone -------------------------------------------------------------------
SCORES: dict[str, Callable[[T], T]] = {
    "doubled": lambda s: s + s,
    "doubled, alpha": lambda s: torch.add(s, s, alpha=2),
    "squared": lambda s: s * s,
    "taken from itself": lambda s: s - s,
    "negated": lambda s: -s,
    "subtracted from a number": lambda s: 1.5 - s,
    "rsub": lambda s: torch.rsub(s, 0.5, alpha=2),
    "number first": lambda s: 0.5 * s,
    "divided into a number": lambda s: 1 / (3 + s.tanh()),
    "soft cap": lambda s: (s / 5).tanh() * 5,
    "clamped": lambda s: s.clamp(-5, 5),
    "clamped in place": lambda s: s.clamp_(min=-3),
    "power": lambda s: s**2,
    "scaled in place": lambda s: s.mul_(0.5).div_(2).add_(1.0),
    "rounded quotient": lambda s: torch.div(s, 0.3, rounding_mode="floor"),
    "an axis more": lambda s: (s.unsqueeze(1) * 2).squeeze(1),
    "flat": lambda s: s.view(-1, s.shape[3]).mul(2).view(s.shape),
    "turned": lambda s: s.transpose(1, 2).mul(2).transpose(1, 2),
    "masked queries": lambda s: s.masked_fill(s[..., :1].detach() * 0 > 1, -1e4),
}
"""Those that read the scores twice are refused; see below."""


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", [n for n in SCORES if n != "masked queries"])
def test_every_function_of_the_scores_may_stand_above_the_softmax(name: str, dialect: str) -> None:
    def attend(q: T, k: T, v: T, _: T) -> T:
        return SCORES[name](q @ k.mT).softmax(-1) @ v

    rewritten_right(attend, dialect)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", ["masked queries"])
def test_scores_that_are_read_twice_are_refused(name: str, dialect: str) -> None:
    def attend(q: T, k: T, v: T, _: T) -> T:
        return SCORES[name](q @ k.mT).softmax(-1) @ v

    refused(attend, dialect, "the attention scores are used elsewhere too", "self")


CASTS: dict[str, Callable[[T], T]] = {
    "type": lambda s: s.type(torch.float64),
    "type by name": lambda s: s.type("torch.DoubleTensor"),
    "double": lambda s: s.double(),
    "to dtype": lambda s: s.to(torch.float64),
    "to keywords": lambda s: s.to(dtype=torch.float64, copy=True),
    "to device": lambda s: s.to("cpu", torch.float64),
    "to another": lambda s: s.to(torch.zeros((), dtype=torch.float64)),
    "type_as": lambda s: s.type_as(torch.zeros((), dtype=torch.float64)),
    "cpu": lambda s: s.cpu(),
    "prims": lambda s: torch.ops.prims.convert_element_type.default(s, torch.float64),
    "_to_copy": lambda s: torch.ops.aten._to_copy.default(s, dtype=torch.float64),
}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", sorted(CASTS))
def test_every_cast_is_a_cast_in_both_dialects(name: str, dialect: str) -> None:
    def attend(q: T, k: T, v: T, _: T) -> T:
        return CASTS[name](q @ k.mT).softmax(-1).type(torch.float32) @ v

    rewritten_right(attend, dialect)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_bits_read_as_another_dtype_are_no_cast(dialect: str) -> None:
    def attend(q: T, k: T, v: T, _: T) -> T:
        return (q @ k.mT).half().view(torch.bfloat16).float().softmax(-1) @ v

    refused(attend, dialect, "read as another dtype", "unknown")


# With a bias --------------------------------------------------------------------------------------
BIASED: dict[str, Callable[[T, T], T]] = {
    "added": lambda s, b: s + b,
    "added in place": lambda s, b: s.add_(b),
    "taken away in place": lambda s, b: s.sub_(b),
    "scores scaled by alpha": lambda s, b: torch.add(b, s, alpha=2),
    "a smaller alpha": lambda s, b: torch.add(s, b, alpha=0.5),
    "scores taken away": lambda s, b: b - s,
    "rsub": torch.rsub,
    "number first": lambda s, b: 0.5 * s + b,
    "before a cap": lambda s, b: (s + b).tanh(),
    "before a smaller scale": lambda s, b: (s + b) * 0.5 / 2,
    "of one head": lambda s, b: s + b[:, :1],
    "without heads": lambda s, b: s + b[0, 0],
    "of one query": lambda s, b: s + b[0, 0, 0],
    "of another rank": lambda s, b: s + b[None].squeeze(0),
    "that broadcasts the scores": lambda s, b: (s + b[None]).squeeze(0),
}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", sorted(BIASED))
def test_bias_in_every_order_and_rank(name: str, dialect: str) -> None:
    rewritten_right(lambda q, k, v, b: BIASED[name](q @ k.mT, b).softmax(-1) @ v, dialect)


REFUSED: dict[str, tuple[Callable[[T, T], T], str]] = {
    "a larger alpha": (lambda s, b: torch.add(s, b, alpha=2), "may grow after it is added"),
    "before a scale": (lambda s, b: (s + b) * 3, "may grow after it is added (mul)"),
    "before a power": (lambda s, b: (s + b) ** 3, "may grow after it is added (pow)"),
    "before doubling": (lambda s, b: (t := s + b) + t, "may grow after it is added (add)"),
    "two": (lambda s, b: s + b + b.mT, "more than one bias"),
    "multiplied": (lambda s, b: s * b, "mul changes the scores of every key in a way of its own"),
    "masked_fill": (lambda s, b: s.masked_fill(b > 0.1, -1e4), "could hide image keys"),
    "masked_fill_": (lambda s, b: s.masked_fill_(b > 0.1, -1e4), "could hide image keys"),
    "where": (lambda s, b: torch.where(b > 0.1, -1e4, s), "could hide image keys"),
    "written into a bias": (lambda s, b: b.clone().add_(s), "into the memory of another tensor"),
}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_treats_keys_unlike_each_other_is_a_site_with_a_reason(
    name: str, dialect: str
) -> None:
    function, reason = REFUSED[name]
    refused(lambda q, k, v, b: function(q @ k.mT, b).softmax(-1) @ v, dialect, reason, "self")


# The first operand of baddbmm ---------------------------------------------------------------------
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("shape", ["", "1", "111", "1n1", "m", "nm", "1nm"])
@pytest.mark.parametrize("beta", [0, 0.5])
def test_baddbmm_with_an_operand_of_any_rank(shape: str, beta: float, dialect: str) -> None:
    def attend(q: T, k: T, v: T, b: T) -> T:
        whole = b[0, :1]
        first = {
            "": whole.new_full((), 0.3),
            "1": whole[0, 0, :1],
            "111": whole[:, :1, :1],
            "1n1": whole[:, :, :1],
            "m": whole[0, 0],
            "nm": whole[0],
            "1nm": whole,
        }[shape]
        scores = torch.baddbmm(first, flat(q), flat(k).mT, beta=beta, alpha=0.5)
        return torch.bmm(scores.softmax(-1), flat(v)).unflatten(0, q.shape[:2])

    rewritten_right(attend, dialect)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_baddbmm_that_enlarges_its_bias_or_writes(dialect: str) -> None:
    def enlarged(q: T, k: T, v: T, b: T) -> T:
        scores = torch.baddbmm(b[0], flat(q), flat(k).mT, beta=3)
        return torch.bmm(scores.softmax(-1), flat(v)).unflatten(0, q.shape[:2])

    def written(q: T, k: T, v: T, _: T) -> T:
        memory = torch.zeros(HEADS, q.shape[2], k.shape[2])
        scores = memory.baddbmm_(flat(q), flat(k).mT, beta=0)
        return torch.bmm(scores.softmax(-1), flat(v)).unflatten(0, q.shape[:2])

    refused(enlarged, dialect, "may grow after it is added (baddbmm with beta)", "self")
    refused(written, dialect, "written into memory that was there before", "self")


# Products in other words --------------------------------------------------------------------------
def _addmm(q: T, k: T, v: T, _: T) -> T:
    one = torch.addmm(torch.zeros(1), q[0, 0], k[0, 0].mT, beta=0, alpha=0.5).softmax(-1) @ v[0, 0]
    return one.expand(1, HEADS, -1, -1)


def _linear(q: T, k: T, v: T, _: T) -> T:
    one = F.linear(F.linear(q[0, 0], k[0, 0]).softmax(-1), v[0, 0].mT)
    return one.expand(1, HEADS, -1, -1)


def _residual(q: T, k: T, v: T, _: T) -> T:
    weights = torch.bmm(flat(q), flat(k).mT).softmax(-1)
    return torch.baddbmm(flat(q), weights, flat(v)).unflatten(0, q.shape[:2])


def _lists(q: T, k: T, v: T, _: T) -> T:
    scores = torch.einsum(q, [0, 1, 2, 3], k, [0, 1, 4, 3], [0, 1, 2, 4])
    return torch.einsum(scores.softmax(-1), [0, 1, 2, 4], v, [0, 1, 4, 3], [0, 1, 2, 3])


def _unnamed(q: T, k: T, v: T, _: T) -> T:
    one = torch.einsum("id,jd", q[0, 0], k[0, 0]).softmax(-1) @ v[0, 0]
    return one.expand(1, HEADS, -1, -1)


def _ellipsis(q: T, k: T, v: T, _: T) -> T:
    return torch.einsum("...id,jd->...ij", q, k[0, 0]).softmax(-1) @ v


def _one_key_head(q: T, k: T, v: T, _: T) -> T:
    scores = torch.einsum("bhid,bjd->bhij", q, k[:, 0])
    return torch.einsum("bhij,bjd->bhid", scores.softmax(-1), v[:, 0])


def _one_key_head_expanded(q: T, k: T, v: T, _: T) -> T:
    k, v = (t[:, :1].expand(-1, HEADS, -1, -1) for t in (k, v))
    return (q @ k.mT).softmax(-1) @ v


def _one_key_head_broadcast(q: T, k: T, v: T, _: T) -> T:
    return (q @ k[:, :1].mT).softmax(-1) @ v[:, :1]


def _grouped(q: T, k: T, v: T, _: T) -> T:
    return F.scaled_dot_product_attention(q, k[:, :1], v[:, :1], enable_gqa=True)


def _cosine(q: T, k: T, v: T, b: T) -> T:
    scale = b[0, :, :1, :1].exp()
    return (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * scale).softmax(-1) @ v


def _gated(q: T, k: T, v: T, _: T) -> T:
    return ((q @ k.mT).softmax(-1) * q[..., :1].sigmoid()).div_(2).nan_to_num() @ v


WORDS = {
    f.__name__.strip("_"): f
    for f in (
        _addmm, _linear, _residual, _lists, _unnamed, _ellipsis, _one_key_head,
        _one_key_head_expanded, _one_key_head_broadcast, _grouped, _cosine, _gated,
    )
}  # fmt: skip


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", sorted(WORDS))
def test_products_in_other_words(name: str, dialect: str) -> None:
    rewritten_right(WORDS[name], dialect)
