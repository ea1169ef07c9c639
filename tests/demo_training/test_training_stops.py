"""Ctrl-C in the demo model's training: saved, not exported, and the same command goes on."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from training import __main__ as command
from training import autoencoder, denoiser, latents
from training.data import Scenes
from training.subjects import SUBJECTS, Subject

ONE = Subject("aa", "a disc")
TINY = denoiser.Recipe(
    channels=(8, 8, 8), heads=(1, 1, 1), mix=(denoiser.Shape(1, 1, 1, 1.0),), minutes=0.0, steps=4
)
TINY_CODE = autoencoder.Recipe(channels=(8, 8, 8, 8), steps=3, minutes=(0.0, 0.0))


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with one picture, and a preset that takes seconds."""
    image = Image.new("RGBA", (256, 256), "red")
    image.save(tmp_path / "aa.webp", lossless=True)
    monkeypatch.setattr(command, "download", lambda _: tmp_path)
    monkeypatch.setattr(command, "SUBJECTS", (ONE,))
    monkeypatch.setattr(latents, "fit", functools.partial(latents.fit, pictures=4))
    monkeypatch.setattr(command, "PRESETS", {"cpu": (1, TINY, TINY_CODE)})
    monkeypatch.setattr(autoencoder.Trainer, "psnr", lambda _: {})
    yield tmp_path / "work"
    torch.set_flush_denormal(False)  # the command's setting is the process's


def stop_in(monkeypatch: pytest.MonkeyPatch, trainer: Any, method: str, call: int) -> None:
    """Send Ctrl-C while `method` runs for the `call`-th time."""
    real, calls = getattr(trainer, method), [0]

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*args, **kwargs)

    monkeypatch.setattr(trainer, method, interrupted)


def test_interrupted_training_exports_nothing_and_goes_on(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run = ["autoencoder", "denoiser", "export", "--work", str(work)]
    with monkeypatch.context() as patch:
        stop_in(patch, denoiser.Trainer, "_step", 2)
        assert command.main(run) == 130
    assert "The same command goes on" in capsys.readouterr().err
    assert not (work / "model").exists()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    state = torch.load(work / "run" / "denoiser.pt", weights_only=True)
    assert state["progress"]["step"] == 2

    assert command.main(run) == 0
    # Beside the checkpoints, not where the packaged model is.
    prompts = (work / "model" / "prompts.txt").read_text(encoding="utf-8")
    assert prompts == "a disc\n", "what was trained, not the standard subjects"
    patterns = (work / "model" / "prompts-patterns.txt").read_text(encoding="utf-8")
    assert patterns == "a disc pattern\n"
    record = (work / "model" / "training.json").read_text(encoding="utf-8")
    assert '"step": 4' in record


def test_interrupted_autoencoder_ends_the_run(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_in(monkeypatch, autoencoder.Trainer, "_decoder_loss", 2)
    assert command.main(["autoencoder", "denoiser", "--work", str(work)]) == 130
    assert "Interrupted" in capsys.readouterr().err
    state = torch.load(work / "run" / "autoencoder.pt", weights_only=True)
    assert state["steps"] == {"decoder": 2, "encoder": 0}
    assert not (work / "run" / "denoiser.pt").exists()


def test_ctrl_c_between_the_trainings(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "export", interrupt)
    assert command.main(["export", "--work", str(work)]) == 130


@pytest.mark.parametrize("part", autoencoder.PARTS)
def test_resumed_autoencoder_equals_an_uninterrupted_one(
    work: Path, monkeypatch: pytest.MonkeyPatch, part: autoencoder.Part
) -> None:
    scenes = Scenes(work.parent, (ONE,))
    code = latents.fit(scenes)

    def trainer(name: str) -> autoencoder.Trainer:
        folder = work / name
        folder.mkdir(parents=True, exist_ok=True)
        recipe = replace(TINY_CODE, steps=4)
        return autoencoder.Trainer(recipe, scenes, code, folder, torch.device("cpu"))

    whole = trainer("whole")
    assert whole.run(part)
    half = trainer("half")
    with monkeypatch.context() as patch:
        stop_in(patch, autoencoder.Trainer, f"_{part}_loss", 2)
        assert not half.run(part)
    resumed = trainer("half")
    assert resumed.resume()
    assert resumed.steps[part] == 2
    assert resumed.run(part)
    for left, right in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(left, right)


def test_a_checkpoint_without_optimisers_is_taken_up(work: Path) -> None:
    """As the one behind the packaged weights."""
    scenes = Scenes(work.parent, (ONE,))
    work.mkdir()
    made = autoencoder.Trainer(TINY_CODE, scenes, latents.fit(scenes), work, torch.device("cpu"))
    made.save()
    state = torch.load(made.checkpoint, weights_only=True)
    del state["optimisers"]
    torch.save(state, made.checkpoint)
    assert made.resume()


def test_packaged_prompts_are_those_of_the_subjects() -> None:
    demo = Path(command.__file__).parents[1] / "todo_compile" / "models" / "demo"
    for name, prompts in (
        ("prompts.txt", [s.one for s in SUBJECTS]),
        ("prompts-patterns.txt", [s.pattern for s in SUBJECTS]),
    ):
        assert (demo / name).read_text(encoding="utf-8").splitlines() == prompts
