"""Measures of pictures: against the dense picture, and against real pictures as a set.

MSE and HPF are `todo_compile.runtime.metrics`' (the paper's measures); SSIM and MS-SSIM are
torchmetrics'; the perceptual distance and KID stand on EfficientNet-lite0's features (ImageNet,
Apache-2.0).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from fidelity_parts.intervals import indices, resampled
from todo_compile.runtime.metrics import hpf, mse

Array = NDArray[Any]
_MS_SSIM_SIDE = 176
"""Five scales of an 11-pixel window need at least 161 pixels."""
_TAPS = (0, 2, 4, 10, 15)
"""Blocks whose outputs the perceptual distance compares: one of every resolution but the stem."""


def against_dense(picture: Array, dense: Array) -> dict[str, float]:
    """Measures of one picture against its dense twin; both (H, W, 3) in [0, 1]."""
    from torchmetrics.functional.image import (
        multiscale_structural_similarity_index_measure as ms_ssim,
    )
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim

    a, b = (
        torch.from_numpy(np.asarray(p, np.float32)).permute(2, 0, 1)[None] for p in (picture, dense)
    )
    error = mse(picture, dense)
    found = {
        "mse": error,
        "psnr": 10 * math.log10(1 / max(error, 1e-10)),  # 100 dB stands for equal pictures
        "hpf": hpf(picture),
        "hpf_dense": hpf(dense),
        "ssim": float(ssim(a, b, data_range=1.0)),  # type: ignore[arg-type]
    }
    if min(a.shape[-2:]) >= _MS_SSIM_SIDE:
        found["ms_ssim"] = float(ms_ssim(a, b, data_range=1.0))
    return found


class Features:
    """EfficientNet-lite0: pooled features and a perceptual distance.

    Raises:
        ImportError: the network's code or weights are not installed.
    """

    def __init__(self) -> None:
        try:
            from training.efficientnet import load_efficientnet  # pyright: ignore

            self._network: Any = load_efficientnet()
        except RuntimeError as error:
            raise ImportError(str(error)) from error
        self._taken: list[torch.Tensor] = []
        for index in _TAPS:
            self._network._blocks[index].register_forward_hook(
                lambda _m, _i, out: self._taken.append(out)
            )

    def __call__(self, pictures: Sequence[Array]) -> tuple[Array, list[list[torch.Tensor]]]:
        """Pooled features (n, 1280), and for each picture its tapped maps, unit length a pixel."""
        pooled: list[Array] = []
        maps: list[list[torch.Tensor]] = []
        for picture in pictures:
            x = torch.from_numpy(np.asarray(picture, np.float32)).permute(2, 0, 1)[None]
            self._taken.clear()
            with torch.no_grad():
                pooled.append(self._network(x)[0].numpy())
            maps.append([F.normalize(t[0], dim=0) for t in self._taken])
        return np.stack(pooled), maps


def perceptual(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    """Mean over layers of the mean squared distance of unit features (LPIPS without its heads,
    Zhang et al., arXiv 1801.03924): 0 to 4."""
    distances = [float((x - y).square().sum(0).mean()) for x, y in zip(a, b, strict=True)]
    return sum(distances) / len(distances)


def _kernel(x: Array, y: Array) -> Array:
    return (x.astype(np.float64) @ y.astype(np.float64).T / x.shape[1] + 1) ** 3


def kid(a: Array, b: Array) -> float:
    """Unbiased squared MMD with the kernel (x·y/d + 1)³ (Bińkowski et al., arXiv 1801.01401)."""
    m, n = len(a), len(b)
    if min(m, n) < 2:
        return math.nan
    xx, yy = _kernel(a, a), _kernel(b, b)
    within = (xx.sum() - np.trace(xx)) / (m * (m - 1)) + (yy.sum() - np.trace(yy)) / (n * (n - 1))
    return float(within - 2 * _kernel(a, b).mean())


def kid_change(
    a: Array, dense: Array, real: Array, prompts: Sequence[str]
) -> tuple[float, float, float] | None:
    """KID of `a` less KID of `dense`, to the same real pictures, with its 95 % interval.

    Prompts are resampled, the real pictures are not: the interval is about these real pictures.
    Only pictures of different prompts are compared within a set, each prompt counting once:
    pictures of one prompt are near copies, and resampled prompts would be copies.

    Args:
        a, dense: features of the same pairs, (n, d).
        prompts: the prompt of each pair.

    Returns:
        the change, low, high; None for fewer than three prompts.
    """
    index = indices(prompts)
    count = int(index.max()) + 1
    if count < 3:
        return None
    share = (index[None] == np.arange(count)[:, None]).astype(np.float64)
    share /= share.sum(1, keepdims=True)
    others = 1 - np.eye(count)

    def estimates(x: Array, weights: Array) -> Array:
        within = share @ _kernel(x, x) @ share.T * others
        across = (share @ _kernel(x, real)).mean(1)
        pairs = ((weights @ others) * weights).sum(1)
        return ((weights @ within) * weights).sum(1) / pairs - 2 * weights @ across / count

    drawn = resampled(count)
    drawn = drawn[(drawn > 0).sum(1) > 1]  # of one prompt alone there are no pairs
    whole = np.ones((1, count))
    change = float((estimates(a, whole) - estimates(dense, whole))[0])
    low, high = np.quantile(estimates(a, drawn) - estimates(dense, drawn), (0.025, 0.975))
    return change, float(low), float(high)
