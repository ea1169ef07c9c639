"""Budgets, candidates and sites as text; refusals before any work."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers import said

from todo_compile.choices import choice_text, parse_candidates, parse_choice
from todo_compile.cli.app import main
from todo_compile.errors import ConfigError
from todo_compile.models.registry import DEMO
from todo_compile.tuning.wishes import Budget, disabled


def test_budgets() -> None:
    assert Budget.parse("drift=1e-3") == Budget("drift", 1e-3)
    assert Budget.parse(" speedup = 2.5 ") == Budget("speedup", 2.5)
    assert Budget.parse("mse=0.25") == Budget("drift", 0.25)
    assert Budget.parse("psnr=30").value == pytest.approx(1e-3)
    assert Budget.parse(str(Budget("drift", 0.00125))) == Budget("drift", 0.00125)


@pytest.mark.parametrize(
    "text",
    [
        "", "drift", "drift=", "=1", "drift=nan", "drift=inf", "drift=0", "drift=-1e-3", "drift=1",
        "drift=1e-3,speedup=2", "speedup=0.9", "speedup=0", "speedup=1e999", "speed=2", "2.5",
        "drift=1e-3 ms", "psnr=-3", "psnr=0", "drift==1", "drift=1e", "speedup=−2",
    ],
)  # fmt: skip
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Budget.parse(text)
    assert caught.value.remedy


def test_candidates() -> None:
    found = parse_candidates(["nearest:2,4 average:2", "nearest:4,4x2", "blend:.5:3"])
    assert found == (
        (2, 2, "nearest"), (4, 4, "nearest"), (2, 2, "average"), (2, 4, "nearest"),
        (3, 3, "blend:0.5"),
    )  # fmt: skip
    for choice in found:
        assert parse_choice(choice_text(choice)) == choice
    assert choice_text((2, 2)) == "nearest:2"
    assert choice_text((1, 1)) == "dense"
    assert parse_choice("dense") == (1, 1)


@pytest.mark.parametrize(
    "texts",
    [
        [], [""], ["  "], ["2"], ["nearest"], ["nearest:"], [":2"], ["nearst:2"], ["nearest:0"],
        ["nearest:1"], ["nearest:2,1"], ["nearest:off"], ["nearest:two"], ["blend:0.5"],
        ["blend:2:2"], ["nearest:2.5"], ["nearest:-2"],
    ],
)  # fmt: skip
def test_what_is_no_candidate(texts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_candidates(texts)
    assert caught.value.remedy


def test_disabled_sites() -> None:
    names = ["down.0.attn1", "mid.attn1", "up.0.attn1"]
    assert disabled(names, []) == frozenset()
    assert disabled(names, ["mid*", "up*"]) == {"mid.attn1", "up.0.attn1"}
    for patterns, words in ((["nid*"], "matches no site"), (["*"], "Every site is disabled")):
        with pytest.raises(ConfigError, match=words):
            disabled(names, patterns)


@pytest.mark.parametrize(
    ("options", "words", "code"),
    [
        (["--budget", "drift=0"], "no bound", 2),
        (["--budget", "speedup=1.05", "--candidates", "nearest:1"], "changes nothing", 2),
        (["--budget", "speedup=1.05", "--phases", "0"], "0 phases are not possible", 2),
        (["--budget", "speedup=1.05", "--phases", "1", "--dense-last"], "needs another one", 2),
        (["--budget", "speedup=1.05", "--steps", "0"], "draw nothing", 2),
        (["--budget", "speedup=1.05", "--pairs", "0"], "counted from 1", 2),
        (["--budget", "speedup=1.05", "--res", "256"], "2 resolutions were given", 2),
        (["--budget", "speedup=1.05", "--prompts", "absent.txt"], "cannot be read", 2),
        (["--budget", "speedup=1.05", "--weights", "random"], "can be made of sd15", 2),
        (["--budget", "speedup=1.05", "--weights", "a.safetensors"], "pipeline's own weights", 2),
        (["--budget", "speedup=1.05", "--parts", "0"], "counted from 1", 2),
        (["--budget", "speedup=1.05", "--plot", "absent/tune.png"], "does not exist", 2),
    ],
)
def test_the_command_refuses_before_any_work(
    options: list[str],
    words: str,
    code: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("todo_compile.tuning.studio.Studio.__init__", never)
    out = tmp_path / "plan.json"
    assert main(["tune", "--model", "demo", "--res", "64", "--out", str(out), *options]) == code
    assert words in said(capsys)
    assert not list(tmp_path.iterdir())


def test_a_denoiser_alone_cannot_draw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = tmp_path / "unet"
    alone.mkdir()
    shutil.copy(DEMO / "unet" / "config.json", alone)
    command = ["tune", "--model", str(alone), "--res", "64", "--out", str(tmp_path / "plan.json")]
    assert main([*command, "--budget", "speedup=1.05"]) == 2
    assert "no folder of a whole pipeline" in said(capsys)
