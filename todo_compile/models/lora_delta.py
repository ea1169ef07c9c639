"""What an adapter adds to a layer's weight, from its parts.

Every kind's change is made of the parts alone, so that it can be added once and for all; DoRA's
magnitudes then scale the sum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

_KINDS = {
    "LoRA": ({"down", "up"}, {"mid"}),
    "LoHa": ({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}, {"hada_t1", "hada_t2"}),
    "LoKr": (
        set[str](),
        {f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    ),
    "full difference": ({"diff"}, {"diff_b"}),
}
_MAGNITUDES = {"dora", "magnitude"}


def kind_of(parts: set[str]) -> str:
    """Which kind of adapter has these parts.

    Raises:
        ValueError: none; some are missing or do not belong together.
    """
    bare = parts - _MAGNITUDES - {"alpha"}
    for kind, (needed, more) in _KINDS.items():
        if bare and needed <= bare <= needed | more and (kind != "LoKr" or _kronecker(bare)):
            if kind == "LoHa" and len(bare & more) == 1:
                break  # both halves are decomposed, or none
            if len(parts & _MAGNITUDES) > 1 or (kind == "full difference" and parts & _MAGNITUDES):
                break
            return kind
    raise ValueError(", ".join(sorted(parts)))


def _kronecker(parts: set[str]) -> bool:
    first = parts & {"lokr_w1", "lokr_w1_a", "lokr_w1_b"}
    second = parts & {"lokr_w2", "lokr_w2_a", "lokr_w2_b"}
    return (
        first in ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"})
        and second in ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"})
        and ("lokr_t2" not in parts or "lokr_w2_a" in parts)
    )


def rank_of(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """What alpha is divided by; None where alpha counts nothing: no factor has a rank."""
    for name in ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b"):
        if name in shapes:
            return shapes[name][0]
    return None


def delta(parts: Mapping[str, Tensor]) -> Tensor:
    """The change before scaling, flat: (output channels, the rest of the weight's elements).

    LoRA is up · down (Hu et al., arXiv 2106.09685), with a core between them in a Tucker
    decomposition; LoHa the elementwise product of two such (Hyeon-Woo et al., arXiv 2108.06098);
    LoKr the Kronecker product of two factors (Yeh et al., arXiv 2309.14859).

    Raises:
        RuntimeError: the shapes do not go together.
    """
    kind = kind_of(set(parts))
    if kind == "full difference":
        return parts["diff"].flatten(1)
    if kind == "LoRA":
        up, down = parts["up"].flatten(1), parts["down"]
        if "mid" in parts:
            return torch.einsum("op,pqkl,qi->oikl", up, parts["mid"], down.flatten(1)).flatten(1)
        return up @ down.flatten(1)
    if kind == "LoHa":
        halves = [
            _half(parts[f"hada_w{n}_a"], parts[f"hada_w{n}_b"], parts.get(f"hada_t{n}"))
            for n in (1, 2)
        ]
        return halves[0].flatten(1) * halves[1].flatten(1)
    first = parts["lokr_w1"] if "lokr_w1" in parts else parts["lokr_w1_a"] @ parts["lokr_w1_b"]
    second = (
        parts["lokr_w2"]
        if "lokr_w2" in parts
        else _half(parts["lokr_w2_a"], parts["lokr_w2_b"], parts.get("lokr_t2"))
    )
    for _ in range(second.ndim - first.ndim):
        first = first.unsqueeze(-1)
    return torch.kron(first, second).flatten(1)


def _half(a: Tensor, b: Tensor, core: Tensor | None) -> Tensor:
    """a · b; with a core (rank, rank, …) between them `a` is (rank, out), and `b` (rank, in)."""
    if core is None:
        return a @ b.flatten(1)
    return torch.einsum("ijkl,ip,jr->prkl", core, a, b)


def scaled(changed: Tensor, magnitude: Tensor, *, by_output: bool) -> Tensor:
    """DoRA: m · V / ‖V‖ (Liu et al., arXiv 2402.09353, equation 5).

    Args:
        changed: V, the weight with its change, (output, input, …).
        magnitude: m, one number for each output channel, or for each input channel.
        by_output: the former, as peft has it; LyCORIS has both.
    """
    channel = 0 if by_output else 1
    others = [axis for axis in range(changed.ndim) if axis != channel]
    norm = torch.linalg.vector_norm(changed, dim=others, keepdim=True)
    # A channel without any weight has no direction; whatever its magnitude, it stays 0.
    return changed * (magnitude.reshape(norm.shape) / norm.clamp_min(torch.finfo(norm.dtype).tiny))


def magnitude_axis(name: str, shape: tuple[int, ...], weight: tuple[int, ...]) -> bool | None:
    """Whether magnitudes are for output channels (True) or input channels; None if neither.

    Args:
        name: ``magnitude`` (peft's, always for the output) or ``dora`` (LyCORIS', as its shape).
        shape: of the magnitudes.
        weight: of the weight.
    """
    count = math.prod(shape)
    if name == "magnitude":
        return True if count == weight[0] else None
    if len(shape) == 1 or shape[0] == count:
        return True if count == weight[0] else None
    return False if shape[1] == count == weight[1] else None
