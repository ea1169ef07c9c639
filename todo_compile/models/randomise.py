"""Seeded random weights: quick, the same everywhere, and kind to fp16.

Every parameter has a stream of its own, seeded by the seed and its name, so the values depend
neither on the order of parameters nor on the torch version (numpy guarantees the streams of its
bit generators). A weight is ±[1, 2) with 10 random bits of mantissa, scaled to variance
1/fan_in: cheap to make (two bit operations on raw random words) and it keeps activations of order
one through a hundred layers, with attention logits of order one as in a trained model. The shape
of the distribution is not a trained model's, nor is any image it makes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import nn

_VARIANCE = 7 / 3  # of ±u, u uniform in [1, 2)
_BIAS = 0.02  # small, but there: a rewrite that loses a bias must show in the numbers
_CHUNK = 2**20  # a multiple of 4, so that the values do not depend on it


def randomiser(module: nn.Module, seed: int) -> Callable[[], None]:
    """What fills every parameter that `module` has now, in place.

    Weights and tables of two or more axes get variance 1/fan_in, biases of such layers ±0.02,
    norms the identity (weight 1, bias 0). The same seed gives the same values in every dtype, up to
    rounding. Buffers keep their values.
    """
    found = [(name, p, _std(module, name, p)) for name, p in module.named_parameters()]

    def fill() -> None:
        with ThreadPoolExecutor(2) as pool:
            for job in [pool.submit(_fill, *each, seed) for each in found]:
                job.result()

    return fill


def _std(module: nn.Module, name: str, parameter: torch.Tensor) -> float | None:
    """Standard deviation of a parameter; None for those of norms, which are constant."""
    if parameter.dim() >= 2:
        return 1 / math.sqrt(max(parameter.numel() // parameter.shape[0], 1))
    prefix, _, last = name.rpartition(".")
    weight = getattr(module.get_submodule(prefix), "weight", None)
    if last == "weight" or (isinstance(weight, torch.Tensor) and weight.dim() < 2):
        return None
    return _BIAS


def _fill(name: str, parameter: torch.Tensor, std: float | None, seed: int) -> None:
    with torch.no_grad():
        if std is None:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            return
        words = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        stream = np.random.SFC64(np.random.SeedSequence(int.from_bytes(words, "little")))
        flat = parameter.view(-1)
        scale = std / math.sqrt(_VARIANCE)
        for begin in range(0, flat.numel(), _CHUNK):
            piece = flat[begin : begin + _CHUNK]
            raw = np.asarray(stream.random_raw(-(-piece.numel() // 4)))
            bits = torch.frombuffer(raw, dtype=torch.int16)[: piece.numel()]
            # Keep sign and mantissa, set the exponent of [1, 2): 1 sign, 5 exponent, 10 mantissa.
            bits.bitwise_and_(-0x7C01).bitwise_or_(0x3C00)
            piece.copy_(bits.view(torch.float16))
            piece.mul_(scale)
