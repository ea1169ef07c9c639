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
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

import todo_compile
from todo_compile.models.registry import DEMO

PROMPTS = ("a strawberry pattern", "a cactus pattern")
GAIN = 8
"""What differences are multiplied by before they are shown."""
_CAPTION = 40
_INK, _PAPER = (40, 40, 46), (255, 255, 255)


class OnnxUNet:
    """A UNet in an ONNX file, with as much of diffusers' interface as its pipeline uses.

    Attributes:
        seconds: spent in the network so far.
    """

    def __init__(self, path: Path, config: Any, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self.names = [entry.name for entry in self.session.get_inputs()]
        self.config = config
        self.dtype = torch.float32
        self.device = torch.device("cpu")
        self.seconds = 0.0

    def __call__(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        **_: object,
    ) -> tuple[torch.Tensor]:
        start = time.perf_counter()
        values = (sample, timestep.reshape(1).float(), encoder_hidden_states)
        feeds = {name: value.numpy() for name, value in zip(self.names, values, strict=True)}
        (out,) = self.session.run(None, feeds)
        self.seconds += time.perf_counter() - start
        return (torch.from_numpy(np.asarray(out)),)


@dataclass(frozen=True)
class Drawn:
    """Pictures (B, H, W, 3) in [0, 1] and the seconds that each took in the network, on average."""

    pictures: np.ndarray
    seconds: float


def draw(
    pipe: Any, unet: OnnxUNet, prompts: Sequence[str], *, res: int, steps: int, seed: int
) -> Drawn:
    """Draw `prompts` one by one, number i from `seed` + i."""
    pipe.unet = unet
    # Memory is touched and kernels are chosen in the first call, which therefore does not count.
    _warm(pipe, res)
    unet.seconds = 0.0
    pictures = [
        pipe(
            prompt,
            height=res,
            width=res,
            num_inference_steps=steps,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(seed + index),
            output_type="np",
        ).images[0]
        for index, prompt in enumerate(prompts)
    ]
    return Drawn(np.stack(pictures), unet.seconds / len(prompts))


def _warm(pipe: Any, res: int) -> None:
    pipe("", height=res, width=res, num_inference_steps=1, guidance_scale=3.0, output_type="latent")


def compose(
    dense: Drawn, small: Drawn, prompts: Sequence[str], what: str, *, cell: int = 320
) -> Image.Image:
    """The picture: a row for each prompt, captions below."""
    sheet = Image.new("RGB", (3 * cell + 20, len(prompts) * (cell + _CAPTION)), _PAPER)
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=13)
    for row, prompt in enumerate(prompts):
        mse, psnr = drift(dense.pictures[row], small.pictures[row])
        difference = np.clip(np.abs(dense.pictures[row] - small.pictures[row]) * GAIN, 0, 1)
        columns = (
            (dense.pictures[row], f"dense: {dense.seconds:.1f} s\n“{prompt}”"),
            (
                small.pictures[row],
                f"{what}: {small.seconds:.1f} s\n{dense.seconds / small.seconds:.2f} x as fast",
            ),
            (difference, f"difference x {GAIN}\nMSE {mse:.1e}, PSNR {psnr:.1f} dB"),
        )
        top = row * (cell + _CAPTION)
        for column, (picture, caption) in enumerate(columns):
            image = Image.fromarray((picture * 255).round().astype(np.uint8))
            left = column * (cell + 10)
            sheet.paste(image.resize((cell, cell), Image.Resampling.LANCZOS), (left, top))
            pen.multiline_text((left + 2, top + cell + 3), caption, fill=_INK, font=font)
    return sheet


def drift(dense: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """(MSE, PSNR in dB) of pictures in [0, 1]; PSNR is infinite where they are equal."""
    mse = float(np.mean((dense.astype(np.float64) - other) ** 2))
    return mse, float("inf") if mse == 0 else -10 * float(np.log10(mse))


def main() -> None:
    """Compile, draw, compare, write."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import (
        StableDiffusionPipeline,
    )

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
    pipe: Any = StableDiffusionPipeline.from_pretrained(DEMO, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    config = SimpleNamespace(**dict(pipe.unet.config))
    drawn: dict[str, Drawn] = {}
    for name, path in paths.items():
        unet = OnnxUNet(path, config, args.threads)
        drawn[name] = draw(pipe, unet, args.prompts, res=args.res, steps=args.steps, seed=args.seed)
        print(f"{name}: {drawn[name].seconds:.2f} s a picture in the network")
    sheet = compose(drawn["dense"], drawn["downsampled"], args.prompts, "downsampled")
    sheet.save(args.out, optimize=True)
    for row, prompt in enumerate(args.prompts):
        mse, psnr = drift(drawn["dense"].pictures[row], drawn["downsampled"].pictures[row])
        print(f"{prompt}: MSE {mse:.2e}, PSNR {psnr:.1f} dB")
    print(f"{args.out}, after {time.perf_counter() - began:.0f} s")


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
