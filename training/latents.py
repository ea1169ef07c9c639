"""A fixed linear code for the latents: 8 × 8 pixels × 3 colours → 16 numbers.

Principal components of the training pictures' patches. Being fixed, it lets the denoiser and the
autoencoder train at the same time: the autoencoder's encoder learns to give these latents, its
decoder to invert them (with its neighbours' help better than the transposed matrix does).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from training.data import Scenes

PATCH = 8
CHANNELS = 16


@dataclass(frozen=True)
class Code:
    """Patch → latent, as ``(patch - mean) @ matrix``.

    Attributes:
        mean: (192,).
        matrix: (192, 16), columns orthogonal.
        inverse: (16, 192), to reconstruct.
    """

    mean: torch.Tensor
    matrix: torch.Tensor
    inverse: torch.Tensor

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [-1, 1] → (B, 16, H/8, W/8)."""
        weight = self.matrix.T.reshape(CHANNELS, 3, PATCH, PATCH)
        bias = -(self.mean @ self.matrix)
        return torch.nn.functional.conv2d(images, weight, bias, stride=PATCH)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, 16, h, w) → (B, 3, 8h, 8w), the linear reconstruction."""
        weight = self.inverse.reshape(CHANNELS, 3, PATCH, PATCH)
        images = torch.nn.functional.conv_transpose2d(latents, weight, stride=PATCH)
        tile = self.mean.reshape(1, 3, PATCH, PATCH)
        return images + tile.repeat(1, 1, latents.shape[2], latents.shape[3])

    def save(self, path: Path) -> None:
        """Write as a torch file of tensors."""
        torch.save({"mean": self.mean, "matrix": self.matrix, "inverse": self.inverse}, path)

    @classmethod
    def load(cls, path: Path, device: str | torch.device = "cpu") -> Code:
        """Read what `save` wrote."""
        return cls(**torch.load(path, map_location=device, weights_only=True))


def fit(scenes: Scenes, *, pictures: int = 600, seed: int = 0) -> Code:
    """Principal components of the patches, each divided by the root of its deviation.

    Full whitening would make faint detail as loud as the outline, and the denoiser would spend
    most of its capacity on it. The root keeps the order of importance at a smaller range. The mean
    square over all channels is one.
    """
    rng = random.Random(seed)
    patches: list[np.ndarray] = []
    for i in range(pictures):
        canvas, _ = scenes.draw(rng, *((1, 1) if i % 4 else (2, 2)))
        images = torch.from_numpy(canvas)[None]
        found = torch.nn.functional.unfold(images, PATCH, stride=PATCH)[0].T
        patches.append(found.numpy())
    data = torch.from_numpy(np.concatenate(patches)).double()
    mean = data.mean(0)
    centred = data - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(data))
    order = values.argsort(descending=True)[:CHANNELS]
    deviation = values[order].sqrt()
    scale = deviation.sqrt()
    # After scaling, channel c has deviation sqrt(deviation_c); bring their mean square to one.
    scale = scale * scale.square().mean().sqrt()
    basis = vectors[:, order]
    return Code(
        mean.float(), (basis / scale).float().contiguous(), (basis * scale).T.float().contiguous()
    )
