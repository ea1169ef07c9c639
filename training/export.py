"""From checkpoints to a ``StableDiffusionPipeline`` folder in fp16 safetensors."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training import autoencoder, denoiser, text
from training.subjects import Subject, read_subjects

_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


@dataclass(frozen=True)
class Trained:
    """The parts of a pipeline as trained so far.

    Attributes:
        denoiser: progress of the denoiser's training, for the record.
        subjects: what it was trained to draw.
    """

    unet: Any
    text_encoder: Any
    vae: Any
    tokenizer: Any
    denoiser: dict[str, float]
    subjects: tuple[Subject, ...]


def load_trained(folder: Path, *, averaged: bool = True) -> Trained:
    """Read the newest checkpoints below `folder`.

    Raises:
        FileNotFoundError: there is no checkpoint yet.
    """
    state = torch.load(folder / "denoiser.pt", map_location="cpu", weights_only=True)
    recipe = denoiser.Recipe(
        channels=tuple(state["recipe"]["channels"]), heads=tuple(state["recipe"]["heads"])
    )
    tokenizer = text.make_tokenizer(folder / "tokenizer")
    unet = denoiser.make_unet(recipe)
    encoder = text.make_text_encoder(tokenizer)
    if averaged:
        both = torch.nn.ModuleDict({"unet": unet, "text": encoder})
        both.load_state_dict(state["average"])
    else:
        unet.load_state_dict(state["unet"])
        encoder.load_state_dict(state["text"])
    found = torch.load(folder / "autoencoder.pt", map_location="cpu", weights_only=True)
    vae = autoencoder.make_autoencoder(autoencoder.Recipe(channels=tuple(found["channels"])))
    vae.load_state_dict(found["model"])
    subjects = read_subjects(folder / "subjects.json")
    return Trained(unet, encoder, vae, tokenizer, state["progress"], subjects)


def pipeline(trained: Trained) -> Any:
    """The parts as a ``StableDiffusionPipeline`` in fp32."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import (
        StableDiffusionPipeline,
    )

    make: Any = StableDiffusionPipeline  # annotated as if it could not do without a safety checker
    return make(
        vae=trained.vae.eval(),
        text_encoder=trained.text_encoder.eval(),
        tokenizer=trained.tokenizer,
        unet=trained.unet.eval(),
        scheduler=denoiser.make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def export(folder: Path, target: Path) -> int:
    """Write the newest averaged weights to `target`, replacing the model there; its bytes.

    Files in `target` that are no part of the pipeline (the model card) are kept.
    """
    trained = load_trained(folder)
    made = target.with_name(target.name + ".partial")
    shutil.rmtree(made, ignore_errors=True)
    whole = pipeline(trained).to(torch.float16)
    whole.save_pretrained(made, safe_serialization=True)
    # The classic files too: readers that know no tokenizer.json take these.
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(folder / "tokenizer" / name, made / "tokenizer" / name)
    _tidy(made)
    for path in made.rglob("*.safetensors"):
        path.chmod(0o644)  # safetensors writes for the owner alone; a wheel is for all
    target.mkdir(parents=True, exist_ok=True)
    for name in _PARTS:
        shutil.rmtree(target / name, ignore_errors=True)
        os.replace(made / name, target / name)
    os.replace(made / "model_index.json", target / "model_index.json")
    shutil.rmtree(made)
    # What `benchmarks/fidelity.py` asks a model for unless told otherwise, and what it should be
    # told to ask for above one tile.
    for name, prompts in (
        ("prompts.txt", [subject.one for subject in trained.subjects]),
        ("prompts-patterns.txt", [subject.pattern for subject in trained.subjects]),
    ):
        (target / name).write_text("\n".join(prompts) + "\n", encoding="utf-8")
    record = json.dumps(trained.denoiser, indent=2)
    (target / "training.json").write_text(record + "\n", encoding="utf-8")
    return sum(path.stat().st_size for path in target.rglob("*") if path.is_file())


def _tidy(folder: Path) -> None:
    """Remove local paths from configurations, and let all parts load in one dtype.

    transformers loads in the dtype that its configuration names, diffusers in fp32: a pipeline
    loaded without a word on dtypes would mix both.
    """
    for path in folder.rglob("*.json"):
        values = json.loads(path.read_text(encoding="utf-8"))
        if path.name != "config.json" or not isinstance(values, dict):
            continue
        before = dict(values)
        values.pop("_name_or_path", None)
        if "dtype" in values:
            values["dtype"] = "float32"
        if values != before:
            path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
