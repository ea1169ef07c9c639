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
from graphs import make_unet, unet_inputs
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


def test_levels_are_found_on_no_data() -> None:
    """The meta device: nothing is computed, whatever the size."""
    unet = make_unet().unet.to("meta")
    found = peers.levels(unet, (6, 4))
    assert list(found) == [(6, 4), (3, 2)]
    assert all(found.values())


def test_copies_share_weights_and_leave_the_unet_alone() -> None:
    unet = make_unet().unet
    noisy = peers.build(Setting("control", sampling="bf16 noise"), unet, (6, 4))
    tiled = peers.build(Setting("peer", "2", "tiles"), unet, (6, 4))
    pairs = list(zip(unet.parameters(), noisy.parameters(), tiled.parameters(), strict=True))
    assert all(a is c for a, _, c in pairs)
    assert all(torch.equal(a.bfloat16().float(), b) for a, b, _ in pairs)
    assert not all(torch.equal(a, b) for a, b, _ in pairs)


def test_the_papers_processor_is_the_rewrite() -> None:
    """Two levels with factors of their own; the compiler's graph gives the same numbers."""
    import todo_compile
    from todo_compile.options import PlanOptions

    denoiser, grid = make_unet(), (8, 8)
    patched = peers.build(Setting("peer", "4,2", "patched keys"), denoiser.unet, grid)
    inputs = unet_inputs(*grid)
    options = PlanOptions.create(factors="4,2")
    rewritten, report = todo_compile.rewrite(denoiser, inputs, options=options)
    assert report.rewritten
    with torch.no_grad():
        torch.testing.assert_close(patched(*inputs), rewritten(*inputs), atol=1e-5, rtol=1e-4)


def test_deep_features_are_used_again() -> None:
    """Whole, outermost only, outermost only, whole; and nothing of one sampling in the next."""
    unet = make_unet("upper level").unet
    reuse: Any = peers.build(Setting("peer", "3", "reuse"), unet, (12, 12))
    calls = [
        (unet_inputs(12, 12)[0], torch.tensor([t]), unet_inputs(12, 12)[2]) for t in (9.0, 6.0, 3.0)
    ]
    with torch.no_grad():
        truth = [unet(*one).sample for one in calls]
        got = [reuse(*one) for one in calls]
        torch.testing.assert_close(got[0], truth[0])
        # With the deep part of its own call, the outermost layers give the whole UNet's output.
        torch.testing.assert_close(
            reuse.outermost(*calls[0], reuse._held), truth[0], atol=1e-5, rtol=1e-4
        )
        assert not torch.allclose(got[1], truth[1], atol=1e-4)
        peers.reseed(reuse, ())
        torch.testing.assert_close(reuse(*calls[2]), truth[2])
        with pytest.raises(ValueError, match="restart"):
            reuse(*(one[:1] if one.shape[0] == 2 else one for one in calls[1]))


def test_what_a_method_survives_is_tried() -> None:
    from race_parts.peers import fits

    unet = make_unet("upper level").unet
    found = fits(Setting("peer", "2", "patched keys"), unet, (12, 12), 12, ["fullgraph"])
    assert found == {"fullgraph": "yes"}
    found = fits(Setting("peer", "2", "reuse"), unet, (12, 12), 12, ["onnx"])
    assert found == {"onnx": "runs, with other numbers"}, "one file is one kind of step"
