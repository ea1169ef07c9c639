"""The fidelity benchmark's peers: on any device, and the same pictures whenever they are drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fidelity_parts import peers
from fidelity_parts.model import Pair
from fidelity_parts.settings import Setting
from graphs import make_unet
from test_bench_fidelity import Tiny, harness

TOMESD = Setting("peer", "0.5", "tomesd")
PAIRS = [Pair(prompt, seed) for prompt in ("a", "bb") for seed in (0, 1)]


def draw(cache: Path, pairs: list[Pair], disturb: int = 0) -> dict[str, Any]:
    torch.manual_seed(disturb)
    drawn = harness(Tiny(), cache).draw((TOMESD,), [12], pairs)
    return drawn[12, TOMESD.name].pictures


def test_tomesd_draws_the_same_whatever_came_before(tmp_path: Path) -> None:
    pytest.importorskip("tomesd")
    whole = draw(tmp_path / "whole", PAIRS)
    # Another state of torch's own generator, and a run that was stopped after the first batch.
    draw(tmp_path / "parts", PAIRS[:2], disturb=1)
    parts = draw(tmp_path / "parts", PAIRS, disturb=2)
    for key, picture in whole.items():
        np.testing.assert_array_equal(parts[key], picture)


def test_tomesd_choices_differ_from_batch_to_batch() -> None:
    pytest.importorskip("tomesd")
    module = peers.build(TOMESD, make_unet("upper level").unet, (12, 12))
    unet: Any = module.unet
    states: list[bytes] = []
    for pairs in (PAIRS[:2], PAIRS[2:], PAIRS[:2]):
        peers.reseed(module, pairs)
        states.append(unet._tome_info["args"]["generator"].get_state().numpy().tobytes())
    assert states[0] == states[2] != states[1]


def test_sites_are_found_on_the_device_of_the_unet() -> None:
    """The meta device stands for any other than the CPU."""
    unet = make_unet().unet.to("meta")
    assert len(peers.top_level(unet, (6, 4))) == 3
