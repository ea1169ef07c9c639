"""How well the trained pipeline draws: a sheet of samples, and retrieval by network features.

Retrieval: every sample is compared with the mean feature of each subject's real pictures, and
counts as found when the nearest is the subject that was asked for. The same is done first with
real pictures (the method's ceiling) and with real pictures through the autoencoder (the ceiling
for anything that it decodes). Above the size of a tile all of this is about patterns, as the
training is.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from training.data import TILE, Scenes
from training.efficientnet import EfficientNetLite0, load_efficientnet
from training.subjects import BACKGROUNDS, PLAIN, Subject

_REFERENCES = 6
_BATCH = 28


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn: side in pixels, DDIM steps, guidance, samples a subject."""

    side: int = TILE
    steps: int = 10
    guidance: float = 3.0
    samples: int = 4
    seed: int = 1_000


def generate(
    pipe: Any, prompts: Sequence[str], sampling: Sampling, *, seed: int, height: int | None = None
) -> torch.Tensor:
    """(B, 3, H, W) in [0, 1], one picture a prompt; picture i has seed `seed` + i."""
    drawn: list[torch.Tensor] = []
    for start in range(0, len(prompts), _BATCH):
        part = list(prompts[start : start + _BATCH])
        sources = [torch.Generator("cpu").manual_seed(seed + start + i) for i in range(len(part))]
        made = pipe(
            part,
            height=height or sampling.side,
            width=sampling.side,
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance,
            generator=sources,
            output_type="pt",
        ).images
        drawn.append(made.float().cpu())
    return torch.cat(drawn)


def evaluate(
    pipe: Any, scenes: Scenes, sampling: Sampling
) -> tuple[dict[str, Any], list[torch.Tensor]]:
    """Retrieval rates and what they stand on, and the samples, a tensor for each seed."""
    network = load_efficientnet()
    subjects = scenes.subjects
    asked = [_prompt(subject, sampling.side) for subject in subjects]
    centres = _centres(network, scenes, sampling.side)
    real = _real(scenes, sampling.side, per_subject=sampling.samples, seed=77)
    truth = [index for index in range(len(subjects)) for _ in range(sampling.samples)]
    with torch.no_grad():
        coded = torch.cat(
            [
                pipe.vae.decode(pipe.vae.encode(2 * part - 1).latent_dist.mean).sample
                for part in real.split(_BATCH)
            ]
        )
    coded = (coded / 2 + 0.5).clamp(0, 1)
    rounds = [
        generate(
            pipe,
            asked,
            sampling,
            seed=sampling.seed + 10_000 * number,
        )
        for number in range(sampling.samples)
    ]
    found = [_nearest(network, centres, pictures) for pictures in rounds]
    right = [
        sum(found[number][index] == index for number in range(sampling.samples))
        for index in range(len(subjects))
    ]
    wrong = Counter(
        (asked[index], asked[answer])
        for answers in found
        for index, answer in enumerate(answers)
        if answer != index
    )
    total = len(subjects) * sampling.samples
    report: dict[str, Any] = {
        "side": sampling.side,
        "steps": sampling.steps,
        "guidance": sampling.guidance,
        "seed": sampling.seed,
        "subjects": len(subjects),
        "samples": total,
        "chance": 1 / len(subjects),
        "ceiling_real": _rate(_nearest(network, centres, real), truth),
        "ceiling_autoencoder": _rate(_nearest(network, centres, coded), truth),
        "retrieval": sum(right) / total,
        "by_subject": {
            prompt: count / sampling.samples for prompt, count in zip(asked, right, strict=True)
        },
        "confusions": [
            {"asked": prompt, "found": answer, "times": times}
            for (prompt, answer), times in wrong.most_common(12)
        ],
    }
    return report, rounds


def sheet(
    rounds: Sequence[torch.Tensor], subjects: Sequence[Subject], cell: int = 128
) -> Image.Image:
    """All samples of a subject side by side, its name below; subjects in columns of blocks."""
    across = max(1, 8 // len(rounds)) * len(rounds)
    blocks = across // len(rounds)
    lines = -(-len(subjects) // blocks)
    canvas = Image.new("RGB", (across * cell, lines * (cell + 16)), "white")
    pen = ImageDraw.Draw(canvas)
    for index, subject in enumerate(subjects):
        top = index // blocks * (cell + 16)
        left = index % blocks * len(rounds) * cell
        for number, pictures in enumerate(rounds):
            canvas.paste(
                to_image(pictures[index]).resize((cell, cell)), (left + number * cell, top)
            )
        pen.text((left + 4, top + cell + 2), subject.one, fill="black")
    return canvas


def save_pictures(scenes: Scenes, side: int, folder: Path) -> Path:
    """Write what the prompts ask for into ``folder/SIDE``: every subject once, on plain ground.

    One object at the size of a tile, a pattern above it: the real pictures against which
    ``benchmarks/fidelity.py --real`` measures.
    """
    into = folder / str(side)
    into.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    for subject in scenes.subjects:
        drawn = _scene(scenes, rng, subject, PLAIN, side)
        picture = to_image(torch.from_numpy(drawn) / 2 + 0.5)
        picture.save(into / f"{subject.bare.replace(' ', '-')}.png")
    return into


def to_image(picture: torch.Tensor) -> Image.Image:
    """(3, H, W) in [0, 1] → an 8-bit picture."""
    values = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    return Image.fromarray(values.cpu().numpy())


def write(
    report: dict[str, Any], rounds: Sequence[torch.Tensor], subjects: Sequence[Subject], out: Path
) -> None:
    """Write ``evaluation-SIDE.json`` and ``samples-SIDE.png`` into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    name = str(report["side"])
    text = json.dumps(report, indent=2)
    (out / f"evaluation-{name}.json").write_text(text + "\n", encoding="utf-8")
    sheet(rounds, subjects).save(out / f"samples-{name}.png", optimize=True)


def _real(scenes: Scenes, side: int, *, per_subject: int, seed: int) -> torch.Tensor:
    rng = random.Random(seed)
    drawn: list[np.ndarray] = []
    for subject in scenes.subjects:
        for _ in range(per_subject):
            ground = PLAIN if rng.random() < 0.6 else rng.choice(list(BACKGROUNDS.values()))
            drawn.append(_scene(scenes, rng, subject, ground, side))
    return torch.from_numpy(np.stack(drawn)) / 2 + 0.5


def _prompt(subject: Subject, side: int) -> str:
    return subject.one if side <= TILE else subject.pattern


def _scene(
    scenes: Scenes, rng: random.Random, subject: Subject, ground: tuple[int, int, int], side: int
) -> np.ndarray:
    """What `_prompt` asks for, as it was trained: one object a tile, never a larger one."""
    tiles = max(side // TILE, 1)
    if tiles == 1:
        return scenes.single(rng, subject, ground, TILE)
    return scenes.pattern(rng, subject, ground, tiles, tiles)


def _features(network: EfficientNetLite0, pictures: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found = torch.cat([network(part) for part in pictures.split(_BATCH)])
    return torch.nn.functional.normalize(found, dim=1)


def _centres(network: EfficientNetLite0, scenes: Scenes, side: int) -> torch.Tensor:
    real = _real(scenes, side, per_subject=_REFERENCES, seed=55)
    means = _features(network, real).unflatten(0, (-1, _REFERENCES)).mean(1)
    return torch.nn.functional.normalize(means, dim=1)


def _nearest(
    network: EfficientNetLite0, centres: torch.Tensor, pictures: torch.Tensor
) -> list[int]:
    return (_features(network, pictures) @ centres.T).argmax(1).tolist()


def _rate(answers: Sequence[int], truth: Sequence[int]) -> float:
    return sum(a == t for a, t in zip(answers, truth, strict=True)) / len(truth)
