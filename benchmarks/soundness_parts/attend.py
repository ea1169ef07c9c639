"""Spellings of attention: (q, k, v, bias) → (B, heads, Nq, d), with what they mean.

The bias is added to the scores; a boolean one hides keys where it is false.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tests import graphs

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True, slots=True)
class Spelling:
    """One way to write attention.

    Args:
        attend: the function.
        scale: of the scores; None for 1/√d.
        softmax: it is softmax(QKᵀ·scale + bias)V; otherwise nothing may be rewritten.
        masks: it takes a bias.
        repeats: key and value must have as many heads as the query.
        oddity: is it softmax attention with something between: only itself knows its truth.
    """

    attend: Attend
    scale: float | None = None
    softmax: bool = True
    masks: bool = False
    repeats: bool = True
    oddity: bool = False
    causal: bool = False


def _scale(q: Tensor) -> float:
    return 1 / math.sqrt(q.shape[-1])


def biased(scores: Tensor, bias: Tensor | None) -> Tensor:
    """Scores with a bias of either type."""
    if bias is None:
        return scores
    if bias.dtype == torch.bool:
        return scores.masked_fill(~bias, float("-inf"))
    return scores + bias


def _sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def _causal(q: Tensor, k: Tensor, v: Tensor, _: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def _sdpa_gqa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=True)


def _sdpa_per_item(q: Tensor, k: Tensor, v: Tensor, _: Tensor | None) -> Tensor:
    """A call for each head."""
    heads = zip(q.unbind(1), k.unbind(1), v.unbind(1), strict=True)
    return torch.stack([F.scaled_dot_product_attention(*one) for one in heads], 1)


def _product(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    return biased(q @ k.transpose(-2, -1) * _scale(q), bias).softmax(-1) @ v


def _bias_first(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    scores = torch.matmul(q * _scale(q), k.mT)
    if bias is not None:
        none = float("-inf")
        scores = torch.where(bias, scores, none) if bias.dtype == torch.bool else bias + scores
    return torch.matmul(torch.softmax(scores, -1), v)


def _bias_inplace(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    scores = torch.einsum("bhid,bhjd->bhij", q, k).mul_(_scale(q))
    if bias is not None and bias.dtype == torch.bool:
        scores.masked_fill_(~bias, -1e4)
    elif bias is not None:
        scores += bias
    return torch.einsum("bhij,bhjd->bhid", F.softmax(scores, -1), v)


def _baddbmm(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    b, h, n, _ = q.shape
    if bias is None:
        bias = torch.zeros(1, 1, 1, dtype=q.dtype)
    elif bias.dtype == torch.bool:
        bias = torch.zeros_like(bias, dtype=q.dtype).masked_fill(~bias, float("-inf"))
    bias = bias.expand(b, h, n, k.shape[2]).reshape(b * h, n, k.shape[2])
    scores = torch.baddbmm(bias, q.flatten(0, 1), k.flatten(0, 1).mT, beta=1, alpha=_scale(q))
    return torch.bmm(scores.softmax(-1), v.flatten(0, 1)).unflatten(0, (b, h))


def _baddbmm_zeros(q: Tensor, k: Tensor, v: Tensor, _: Tensor | None) -> Tensor:
    b, h = q.shape[:2]
    zero = torch.zeros((), dtype=q.dtype)
    scores = torch.baddbmm(zero, q.flatten(0, 1), k.flatten(0, 1).mT, beta=0, alpha=_scale(q))
    return torch.bmm(scores.softmax(-1), v.flatten(0, 1)).unflatten(0, (b, h))


def _baddbmm_zeros1(q: Tensor, k: Tensor, v: Tensor, _: Tensor | None) -> Tensor:
    b, h = q.shape[:2]
    zero = torch.zeros(1, dtype=q.dtype)
    scores = torch.baddbmm(zero, q.flatten(0, 1), k.flatten(0, 1).mT, beta=0, alpha=_scale(q))
    return torch.bmm(scores.softmax(-1), v.flatten(0, 1)).unflatten(0, (b, h))


def _doubled(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    scores = q @ k.mT * (_scale(q) / 2)
    return biased(scores + scores, bias).softmax(-1) @ v


def _stable(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    scores = biased(q @ k.mT * _scale(q), bias)
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return weights / weights.sum(-1, keepdim=True) @ v


def _shifted(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    scores = biased(q @ k.mT * _scale(q), bias)
    return (scores - scores.amax(-1, keepdim=True)).softmax(-1) @ v


def _log_softmax(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    return biased(q @ k.mT * _scale(q), bias).log_softmax(-1).exp() @ v


def _chunked(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Half of the queries at a time, to save memory."""
    return torch.cat([_product(part, k, v, bias) for part in q.tensor_split(2, dim=2)], 2)


def _nan_to_num(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    scores = biased(q @ k.mT * _scale(q), bias)
    return scores.softmax(-1).nan_to_num(0.0) @ v


def _talking(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    scores = biased(q @ k.mT * _scale(q), bias)
    scores = scores + 0.3 * scores.flip(1)
    weights = scores.softmax(-1)
    return (weights + 0.2 * weights.roll(1, 1)) @ v


def _typed(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    scores = biased(q @ k.mT * _scale(q), bias)
    return F.softmax(scores.double(), -1).type(v.dtype) @ v


def _capped(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Gemma's soft cap of the scores."""
    return biased(torch.tanh(q @ k.mT * _scale(q) / 5) * 5, bias).softmax(-1) @ v


def _sigmoid(q: Tensor, k: Tensor, v: Tensor, _: Tensor | None) -> Tensor:
    return torch.sigmoid(q @ k.mT * _scale(q)) @ v


def _linear(q: Tensor, k: Tensor, v: Tensor, _: Tensor | None) -> Tensor:
    """Sana: keys with values first."""
    q, k = F.relu(q), F.relu(k)
    return (q @ (k.mT @ v)) / (q @ k.sum(2, keepdim=True).mT + 1)


def _efficient(q: Tensor, k: Tensor, v: Tensor, _: Tensor | None) -> Tensor:
    return q.softmax(-1) @ (k.softmax(2).mT @ v)


def _over_queries(q: Tensor, k: Tensor, v: Tensor, _: Tensor | None) -> Tensor:
    return (q @ k.mT * _scale(q)).softmax(-2) @ v


def _channels(q: Tensor, k: Tensor, v: Tensor, _: Tensor | None) -> Tensor:
    return v @ (q.mT @ k * _scale(q)).softmax(-1)


def _top(q: Tensor, k: Tensor, v: Tensor, _: Tensor | None) -> Tensor:
    scores = q @ k.mT * _scale(q)
    least = scores.topk(2, -1).values[..., -1:]
    return scores.masked_fill(scores < least, float("-inf")).softmax(-1) @ v


def _twice(q: Tensor, k: Tensor, v: Tensor, _: Tensor | None) -> Tensor:
    return (q @ k.mT).softmax(-1).softmax(-1) @ v


def _scores_kept(q: Tensor, k: Tensor, v: Tensor, _: Tensor | None) -> Tensor:
    scores = q @ k.mT * _scale(q)
    return scores.softmax(-1) @ v + scores.sum(-1, keepdim=True)


def _weights_kept(q: Tensor, k: Tensor, v: Tensor, _: Tensor | None) -> Tensor:
    weights = (q @ k.mT * _scale(q)).softmax(-1)
    return weights @ v + weights.amax(-1, keepdim=True)


def _sink(q: Tensor, k: Tensor, v: Tensor, _: Tensor | None) -> Tensor:
    """One more in the denominator: "softmax off by one"."""
    weights = (q @ k.mT * _scale(q)).exp()
    return weights / (1 + weights.sum(-1, keepdim=True)) @ v


def _of_graphs(attend: graphs.Attend) -> Attend:
    return lambda q, k, v, _: attend(q, k, v)


SPELLINGS: Mapping[str, Spelling] = {
    "sdpa": Spelling(_sdpa, masks=True),
    "sdpa_gqa": Spelling(_sdpa_gqa, masks=True, repeats=False),
    "product": Spelling(_product, masks=True),
    "bias_first": Spelling(_bias_first, masks=True),
    "bias_inplace": Spelling(_bias_inplace, masks=True),
    "baddbmm": Spelling(_baddbmm, masks=True),
    **{
        f"graphs.{name}": Spelling(_of_graphs(one), scale=0.7 if name == "sdpa_scaled" else None)
        for name, one in graphs.SPELLINGS.items()
        if name != "sdpa"
    },
    "baddbmm_zeros": Spelling(_baddbmm_zeros),
    "baddbmm_zeros1": Spelling(_baddbmm_zeros1),
    "sdpa_per_head": Spelling(_sdpa_per_item),
    "doubled": Spelling(_doubled, masks=True),
    "stable": Spelling(_stable, masks=True),
    "shifted": Spelling(_shifted, masks=True),
    "log_softmax": Spelling(_log_softmax, masks=True),
    "chunked": Spelling(_chunked),
    "nan_to_num": Spelling(_nan_to_num, masks=True),
    "typed": Spelling(_typed, masks=True),
    "talking": Spelling(_talking, masks=True, oddity=True),
    "capped": Spelling(_capped, masks=True, oddity=True),
    # Nothing of this may be rewritten.
    "causal": Spelling(_causal, softmax=False, causal=True),
    "sigmoid": Spelling(_sigmoid, softmax=False),
    "linear": Spelling(_linear, softmax=False),
    "efficient": Spelling(_efficient, softmax=False),
    "over_queries": Spelling(_over_queries, softmax=False),
    "channels": Spelling(_channels, softmax=False),
    "top": Spelling(_top, softmax=False),
    "softmax_twice": Spelling(_twice, softmax=False),
    "scores_kept": Spelling(_scores_kept, softmax=False),
    "weights_kept": Spelling(_weights_kept, softmax=False),
    "sink": Spelling(_sink, softmax=False),
}
