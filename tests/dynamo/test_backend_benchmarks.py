"""The benchmarks measure what they say: the right model, and variants true to their names."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from graphs import ImageAttention, image

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import plain_unet
import speed


def test_plain_unet_has_the_parameters_of_sd15() -> None:
    from todo_compile import models

    with torch.device("meta"):
        plain = plain_unet.PlainUNet()
    loaded = models.load(models.resolve("sd15"), dtype=torch.float32, fake=True)
    assert sum(p.numel() for p in plain.parameters()) == loaded.parameters


def small(kv_tokens: int) -> speed.Subject:
    return speed.Subject(ImageAttention(), (image(6, 4),), kv_tokens)


def test_a_cold_run_is_kept() -> None:
    kept: list[dict[str, Any]] = []
    row = speed.measure(small(6), inner="eager", rounds=0, warmup=1, keep=kept.append)
    assert kept == [row]
    assert all(len(times) == 1 for times in row["all_seconds"].values())
    assert row["dense_over"].keys() == {"rewritten", "bound"}


def test_speed_measures_three_different_variants() -> None:
    kept: list[dict[str, Any]] = []
    row = speed.measure(small(6), inner="eager", rounds=2, warmup=0, keep=kept.append)
    assert len(kept) == 2
    assert row == kept[-1]
    assert {v: len(t) for v, t in row["all_seconds"].items()} == dict.fromkeys(speed.VARIANTS, 2)
    assert row["factors"] == [(1, (2, 2))]
    assert row["flops"]["rewritten"] < row["flops"]["dense"]
    ratios = [
        d / r for d, r in zip(*(row["all_seconds"][v] for v in speed.VARIANTS[:2]), strict=True)
    ]
    assert row["dense_over"]["rewritten"]["median"] == pytest.approx(sum(ratios) / 2)


def test_speed_stops_when_nothing_is_rewritten() -> None:
    with (
        pytest.raises(SystemExit, match="nothing was rewritten"),
        pytest.warns(UserWarning, match="rewrote no attention"),
    ):
        speed.measure(
            small(4096), inner="eager", rounds=1, warmup=0, variants=("dense", "rewritten")
        )
