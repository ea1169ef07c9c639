"""Tiny pipelines of many families, real and whole, with tokenizers of three words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import zoo_transformers as dit
import zoo_unets as unet
import zoo_videos as video

Make = Callable[[], Any]

FAMILIES: dict[str, Make] = {
    make.__name__: make
    for make in (
        dit.sd3, dit.flux, dit.schnell, dit.kontext, dit.flux_fill, dit.flux_control, dit.chroma,
        dit.qwen_image, dit.z_image, dit.pixart, dit.hunyuan_dit, dit.aura_flow, dit.lumina,
        dit.lumina_next, dit.sana, dit.sd35, dit.flux2,
        unet.deepfloyd, unet.deepfloyd_2, unet.kandinsky22, unet.karlo, unet.refiner, unet.svd,
        unet.controlled, unet.cascade, unet.sd15, unet.sdxl, unet.upscaler, unet.kandinsky3,
        unet.animate_diff, unet.kolors,
        video.ltx, video.wan, video.cogvideox, video.hunyuan_video, video.mochi, video.allegro,
        video.latte,
    )
}  # fmt: skip


_OLD = {"UnCLIPTextProjModel": "unclip", "PaellaVQModel": "wuerstchen"}


def save(pipeline: Any, folder: Path) -> Path:
    """As save_pretrained does, with the library's names of the hub's checkpoints."""
    pipeline.save_pretrained(folder)
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    for value in index.values():
        if isinstance(value, list) and value[1] in _OLD:
            value[0] = _OLD[value[1]]  # where diffusers had it when these were saved
    if index["_class_name"] == "KolorsPipeline":  # its tokenizer needs a file of its vocabulary
        index["tokenizer"] = ["kolors", "ChatGLMTokenizer"]
    path.write_text(json.dumps(index))
    return folder


def make(name: str) -> Any:
    """The pipeline of a family, seeded."""
    torch.manual_seed(0)
    pipeline = FAMILIES[name]()
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
