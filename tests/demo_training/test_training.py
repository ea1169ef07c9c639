"""The demo model's training: scenes, linear code, tokenizer, resuming, export."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from todo_compile.models.registry import DEMO
from training import autoencoder, denoiser, latents, text
from training import evaluate as evaluation
from training.__main__ import _arguments
from training.data import TILE, Scenes
from training.evaluate import sheet
from training.export import export, load_trained
from training.subjects import PLAIN, SUBJECTS, Subject, extended, read_subjects, write_subjects

TWO = (Subject("aa", "a disc"), Subject("bb", "an oblong"))
TINY = denoiser.Recipe(
    channels=(8, 8, 8),
    heads=(1, 1, 1),
    mix=(denoiser.Shape(1, 1, 2, 0.5), denoiser.Shape(1, 2, 1, 0.5)),
    steps=4,
    minutes=0.0,
)
TINY_CODE = autoencoder.Recipe(channels=(8, 8, 8, 8), steps=3, minutes=(0.0, 0.0))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    assets = tmp_path_factory.mktemp("assets")
    for subject, colour in zip(TWO, ("red", "blue"), strict=True):
        image = Image.new("RGBA", (256, 256), (0, 0, 0, 0))
        pen = ImageDraw.Draw(image)
        (pen.ellipse if colour == "red" else pen.rectangle)((20, 60, 236, 196), fill=colour)
        image.save(assets / f"{subject.code}.webp", lossless=True)
    return Scenes(assets, TWO)


@pytest.fixture(scope="module")
def code(scenes: Scenes) -> latents.Code:
    return latents.fit(scenes, pictures=8)


def _trainer(
    recipe: denoiser.Recipe, scenes: Scenes, code: latents.Code, folder: Path
) -> denoiser.Trainer:
    folder.mkdir(exist_ok=True)
    return denoiser.Trainer(recipe, scenes, code, folder, torch.device("cpu"))


def test_scenes_depend_on_the_generator_alone(scenes: Scenes) -> None:
    first = scenes.draw(random.Random(3), 2, 3)
    again = scenes.draw(random.Random(3), 2, 3)

    assert first[1] == again[1]
    assert (first[0] == again[0]).all()
    assert first[0].shape == (3, 2 * TILE, 3 * TILE)
    assert first[0].dtype == np.float32
    assert abs(first[0]).max() <= 1


def test_prompts_say_what_is_drawn(scenes: Scenes) -> None:
    rng = random.Random(0)
    for rows, columns in ((1, 1), (2, 2), (2, 1)):
        for _ in range(20):
            canvas, prompt = scenes.draw(rng, rows, columns)
            # The object's colour tells which of the two it is; the middle of the tile is inside.
            middle = canvas[:, TILE // 2 if rows > 1 and "pattern" in prompt else rows * TILE // 2]
            inside = middle[:, TILE // 2 if "pattern" in prompt else columns * TILE // 2]
            assert ("disc" in prompt) == bool(inside[0] > inside[2])
            corner = (canvas[:, 0, 0] + 1) * 127.5
            assert ("background" in prompt) == (abs(corner - np.array(PLAIN)).max() > 1)
            assert rows == columns or " pattern" in prompt


def test_linear_code_inverts_itself_on_its_own_span(code: latents.Code) -> None:
    latent = torch.randn(2, latents.CHANNELS, 3, 4, generator=torch.Generator().manual_seed(0))
    images = code.decode(latent)

    assert images.shape == (2, 3, 24, 32)
    torch.testing.assert_close(code.encode(images), latent, rtol=1e-3, atol=1e-3)


def test_linear_code_keeps_most_of_a_picture(scenes: Scenes, code: latents.Code) -> None:
    canvas = torch.from_numpy(scenes.draw(random.Random(1), 1, 1)[0])[None]
    restored = code.decode(code.encode(canvas))
    assert (restored - canvas).square().mean() < 0.1 * canvas.var()


def test_every_word_becomes_one_token_and_all_bytes_have_theirs(tmp_path: Path) -> None:
    tokenizer = text.make_tokenizer(tmp_path)
    for subject in SUBJECTS:
        for phrase in (subject.one, subject.pattern):
            assert len(tokenizer(phrase).input_ids) == len(phrase.split()) + 2
    assert len(set(text.byte_alphabet())) == 256
    assert tokenizer.unk_token_id not in tokenizer("żółw 🐢").input_ids[1:-1]


def test_resumed_run_equals_an_uninterrupted_one(
    scenes: Scenes, code: latents.Code, tmp_path: Path
) -> None:
    whole = _trainer(TINY, scenes, code, tmp_path / "whole")
    whole.run()
    half = _trainer(replace(TINY, steps=2), scenes, code, tmp_path / "half")
    # The learning rate must be that of the whole run, so only the length of the loop is cut.
    half.recipe = replace(TINY, steps=4)
    for _ in range(2):
        half._step()
    half.save()
    resumed = _trainer(TINY, scenes, code, tmp_path / "half")
    assert resumed.resume()
    resumed.run()

    assert resumed.progress.step == 4
    assert resumed.progress.images == whole.progress.images
    for left, right in zip(whole._parameters(), resumed._parameters(), strict=True):
        torch.testing.assert_close(left, right)


def test_training_moves_every_weight(scenes: Scenes, code: latents.Code, tmp_path: Path) -> None:
    trainer = _trainer(TINY, scenes, code, tmp_path)
    before = [p.detach().clone() for p in trainer._parameters()]
    trainer.run()
    still = [
        name
        for (name, now), old in zip(
            [*trainer.unet.named_parameters(), *trainer.text.named_parameters()],
            before,
            strict=True,
        )
        if torch.equal(now, old)
    ]
    assert still == []


def test_export_writes_a_loadable_pipeline(
    scenes: Scenes, code: latents.Code, tmp_path: Path
) -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import (
        StableDiffusionPipeline,
    )

    run = tmp_path / "run"
    _trainer(TINY, scenes, code, run).run()
    coder = autoencoder.Trainer(TINY_CODE, scenes, code, run, torch.device("cpu"))
    coder.run("decoder")
    coder.run("encoder")
    target = tmp_path / "model"
    target.mkdir()
    (target / "README.md").write_text("card", encoding="utf-8")

    size = export(run, target)
    pipe: Any = StableDiffusionPipeline.from_pretrained(target)
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a disc", height=64, width=64, num_inference_steps=2, output_type="np").images[0]

    assert size < 20e6
    assert image.shape == (64, 64, 3)
    assert (target / "README.md").read_text(encoding="utf-8") == "card"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "run"]
    assert load_trained(run).denoiser["step"] == 4


def test_extended_subjects(tmp_path: Path) -> None:
    names = tmp_path / "names.json"
    names.write_text(
        '{"🦉": {"name": "owl", "group": "Animals & Nature"},'
        ' "🍎": {"name": "red apple", "group": "Food & Drink"},'
        ' "🏁": {"name": "chequered flag", "group": "Flags"},'
        ' "🦊": {"name": "fox", "group": "Animals & Nature"}}',
        encoding="utf-8",
    )
    for code_point in ("1f989", "1f34e", "1f3c1"):
        (tmp_path / f"{code_point}.webp").touch()

    found = extended(names, tmp_path, 40)
    assert [s.one for s in found[len(SUBJECTS) :]] == ["an owl"]
    write_subjects(found, tmp_path / "subjects.json")
    assert read_subjects(tmp_path / "subjects.json") == found


def test_sheet_holds_every_sample() -> None:
    rounds = [torch.zeros(2, 3, 16, 16), torch.ones(2, 3, 16, 16)]
    image = np.asarray(sheet(rounds, TWO, cell=16))
    assert image.shape == (32, 8 * 16, 3)
    assert (image[:16, :16] == 0).all()
    assert (image[:16, 16:32] == 255).all()


@pytest.mark.parametrize("side", [TILE, 2 * TILE])
def test_evaluation_asks_for_what_was_trained_at_the_size(
    scenes: Scenes, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above one tile patterns: asked for, and the real pictures that answers are compared with."""
    real = evaluation._real(scenes, side, per_subject=1, seed=0)
    assert real.shape == (2, 3, side, side)
    last = real[..., -TILE:, -TILE:]
    assert torch.equal(real[..., :TILE, :TILE], last), "one whole object in every tile"
    asked: list[str] = []

    def draw(prompts: list[str], height: int, **_: Any) -> Any:
        asked.extend(prompts)
        return SimpleNamespace(images=real[: len(prompts), :, :height])

    # A network that sees colours, and an autoencoder that loses nothing.
    monkeypatch.setattr(evaluation, "load_efficientnet", lambda: lambda x: x.mean((-2, -1)))
    vae = SimpleNamespace(
        encode=lambda x: SimpleNamespace(latent_dist=SimpleNamespace(mean=x)),
        decode=lambda x: SimpleNamespace(sample=x),
    )

    class Pipe(SimpleNamespace):
        __call__ = staticmethod(draw)

    sampling = evaluation.Sampling(side=side, samples=1)
    report, _ = evaluation.evaluate(Pipe(vae=vae), scenes, sampling)
    expected = ["a disc", "an oblong"]
    if side > TILE:
        expected = [f"{prompt} pattern" for prompt in expected]
    assert asked == list(report["by_subject"]) == expected
    assert (report["ceiling_real"], report["retrieval"]) == (1.0, 1.0)


def test_evaluation_is_by_default_the_published_one() -> None:
    published = json.loads((DEMO / "evaluation-128.json").read_text(encoding="utf-8"))
    standard = evaluation.Sampling()
    given = _arguments().parse_args([])
    assert {standard.side, *given.sides} == {published["side"]}
    assert {standard.steps, given.ddim_steps} == {published["steps"]}
    assert given.samples * len(SUBJECTS) == published["samples"]
