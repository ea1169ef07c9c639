"""The fidelity benchmark's parts: pairs, peers, statistics, resuming, and what it compares."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from graphs import make_unet

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
pytest.importorskip("torchmetrics")
pytest.importorskip("scipy")

import decoder
from fidelity import chosen, make_pairs
from fidelity_parts import peers
from fidelity_parts.evaluate import evaluate, real_pictures
from fidelity_parts.harness import Harness
from fidelity_parts.intervals import interval, paired
from fidelity_parts.measures import kid, kid_change, perceptual
from fidelity_parts.model import Model, Pair
from fidelity_parts.output import contact_sheet, markdown
from fidelity_parts.plots import plots
from fidelity_parts.redundancy import neighbour_similarity, study
from fidelity_parts.settings import QUICK, RUNS, Setting


class Tiny(Model):
    """A model without files: random UNet, hashed text, latents shown as they are."""

    def __init__(self) -> None:
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        self.device, self.scale, self.identity, self.native = "cpu", 1, "tiny", 12
        self.unet = make_unet("upper level").unet
        self.scheduler = DDIMScheduler()
        self.runs = 0

    def encode(self, prompts: Any) -> torch.Tensor:
        drawn = [
            torch.randn(5, 12, generator=torch.Generator().manual_seed(len(p)))
            for p in [*([""] * len(prompts)), *prompts]
        ]
        return torch.stack(drawn)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        self.runs += 1
        return latents[:, :3].sigmoid()


PAIRS = make_pairs(["a", "bb"], 4)
NEAREST, STAGGERED = (Setting("todo", "2", s) for s in ("nearest", "staggered"))
SETTINGS = (
    NEAREST, STAGGERED, Setting("todo", "2", "nearest", 0.5),
    Setting("control", sampling="other seed"), Setting("control", sampling="no attention"),
)  # fmt: skip


def harness(model: Model, cache: Path, **changes: Any) -> Harness:
    chosen = {"steps": 2, "guidance": 3.0, "batch": 2, "deadline": time.monotonic() + 1e6}
    return Harness(model, cache, say=lambda _: None, **{**chosen, **changes})


def test_pictures_are_those_of_the_rewrite_and_are_drawn_once(tmp_path: Path) -> None:
    model = Tiny()
    drawn = harness(model, tmp_path / "cache").draw(SETTINGS, [12], PAIRS)
    assert model.runs == 2 * 5, "two batches of five settings"
    # The truth: the oracle's processor in the same loop.
    other = Tiny()
    other.unet.set_attn_processor(oracle.OracleProcessor({144: (12, 12)}, {144: (2, 2)}, "nearest"))
    from fidelity_parts.model import Wrapped

    eager = Wrapped(other.unet)
    truth = other.sample(PAIRS[:2], 12, 2, 3.0, lambda _: eager).permute(0, 2, 3, 1).numpy()
    for pair, expected in zip(PAIRS[:2], truth, strict=True):
        got = drawn[12, NEAREST.name].pictures[pair.key]
        np.testing.assert_allclose(got, expected, atol=1e-3)
        assert np.abs(drawn[12, "dense"].pictures[pair.key] - expected).max() > 4e-3
    again = Tiny()
    resumed = harness(again, tmp_path / "cache").draw(SETTINGS, [12], PAIRS)
    assert again.runs == 0
    for key, found in drawn.items():
        for pair, picture in found.pictures.items():
            assert np.array_equal(resumed[key].pictures[pair], picture)
    late = drawn[12, SETTINGS[2].name]
    dense, sparse = drawn[12, "dense"], drawn[12, NEAREST.name]
    assert sparse.flops is not None
    assert late.flops is not None
    assert dense.flops is not None
    assert sparse.flops < late.flops < dense.flops

    rows = evaluate(drawn, SETTINGS, PAIRS, None, {}, lambda _: None)
    by_name = {r["name"]: r for r in rows}
    assert by_name["dense"]["mean"]["mse"] == (0.0, 0.0, 0.0)
    assert by_name[NEAREST.name]["mean"]["mse"][0] > 0
    assert by_name[STAGGERED.name]["against_nearest"]["ratio"] > 0
    assert "against_nearest" not in by_name[NEAREST.name]
    assert by_name["other seed"]["pairs"] == 4
    text = markdown(rows)
    assert all(name in text for name in by_name)
    similarity = study(model, PAIRS[:2], 12, 2, 3.0)
    assert all(len(r["similarity"]) == 2 for r in similarity["sites"].values())
    assert len(similarity["sites"]) == 4, "the mid block's too"
    plots(rows, similarity, tmp_path / "plot.png")
    contact_sheet(drawn, 12, PAIRS, tmp_path / "sheet.png")
    assert (tmp_path / "plot.png").stat().st_size > 0
    assert (tmp_path / "sheet.png").stat().st_size > 0


def test_flops_of_peers_are_counted_by_the_reports_rule(tmp_path: Path) -> None:
    model = Tiny()
    mine = harness(model, tmp_path)
    dense, _ = mine._totals(Setting("dense"), 12, 2)
    assert mine._counted(Setting("dense"), 12, 4) == dense
    few, tiles = (mine._counted(Setting("peer", "2", r), 12, 4) for r in ("all tokens", "tiles"))
    nearest, _ = mine._totals(NEAREST, 12, 2)
    assert few < nearest < dense, "queries are fewer, too"
    assert few < tiles < dense


def test_time_is_bounded_and_all_settings_share_pairs(tmp_path: Path) -> None:
    model = Tiny()
    drawn = harness(model, tmp_path, deadline=0.0).draw((SETTINGS[4],), [12], PAIRS)
    assert {len(d.pictures) for d in drawn.values()} == {2}, "the first batch, for all"


def test_pairs() -> None:
    pairs = make_pairs([f"p{i}" for i in range(24)], 64)
    assert len(set(pairs)) == len(pairs) == 64
    assert len({p.prompt for p in pairs[:48]}) == 24
    assert all(pairs[i].prompt == pairs[i + 1].prompt for i in range(0, 48, 2))
    assert len(make_pairs(["one"], 5)) == 6
    assert [p.prompt for p in make_pairs(["a", "b", "c"], 2)] == ["a", "a"]


def test_prompts_come_from_the_file_that_was_named(tmp_path: Path) -> None:
    model = Tiny()
    model.folder = tmp_path
    assert "an astronaut riding a horse" in model.prompts(None)
    (tmp_path / "prompts.txt").write_text("# a comment\n\na cat\n  a dog \n")
    assert model.prompts(None) == ["a cat", "a dog"]
    with pytest.raises(SystemExit, match="no file of prompts"):
        model.prompts(tmp_path / "promts.txt")
    (tmp_path / "prompts.txt").write_text("# nothing else\n")
    with pytest.raises(SystemExit, match="names no prompt"):
        model.prompts(None)


def test_names_of_settings_are_unique() -> None:
    for run in (*RUNS.values(), QUICK):
        names = [s.name for s in run.settings]
        assert len(set(names)) == len(names)
        for setting in run.settings:
            assert setting.kind != "todo" or setting.plan.sampling == setting.sampling


@pytest.mark.parametrize("rule", ["all tokens", "tiles", "patched keys"])
def test_peers_with_factor_one_are_dense(rule: str) -> None:
    unet = make_unet().unet
    grid = (6, 4)
    x, time_, text = torch.randn(2, 4, *grid), torch.tensor([300.0]), torch.randn(2, 5, 12)
    with torch.no_grad():
        dense = unet(x, time_, text).sample
        same = peers.build(Setting("peer", "1", rule), unet, grid)(x, time_, text)
        other = peers.build(Setting("peer", "2", rule), unet, grid)(x, time_, text)
        torch.testing.assert_close(same, dense, atol=1e-5, rtol=1e-4)
        assert (other - dense).abs().max() > 1e-4
        torch.testing.assert_close(unet(x, time_, text).sample, dense, msg="the UNet is untouched")
    assert [len(names) for names in peers.levels(unet, grid).values()] == [3, 4]


def test_statistics() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(3, 1, 200).tolist()
    mean, low, high = interval(values)
    assert low < mean < high
    assert high - low == pytest.approx(2 * 1.96 / 200**0.5, rel=0.15)
    half = paired([v / 2 for v in np.abs(values)], np.abs(values).tolist())
    assert half["ratio"] == pytest.approx(0.5)
    assert (half["low"], half["high"]) == pytest.approx((0.5, 0.5))
    assert half["smaller"] == 1.0
    assert half["p"] < 1e-6
    assert paired([1.0, 2.0], [1.0, 2.0])["p"] is None


def test_pictures_of_one_prompt_are_no_independent_draws() -> None:
    """Ten copies of every value make the interval no narrower, and the test no surer."""
    generator = np.random.default_rng(2)
    values, base = generator.gamma(2, 1, 20), generator.gamma(2, 1, 20)
    prompts = [f"prompt {i}" for i in range(20)] * 10
    many, other = np.tile(values, 10).tolist(), np.tile(base, 10).tolist()
    assert interval(many, prompts) == pytest.approx(interval(values.tolist()))
    _, low, high = interval(many)
    assert high - low < 0.5 * (interval(many, prompts)[2] - interval(many, prompts)[1])
    once, tiled = paired(values.tolist(), base.tolist()), paired(many, other, prompts)
    assert tiled == pytest.approx(once)
    # A prompt with more pictures counts by its pictures in the mean.
    assert interval([1.0, 1.0, 1.0, 5.0], ["a", "a", "a", "b"])[0] == pytest.approx(2.0)


def test_kid_by_its_definition() -> None:
    generator = np.random.default_rng(1)
    a, b = generator.normal(size=(5, 7)), generator.normal(size=(4, 7)) + 0.3

    def k(x: Any, y: Any) -> float:
        return float((x @ y / 7 + 1) ** 3)

    inside_a = [k(a[i], a[j]) for i in range(5) for j in range(5) if i != j]
    inside_b = [k(b[i], b[j]) for i in range(4) for j in range(4) if i != j]
    across = [k(x, y) for x in a for y in b]
    expected = np.mean(inside_a) + np.mean(inside_b) - 2 * np.mean(across)
    assert kid(a, b) == pytest.approx(expected)


def test_change_of_kid() -> None:
    """One picture a prompt: the difference of two KIDs; its interval holds it; no change is 0."""
    generator = np.random.default_rng(3)
    dense, real = generator.normal(size=(12, 7)), generator.normal(size=(9, 7)) + 0.2
    prompts = [str(i) for i in range(12)]
    worse = dense + 3.0
    found = kid_change(worse, dense, real, prompts)
    assert found is not None
    change, low, high = found
    assert change == pytest.approx(kid(worse, real) - kid(dense, real))
    assert low < change < high
    assert low > 0
    assert kid_change(dense, dense, real, prompts) == (0.0, 0.0, 0.0)
    assert kid_change(dense[:2], dense[:2], real, ["a", "b"]) is None
    twice = kid_change(np.tile(worse, (2, 1)), np.tile(dense, (2, 1)), real, prompts * 2)
    assert twice == pytest.approx(found)


def test_similarity_of_neighbours() -> None:
    assert neighbour_similarity(torch.ones(2, 12, 3), (3, 4)) == pytest.approx(1.0)
    checks = torch.tensor([(-1.0) ** (r + c) for r in range(3) for c in range(4)])
    assert neighbour_similarity(checks.reshape(1, 12, 1), (3, 4)) == pytest.approx(-1.0)
    one = [torch.nn.functional.normalize(torch.randn(4, 5, 5), dim=0)]
    assert perceptual(one, one) == 0.0
    assert perceptual(one, [-one[0]]) == pytest.approx(4.0, rel=1e-4)


def test_pair_keys_tell_prompt_and_seed_apart() -> None:
    assert len({Pair(p, s).key for p in ("a", "b") for s in (0, 1)}) == 4


def test_settings_by_name() -> None:
    settings = RUNS["tradeoff"].settings
    assert chosen(settings, None) == list(settings)
    names = "nearest 8; nearest 4,2"
    assert {s.name for s in chosen(settings, names)} == {"nearest 8", "nearest 4,2"}
    with pytest.raises(SystemExit, match="No setting nearest in this run"):
        chosen(settings, "nearest")


def test_real_pictures_of_the_side(tmp_path: Path) -> None:
    from PIL import Image

    for name, side, colour in (("8", 8, (255, 0, 0, 255)), ("other", 16, (0, 0, 0, 0))):
        (tmp_path / name).mkdir()
        for number in range(2):
            Image.new("RGBA", (side, side), colour).save(tmp_path / name / f"{number}.png")
    red = real_pictures(tmp_path, 8)
    assert len(red) == 2
    assert red[0].shape == (8, 8, 3)
    assert np.all(red[0] == [1, 0, 0])
    white = real_pictures(tmp_path / "other", 4)  # resized; transparent is white
    assert white[0].shape == (4, 4, 3)
    assert np.all(white[0] == 1)
    with pytest.raises(SystemExit, match="holds no pictures"):
        real_pictures(tmp_path / "none", 8)


def test_decoder() -> None:
    """Every setting is told from dense, which is itself; taking attention away is undone."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval().requires_grad_(False)  # fmt: skip
    before = vae.decoder.mid_block.attentions
    rows = decoder.measure(vae, torch.rand(2, 3, 16, 16), 16, [2, 8])
    names = [*(f"{s} 2" for s in decoder.SAMPLINGS), "no attention"]
    assert [r["name"] for r in rows] == ["dense", *names]  # 8 is more than half the grid
    assert rows[0]["to_dense"] == [0.0, 0.0]
    assert all(min(r["to_dense"]) > 0 and r["pictures"] == 2 for r in rows[1:])
    assert vae.decoder.mid_block.attentions is before
