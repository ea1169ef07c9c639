"""How far one picture is from another, and how sharp a picture is: MSE, PSNR, HPF.

All take arrays (NumPy, or anything that becomes one: PIL images, CPU tensors) of shape
(…, H, W, C) with values in [0, 1]; 8-bit integers are divided by 255. Batches are averaged over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from todo_compile.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Image = NDArray[np.float64]


@dataclass(frozen=True)
class Fidelity:
    """A picture against its reference.

    Attributes:
        mse: mean squared error, in [0, 1]².
        psnr: 10·log₁₀(1 / mse) in dB; infinite for equal pictures.
        hpf: sharpness of the picture, see `hpf`.
        hpf_reference: sharpness of the reference.
    """

    mse: float
    psnr: float
    hpf: float
    hpf_reference: float


def as_image(picture: Any) -> Image:
    """`picture` as float64 in [0, 1], shape (…, H, W, C).

    Raises:
        ConfigError: it has no two axes of pixels and one of channels.
    """
    import numpy as np

    array = np.asarray(picture)
    if array.ndim < 3:
        raise ConfigError(
            f"A picture has the shape (…, H, W, C), not {tuple(array.shape)}.",
            remedy="Add an axis of one channel to a grey picture: picture[..., None]",
        )
    scale = 255.0 if array.dtype == np.uint8 else 1.0
    return array.astype(np.float64) / scale


def mse(picture: Any, reference: Any) -> float:
    """Mean squared error of two pictures of equal shape.

    Raises:
        ConfigError: the shapes differ.
    """
    a, b = as_image(picture), as_image(reference)
    if a.shape != b.shape:
        raise ConfigError(f"Pictures of different shapes: {a.shape} and {b.shape}.")
    return float(((a - b) ** 2).mean())


def psnr(picture: Any, reference: Any) -> float:
    """Peak signal-to-noise ratio in dB, 10·log₁₀(1 / MSE); infinite for equal pictures.

    Raises:
        ConfigError: the shapes differ.
    """
    error = mse(picture, reference)
    return 10 * math.log10(1 / error) if error else math.inf


def hpf(picture: Any) -> float:
    """Sharpness: the mean absolute response to a Laplacian high-pass filter.

    After the measure of the ToDo paper (arXiv 2402.13573, section 4), whose kernel and scale we
    could not check: compare figures from here among themselves, not with the paper's. Ours is the
    4-neighbour kernel [0 1 0; 1 −4 1; 0 1 0] on every channel, over the pixels that have all four
    neighbours. 0 for a flat picture or an even slope, 4 at most.

    Raises:
        ConfigError: fewer than 3×3 pixels.
    """
    import numpy as np

    x = as_image(picture)
    if min(x.shape[-3:-1]) < 3:
        raise ConfigError(f"A high-pass filter needs 3×3 pixels, not {x.shape[-3]}×{x.shape[-2]}.")
    around = x[..., :-2, 1:-1, :] + x[..., 2:, 1:-1, :] + x[..., 1:-1, :-2, :] + x[..., 1:-1, 2:, :]
    return float(np.abs(around - 4 * x[..., 1:-1, 1:-1, :]).mean())


def fidelity(picture: Any, reference: Any) -> Fidelity:
    """All of the above for a picture and what it should look like.

    Raises:
        ConfigError: the shapes differ or the pictures are smaller than 3×3 pixels.
    """
    return Fidelity(
        mse=mse(picture, reference),
        psnr=psnr(picture, reference),
        hpf=hpf(picture),
        hpf_reference=hpf(reference),
    )
