"""Measures of pictures, against figures computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from todo_compile.errors import ConfigError
from todo_compile.runtime.metrics import as_image, fidelity, hpf, mse, psnr


def flat(value: float, side: int = 4) -> np.ndarray:
    return np.full((side, side, 3), value)


def test_mse_and_psnr_by_hand() -> None:
    assert mse(flat(0.5), flat(0.25)) == pytest.approx(0.0625)
    assert psnr(flat(0.5), flat(0.4)) == pytest.approx(20.0)
    assert psnr(flat(0.5), flat(0.5)) == math.inf


def test_hpf_by_hand() -> None:
    dot = np.zeros((3, 3, 1))
    dot[1, 1] = 1
    assert hpf(dot) == 4  # the largest there is
    beside = np.zeros((3, 4, 1))
    beside[1, 1] = 1
    assert hpf(beside) == pytest.approx((4 + 1) / 2)  # the dot itself, and its neighbour
    slope = np.linspace(0, 1, 8)[None, :, None] * np.ones((8, 1, 3))
    assert hpf(slope) == pytest.approx(0, abs=1e-12)


def test_hpf_falls_when_a_picture_is_blurred() -> None:
    sharp = np.random.default_rng(0).random((32, 32, 3))
    blurred = (sharp + np.roll(sharp, 1, 0) + np.roll(sharp, 1, 1)) / 3
    assert hpf(blurred) < 0.8 * hpf(sharp)


def test_eight_bits_and_tensors_mean_the_same() -> None:
    whole = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    assert hpf(whole) == pytest.approx(hpf(torch.from_numpy(whole / 255.0)))
    assert as_image(whole).max() <= 1


def test_a_batch_is_the_mean_of_its_pictures() -> None:
    pair = np.random.default_rng(0).random((2, 6, 6, 3))
    assert hpf(pair) == pytest.approx((hpf(pair[0]) + hpf(pair[1])) / 2)
    found = fidelity(pair[0], pair[1])
    assert found.hpf == hpf(pair[0])
    assert found.hpf_reference == hpf(pair[1])
    assert found.mse == mse(pair[0], pair[1])


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="different shapes"):
        mse(flat(0, 4), flat(0, 5))
    with pytest.raises(ConfigError, match="H, W, C"):
        hpf(np.zeros((4, 4)))
    with pytest.raises(ConfigError, match="3×3"):
        hpf(np.zeros((2, 8, 3)))
