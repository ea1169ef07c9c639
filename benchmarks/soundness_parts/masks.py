"""Biases and masks over the keys, and whether one of them could hide all keys of a cell.

`safe` ones may be pooled: they have no key axis, or are finite and small, or hide text alone.
Everything else must be refused, be it float or boolean, a constant or an input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

NONE = float("-inf")


@dataclass(frozen=True, slots=True)
class Keys:
    """What a mask is made for: `before` text keys, `image` keys, `after` text keys.

    Args:
        like: a tensor of the attention's dtype.
        table: a small learned parameter (heads, queries, keys).
        text: which text tokens are there, (B, before + after) boolean, an input; None without text.
        given: a mask that is an input.
    """

    queries: int
    before: int
    image: int
    after: int
    like: Tensor
    table: Tensor
    text: Tensor | None
    given: Tensor | None

    @property
    def keys(self) -> int:
        return self.before + self.image + self.after

    def distance(self) -> Tensor:
        """|i − j| of queries and keys, made in the graph."""
        rows, columns = torch.arange(self.queries), torch.arange(self.keys)
        return (rows[:, None] - columns[None, :]).abs()

    def seen(self) -> Tensor:
        """(B, keys): text as it is there, the image wholly."""
        assert self.text is not None
        image = torch.ones(self.text.shape[0], self.image, dtype=torch.bool)
        before, after = self.text.split([self.before, self.after], 1)
        return torch.cat([before, image, after], 1)

    def number(self, seen: Tensor, hidden: float) -> Tensor:
        """0 where seen, `hidden` elsewhere."""
        return torch.zeros_like(seen, dtype=self.like.dtype).masked_fill(~seen, hidden)


@dataclass(frozen=True, slots=True)
class Mask:
    """A kind of mask.

    Args:
        make: the bias, or None.
        safe: it may be pooled with the keys.
        text: it needs text beside the image.
        given: what the input holds that it is, see `given_mask`.
    """

    make: Callable[[Keys], Tensor | None]
    safe: bool = True
    text: bool = False
    given: str = ""


def _pad(k: Keys) -> Tensor:
    assert k.text is not None
    if k.before and k.after:
        return k.seen()
    return F.pad(k.text, (0, k.image) if k.before else (k.image, 0), value=True)


def _additive_cat(k: Keys) -> Tensor:
    assert k.text is not None
    text = (1.0 - k.text.to(k.like.dtype)) * -1e4
    before, after = text.split([k.before, k.after], 1)
    return torch.cat([before, torch.zeros(text.shape[0], k.image, dtype=text.dtype), after], 1)


def _new_ones(k: Keys) -> Tensor:
    assert k.text is not None
    before, after = k.text.split([k.before, k.after], 1)
    return torch.cat([before, k.text.new_ones(k.text.shape[0], k.image), after], 1)


def _assigned(k: Keys) -> Tensor:
    """Hidden text is assigned into a mask that lets all be seen."""
    assert k.text is not None
    whole = torch.ones(k.text.shape[0], k.keys, dtype=torch.bool)
    whole[:, : k.before] = k.text[:, : k.before]
    whole[:, k.before + k.image :] = k.text[:, k.before :]
    return whole


def _outer(k: Keys) -> Tensor:
    """HunyuanVideo's: hidden text is not asked either (and then all keys weigh alike)."""
    seen = k.seen()
    queries = seen[:, -k.queries :]
    return k.number(queries[:, None, :, None] & seen[:, None, None, :], -1e4)


def _four(x: Tensor) -> Tensor:
    return x[:, None, None, :]


MASKS: Mapping[str, Mask] = {
    "none": Mask(lambda _: None),
    # No key axis, or small.
    "per_query": Mask(lambda k: k.table[:1, :, :1]),
    "number": Mask(lambda k: torch.full((1, 1), 0.3, dtype=k.like.dtype)),
    "zeros": Mask(lambda k: torch.zeros(k.queries, k.keys, dtype=k.like.dtype)),
    "all_true": Mask(lambda k: torch.ones(k.queries, k.keys, dtype=torch.bool)),
    "learned": Mask(lambda k: k.table[0]),
    "learned_heads": Mask(lambda k: k.table),
    "learned_keys": Mask(lambda k: k.table[0, :1]),
    "alibi": Mask(lambda k: k.distance() * -0.1),
    "alibi_typed": Mask(lambda k: -0.05 * k.distance().to(k.like.dtype)[None]),
    # Text that is padded.
    "text": Mask(lambda k: _four(k.seen()), text=True),
    "text_pad": Mask(lambda k: _four(_pad(k)), text=True),
    "text_new_ones": Mask(lambda k: _four(_new_ones(k)), text=True),
    "text_assigned": Mask(lambda k: _four(_assigned(k)), text=True),
    "text_float": Mask(lambda k: _four((1.0 - k.seen().to(k.like.dtype)) * -1e4), text=True),
    "text_float_cat": Mask(lambda k: _four(_additive_cat(k)), text=True),
    "text_filled": Mask(lambda k: _four(k.number(k.seen(), NONE)), text=True),
    "text_where": Mask(
        lambda k: _four(torch.where(k.seen(), 0.0, NONE).to(k.like.dtype)), text=True
    ),
    "text_expanded": Mask(lambda k: _four(k.seen()).expand(-1, 1, k.queries, -1), text=True),
    "text_outer": Mask(_outer, text=True),
    # What can hide an image's keys.
    "tril": Mask(lambda k: torch.ones(k.queries, k.keys, dtype=torch.bool).tril(), safe=False),
    "tril_float": Mask(
        lambda k: torch.full((k.queries, k.keys), NONE, dtype=k.like.dtype).triu(1), safe=False
    ),
    "window": Mask(lambda k: k.distance() <= 1, safe=False),
    "window_float": Mask(lambda k: k.number(k.distance() <= 1, NONE), safe=False),
    "window_1e4": Mask(lambda k: k.number(k.distance() <= 2, -1e4), safe=False),
    "own": Mask(lambda k: k.number(k.distance() == 0, NONE), safe=False),
    "alibi_steep": Mask(lambda k: k.distance().to(k.like.dtype) * -1e3, safe=False),
    "given": Mask(lambda k: k.given, safe=False, given="small"),
    "given_keys": Mask(lambda k: k.given, safe=False, given="small keys"),
    "given_bool": Mask(lambda k: k.given, safe=False, given="window bool"),
    "given_window": Mask(lambda k: k.given, safe=False, given="window"),
    "given_keys_bool": Mask(lambda k: k.given, safe=False, given="keys bool"),
    "given_text_pad": Mask(lambda k: k.given, safe=False, text=True, given="keys bool"),
}


def given_mask(kind: str, batch: int, queries: int, keys: int, noise: Tensor) -> Tensor:
    """The input for a mask that is one; every query keeps a key."""
    if kind.startswith("small"):
        return noise[:, :, :1] if kind.endswith("keys") else noise
    if kind.startswith("window"):
        distance = torch.arange(queries)[:, None] - torch.arange(keys)[None, :]
        seen = (distance.abs() <= max(1, abs(queries - keys) + 1)).expand(batch, 1, -1, -1)
    else:
        seen = (torch.arange(keys) % 3 != 1).expand(batch, 1, 1, -1)
    if kind.endswith("bool"):
        return seen.contiguous()
    return torch.zeros(seen.shape).masked_fill(~seen, NONE)
