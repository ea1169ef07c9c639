"""Drift against independent two-pass measurements."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from graphs import (
    Captured,
    ImageAttention,
    capture,
    image,
    make_unet,
    matmul_inplace_scale,
    unet_inputs,
)

from todo_compile.cli.plots import plot_drift
from todo_compile.drift.measure import Drift, DriftMeter, Probe, measure, relative_error
from todo_compile.drift.probes import even_timesteps, structured_latents
from todo_compile.drift.report import SiteDrift
from todo_compile.errors import ConfigError
from todo_compile.options import PlanOptions

EVERY = PlanOptions(factors=((3, 2), (2, 1)), sampling="staggered")


@pytest.fixture(scope="module", params=["sdpa", "product"])
def unet(request: pytest.FixtureRequest) -> tuple[Any, Any, DriftMeter]:
    processor = AttnProcessor() if request.param == "product" else None
    model, inputs = make_unet(processor=processor), unet_inputs(10, 6)
    return capture(model, other_inputs(inputs), "export"), inputs, DriftMeter(model, inputs)


def two_passes(captured: Captured, options: PlanOptions) -> float:
    """Dense and rewritten, each as a program of its own, on `other_inputs`."""
    other = captured.copy()
    assert other.rewrite(options).rewritten
    (dense,), (got,) = captured.run(), other.run()
    return float((got - dense).square().sum().sqrt() / dense.square().sum().sqrt())


def other_inputs(inputs: Any) -> Any:
    return inputs[0].flip(0) * 0.7, inputs[1] - 300, inputs[2].flip(1)


def test_total_is_two_passes(unet: Any) -> None:
    captured, inputs, meter = unet
    step = meter.dense(other_inputs(inputs))  # the meter was captured with other values
    torch.testing.assert_close((step.output,), captured.run(), rtol=1e-5, atol=1e-6)
    total = step.total(EVERY)
    assert total > 1e-3
    assert total == pytest.approx(two_passes(captured, EVERY), rel=1e-3)
    assert meter.dense(inputs).total(EVERY) != total


def test_single_is_a_rewrite_of_that_site_alone(unet: Any) -> None:
    captured, inputs, meter = unet
    step = meter.dense(other_inputs(inputs))
    plan = meter.plan(EVERY)
    rows = [s for s in plan.sites if s.action == "rewritten"]
    assert [r.name for r in rows] == [s.name for s in meter.sites]
    assert len(rows) == 7
    for row in (rows[0], rows[3], rows[-1]):
        alone = PlanOptions(factors=(), sites={row.name: row.factor}, sampling="staggered")
        found = step.single(row.name, row.factor, "staggered")
        assert found.output == pytest.approx(two_passes(captured, alone), rel=1e-3)
        assert found.output > 1e-5
        assert step.single(row.module, row.factor, "staggered") == found
        local = step.single(row.name, row.factor, "staggered", output=False)
        assert (local.local, local.output) == (found.local, None)


def test_factor_one_is_exactly_zero(unet: Any) -> None:
    _, inputs, meter = unet
    step = meter.dense(inputs)
    assert step.total(PlanOptions(factors=())) == 0.0
    assert step.total(PlanOptions(factors=((1, 1), (1, 1)))) == 0.0
    for site in meter.sites:
        error = step.single(site.name, (1, 1))
        assert (error.local, error.output) == (0.0, 0.0)
    drift = measure(meter, [Probe(1.0, inputs)], PlanOptions(factors=()))
    assert (drift.total, drift.sites) == ((0.0,), ())


def test_local_error_is_that_of_the_attention() -> None:
    """One attention, whose inputs are known: compared with the oracle; in-place scores too."""
    import oracle

    for attend in (None, matmul_inplace_scale):
        model = ImageAttention(**({} if attend is None else {"attend": attend}))
        x = image(5, 6, batch=2)
        meter = DriftMeter(model, (x,))
        (site,) = meter.sites
        got = meter.dense((x,)).single(site.name, (2, 3), "average")
        with torch.no_grad():
            tokens = model.tokens(x)
            query = model.split(model.to_q(tokens))
            key, value = model.keys(tokens), model.values(tokens)
            dense = oracle.attention(query, key, value)
            key, value = (oracle.stand_ins(t, 2, (5, 6), (2, 3), "average") for t in (key, value))
            pooled = oracle.attention(query, key, value)
        expected = float((pooled - dense).norm() / dense.norm())
        assert got.local == pytest.approx(expected, rel=1e-3)
        assert got.output is not None
        assert got.output > 0


def test_only_what_follows_a_site_is_computed(unet: Any) -> None:
    """A late site runs few nodes, and what is kept is far less than all values."""
    _, _, meter = unet
    computed = {n.name for n in meter._module.graph.nodes if n.op == "call_function"}
    assert len(meter._kept & computed) < len(computed) / 5
    changed: list[int] = []
    for site in (meter.sites[0], meter.sites[-1]):
        options = PlanOptions(factors=(), sites={site.name: (2, 1)}, hoist=False)
        changed.append(len(meter._variant(options).changed))
    assert changed[1] < changed[0] / 3


def test_measure_averages_by_timestep(unet: Any) -> None:
    _, inputs, meter = unet
    probes = [Probe(t, a) for a in (inputs, other_inputs(inputs)) for t in (900.0, 100.0)]
    ticks: list[tuple[int, int]] = []
    drift = measure(meter, probes, EVERY, output=False, report=lambda a, b: ticks.append((a, b)))
    assert ticks == [(i, 4) for i in range(1, 5)]
    assert drift.timesteps == (900.0, 100.0)
    assert drift.samples == 2
    singles = [meter.dense(p.args).total(EVERY) for p in probes]
    assert drift.total == pytest.approx(((singles[0] + singles[2]) / 2,) * 2)
    assert all(len(s.local) == 2 and s.output == () for s in drift.sites)
    assert {s.sampling for s in drift.sites} > {"nearest +0,+0"}
    assert json.loads(json.dumps(drift.to_dict()))["options"]["sampling"] == "staggered"


def test_wrong_names_and_factors(unet: Any) -> None:
    _, inputs, meter = unet
    step = meter.dense(inputs)
    with pytest.raises(ConfigError, match="No attention site"):
        step.single("nothing", (2, 2))
    with pytest.raises(ConfigError, match="exceeds its grid"):
        step.single(meter.sites[0].name, (99, 1))


def test_relative_error() -> None:
    a = torch.tensor([3.0, 4.0])
    assert relative_error(a, a) == 0.0
    assert relative_error(torch.zeros(2), a) == 1.0
    assert relative_error(a * 0, a * 0) == 0.0
    assert relative_error(a, a * 0) == float("inf")


def test_structured_latents() -> None:
    generator = torch.Generator().manual_seed(0)
    x = structured_latents((2, 4, 31, 48), generator)
    assert x.shape == (2, 4, 31, 48)
    torch.testing.assert_close(x.mean((-2, -1)), torch.zeros(2, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std((-2, -1)), torch.ones(2, 4))
    neighbours = (x[..., 1:] * x[..., :-1]).mean()
    assert neighbours > 0.5, "neighbours are alike, as in pictures"
    again = structured_latents((2, 4, 31, 48), torch.Generator().manual_seed(0))
    assert torch.equal(x, again)
    assert even_timesteps(5, 1000) == (900, 700, 500, 300, 100)


def test_plot(tmp_path: Path) -> None:
    drift = Drift((900.0, 100.0), (0.1, 0.2), (), 1, {})
    plot_drift(drift, tmp_path / "drift.png", "title")
    assert (tmp_path / "drift.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ConfigError, match="cannot be written"):
        plot_drift(drift, tmp_path / "none" / "drift.png", "title")


@pytest.mark.parametrize("name", ["none/d.png", "d.nosuchformat", "."])
def test_a_plot_that_cannot_be_written_is_refused_before_measuring(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from todo_compile import models
    from todo_compile.cli.app import main

    monkeypatch.setattr(models, "resolve", lambda _: pytest.fail("the work has begun"))
    command = ["drift", "--model", "sd15", "--res", "64", "--plot", str(tmp_path / name)]
    assert main(command) == ConfigError("").exit_code
    told = " ".join(capsys.readouterr().err.split())
    assert "cannot be written" in told
    assert "Give --plot a file such as drift.png" in told


def test_help_says_what_the_conditions_are(capsys: pytest.CaptureFixture[str]) -> None:
    from todo_compile.cli.app import main

    assert main(["drift", "--help"]) == 0
    assert "Text conditions are seeded random" in " ".join(capsys.readouterr().out.split())


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from todo_compile.cli.app import main

    folder = tmp_path / "model"
    make_unet().unet.save_pretrained(str(folder / "unet"))  # pyright: ignore
    command = ["drift", "--model", str(folder), "--res", "64", "--steps", "2", "--seeds", "1"]
    plan = ["--factors", "2", "--sampling", "blend:0.5", "--quiet"]
    assert main([*command, *plan, "--json", "--plot", str(tmp_path / "d.png")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["timesteps"] == [750.0, 250.0]
    assert all(v > 0 for v in found["total"])
    assert {s["level"] for s in found["sites"]} == {1}
    assert len(found["sites"][0]["output"]) == 2
    (file,) = (folder / "unet").glob("*.safetensors")
    assert found["weights_hash"] == f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
    assert str(folder) in found["weights"]
    facts = [found[key] for key in ("random_weights", "precision", "batch", "local", "conditions")]
    assert facts == [False, "fp32", 1, False, "random"]
    assert (tmp_path / "d.png").exists()
    more = ["--weights", "random:3", "--batch", "2", "--precision", "bf16", "--local", "--json"]
    assert main([*command, *plan, *more]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["weights_hash"].startswith("random:3:")
    facts = [found[key] for key in ("random_weights", "precision", "batch", "local")]
    assert facts == [True, "bf16", 2, True]
    assert main([*command, *plan, "--local"]) == 0
    assert "all sites" in capsys.readouterr().out
    assert main([*command, "--factors", "off", "--quiet"]) == 0
    assert "nothing drifts" in capsys.readouterr().out


def test_a_search_over_plans_keeps_the_latest_only() -> None:
    meter = DriftMeter(ImageAttention(), (image(12, 12),))
    step = meter.dense((image(12, 12),))
    first = PlanOptions(factors=((2, 2),))
    error = step.total(first)
    for number in range(100):
        meter.plan(PlanOptions(factors=((1 + number % 12, 1 + number // 12),), sampling="average"))
    assert len(meter._variants) < 100  # pyright: ignore[reportPrivateUsage]
    assert step.total(first) == error, "what was dropped is made again"


@pytest.mark.parametrize(
    ("most", "says"), [(0.2, "by 20.0% at most"), (2e-5, "by 2.0e-05 at most")]
)
def test_a_plot_says_what_it_shows(
    most: float, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worst site is named, in words that fit; of many sites the worst have names."""
    titles: list[str] = []
    texts: list[str] = []

    def save(figure: Any, path: Path, kind: str) -> None:
        titles.append(figure.get_suptitle())
        texts.extend(text.get_text() for text in figure.axes[0].texts)
        path.write_text(kind)

    monkeypatch.setattr("todo_compile.style.save", save)
    paths = [f"unet.up_blocks.{i}.attentions.1.transformer_blocks.0.attn1" for i in range(15)]
    sites = tuple(
        SiteDrift(p, p, 1, (8, 8), (2, 2), "nearest", 0.1, (), (most * i / 99, most * i / 60))
        for i, p in enumerate(paths, 1)
    )
    plot_drift(Drift((900.0, 100.0), (most, most / 2), sites, 1, {}), tmp_path / "x.png", "demo")
    (title,) = titles
    assert title.replace("\n", " ") == f"demo: the output moves {says}, most by up 14, attention 1"
    assert len(texts) == 1 + 12
    assert "up 14, attention 1, 2×2" in texts
    assert "up 0, attention 1, 2×2" not in texts
