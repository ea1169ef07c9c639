"""One picture of what downsampling does: dense | downsampled | difference × 8, from equal seeds.

Compiles the packaged demo model twice to ONNX, dense and with its keys and values downsampled,
draws with both on the CPU through onnxruntime, and writes one PNG with seconds and drift.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

import todo_compile
from todo_compile import style
from todo_compile.libraries import quiet_libraries
from todo_compile.models import Resolution
from todo_compile.models.registry import DEMO
from todo_compile.runtime.generate import GAIN, generate
from todo_compile.runtime.metrics import fidelity

PROMPTS = ("a strawberry pattern", "a cactus pattern")
GUIDANCE = 3.0
_CAPTION = 52


class Clock:
    """Seconds spent in a module's calls."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.seconds = self._start = 0.0
        module.register_forward_pre_hook(self._begin)
        module.register_forward_hook(self._end)

    def _begin(self, *_: object) -> None:
        self._start = time.perf_counter()

    def _end(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._start


@dataclass(frozen=True)
class Drawn:
    """Pictures (B, H, W, 3) in [0, 1] and the seconds that each took in the network, on average."""

    pictures: np.ndarray
    seconds: float


def draw(
    pipe: Any, unet: torch.nn.Module, prompts: Sequence[str], *, res: int, steps: int, seed: int
) -> Drawn:
    """Draw `prompts` one by one, number i from `seed` + i."""
    pipe.unet = unet
    size = Resolution(res, res)
    # Memory is touched and kernels are chosen in the first call, which therefore does not count.
    generate(pipe, "", steps=1, guidance=GUIDANCE, resolution=size)
    clock = Clock(unet)
    pictures = [
        generate(
            pipe,
            prompt,
            steps=steps,
            guidance=GUIDANCE,
            seed=seed + index,
            resolution=size,
        ).pixels
        for index, prompt in enumerate(prompts)
    ]
    return Drawn(np.stack(pictures), clock.seconds / len(prompts))


def compose(
    dense: Drawn, small: Drawn, prompts: Sequence[str], what: str, *, cell: int = 320
) -> Image.Image:
    """The picture: a row for each prompt, captions below."""
    sheet = Image.new("RGB", (3 * cell + 20, len(prompts) * (cell + _CAPTION)), style.PAPER)
    pen = ImageDraw.Draw(sheet)
    font = style.letters(17)
    for row, prompt in enumerate(prompts):
        found = fidelity(small.pictures[row], dense.pictures[row])
        difference = np.clip(np.abs(dense.pictures[row] - small.pictures[row]) * GAIN, 0, 1)
        columns = (
            (dense.pictures[row], f"dense: {dense.seconds:.1f} s\n“{prompt}”"),
            (
                small.pictures[row],
                f"{what}: {small.seconds:.1f} s\n{dense.seconds / small.seconds:.2f}× as fast",
            ),
            (difference, f"difference × {GAIN}\nMSE {found.mse:.1e}, PSNR {found.psnr:.1f} dB"),
        )
        top = row * (cell + _CAPTION)
        for column, (picture, caption) in enumerate(columns):
            image = Image.fromarray((picture * 255).round().astype(np.uint8))
            left = column * (cell + 10)
            sheet.paste(image.resize((cell, cell), Image.Resampling.LANCZOS), (left, top))
            words = style.spelled(caption, font)
            pen.multiline_text((left + 2, top + cell + 3), words, fill=style.INK, font=font)
    return sheet


def main() -> None:
    """Compile, draw, compare, write."""
    args = _arguments().parse_args()
    torch.set_num_threads(args.threads)
    work: Path = args.out.parent
    work.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    choices = {
        "dense": todo_compile.PlanOptions.create(factors="off"),
        "downsampled": todo_compile.PlanOptions.create(
            factors=args.factors, sampling=args.sampling
        ),
    }
    paths: dict[str, Path] = {}
    for name, options in choices.items():
        paths[name] = work / f"demo-{args.res}-{name}.onnx"
        todo_compile.compile(
            "demo", res=args.res, out=paths[name], precision="fp32", options=options
        )
    print(f"compiled in {time.perf_counter() - began:.1f} s")
    pipe = _pipeline()
    pipe.set_progress_bar_config(disable=True)
    drawn: dict[str, Drawn] = {}
    for name, path in paths.items():
        unet = todo_compile.load(path, device="cpu", threads=args.threads)
        drawn[name] = draw(pipe, unet, args.prompts, res=args.res, steps=args.steps, seed=args.seed)
        print(f"{name}: {drawn[name].seconds:.2f} s a picture in the network")
    sheet = compose(drawn["dense"], drawn["downsampled"], args.prompts, "downsampled")
    sheet.save(args.out, optimize=True)
    for row, prompt in enumerate(args.prompts):
        found = fidelity(drawn["downsampled"].pictures[row], drawn["dense"].pictures[row])
        print(f"{prompt}: MSE {found.mse:.2e}, PSNR {found.psnr:.1f} dB")
    print(f"{args.out}, after {time.perf_counter() - began:.0f} s")


def _pipeline() -> Any:
    """diffusers' own, as any user has it."""
    with quiet_libraries():
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import (
            StableDiffusionPipeline,
        )

        return StableDiffusionPipeline.from_pretrained(DEMO, torch_dtype=torch.float32)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Dense against downsampled, in one picture.")
    add = parser.add_argument
    add("--prompts", nargs="+", default=list(PROMPTS), help="what to draw")
    add("--res", type=int, default=512, help="side in pixels")
    add("--steps", type=int, default=16, help="steps of the sampler")
    add("--seed", type=int, default=1, help="of the first picture")
    add("--factors", help="factor a level; by default as the compiler chooses")
    add("--sampling", help="which token stands for a cell; by default the compiler's")
    add("--threads", type=int, default=2, help="threads of onnxruntime and torch")
    add("--out", type=Path, default=Path("out/demo.png"), help="the picture")
    return parser


if __name__ == "__main__":
    main()
