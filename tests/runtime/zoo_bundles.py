"""Bundles of tiny pipelines beyond Stable Diffusion, by the command, and what they must draw."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import oracle
import torch
import torch.nn.functional as F
from PIL import Image
from torch.overrides import TorchFunctionMode
from typer.testing import CliRunner

from todo_compile.cli.app import app
from todo_compile.models import Resolution

sys.path.append(str(Path(__file__).parents[1] / "models"))

import pipeline_zoo as zoo

GRID = (8, 12)  # patches of 2×2 cells of 8×8 pixels
SIZES = {
    "deepfloyd": "48x32", "qwen_image": "96x64", "ltx": "96x64", "wan": "96x64", "latte": "96x64",
    "cogvideox": "96x64", "hunyuan_video": "96x64",
}  # fmt: skip
# (grid, text first) where a factor of 2 is asked for; keys are the picture's tokens and text. Of
# pictures that follow each other the first is drawn.
PLACES: dict[str, tuple[Any, bool | None]] = {
    "sd3": (GRID, False),
    "flux": (GRID, True),
    "kontext": ([GRID, (52, 78)], True),  # pictures of 3:2 are looked at in 1248×832 pixels
    "pixart": (GRID, None),
    "deepfloyd": ((16, 24), True),
    "kandinsky22": (GRID, True),
    "refiner": ((16, 24), None),
    "qwen_image": (GRID, True),  # cells of 4×4 pixels
    "kandinsky3": ((16, 24), None),
    "svd": ((16, 24), None),
}


class Pooled(TorchFunctionMode):
    """A torch denoiser's attention over the picture, its keys and values subsampled by 2."""

    def __init__(self, pipeline: Any, name: str) -> None:
        super().__init__()
        places, self.text_first = PLACES[name]
        self.grids = places if isinstance(places, list) else [places]
        self.sites, self.inside = 0, False
        denoiser = getattr(pipeline, "unet", None) or pipeline.transformer
        denoiser.register_forward_pre_hook(lambda *_: setattr(self, "inside", True))
        denoiser.register_forward_hook(lambda *_: setattr(self, "inside", False))

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.scaled_dot_product_attention and self.inside:
            given = {**dict(zip(("query", "key", "value"), args, strict=False)), **(kwargs or {})}
            query, key, value = (given.pop(name) for name in ("query", "key", "value"))
            each = [rows * columns for rows, columns in self.grids]
            tokens, keys = sum(each), key.shape[-2]
            text = keys - tokens
            if query.shape[-2] in (keys, tokens) and (
                text == 0 if self.text_first is None else text > 0
            ):
                self.sites += 1
                offset = text if self.text_first else 0
                for index, grid in enumerate(self.grids):  # stand-ins keep the length
                    key, value = (
                        oracle.stand_ins(
                            t, t.dim() - 2, grid, (2, 2), "nearest", offset + sum(each[:index])
                        )
                        for t in (key, value)
                    )
            args, kwargs = (query, key, value), given
        return func(*args, **(kwargs or {}))


def call(pipeline: Any, name: str) -> dict[str, Any]:
    size = Resolution.parse(SIZES.get(name, "192x128"))
    known = inspect.signature(type(pipeline).__call__).parameters
    more: dict[str, Any] = {
        "image": Image.new("RGB", (size.width, size.height), (128, 90, 30)),
        "image_embeds": torch.ones(1, 32),
        "negative_image_embeds": torch.zeros(1, 32),
    }
    given = {key: value for key, value in more.items() if key in known}
    return {"prompt": "a b a", "steps": 8 if "image" in given else 3, "resolution": size, **given}


def made(name: str, root: Path, *words: object) -> tuple[Any, Path]:
    """The torch pipeline, and a bundle of it by the command, with factor 2 (the decoder dense).

    Args:
        words: further options of the command.
    """
    pipeline = zoo.make(name)
    for module in pipeline.components.values():
        for key, weight in module.named_parameters() if isinstance(module, torch.nn.Module) else ():
            if key.endswith(("to_q.weight", "to_k.weight")):
                weight.data *= 3  # attention far from uniform
    folder = zoo.save(pipeline, root / "model")
    command(
        "compile", "--model", folder, "--res", SIZES.get(name, "192x128"), "--format", "onnx",
        "--precision", "fp32", "--factors", 2, "--vae-factors", "off", *words, "--out",
        f"{root}/bundle/",
    )  # fmt: skip
    return pipeline, root / "bundle"


def command(*words: object) -> None:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
