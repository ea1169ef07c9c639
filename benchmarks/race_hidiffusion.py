"""HiDiffusion on SD1.5's UNet: a peer that needs diffusers of 2024, so an environment of its own.

    python -m venv ENV
    ENV/bin/pip install torch "diffusers==0.27.2" "transformers<4.45" "huggingface_hub<0.26" \
        "numpy<2" hidiffusion
    python benchmarks/race_hidiffusion.py --python ENV/bin/python

It works through inner blocks at half size in the first part of the schedule, and in windows in the
largest blocks, so a whole schedule is called, dense and with it, with seeded weights in bf16. It
finds its modules by SD1.5's and SDXL's names, so it cannot draw with the packaged model. Whether it
compiles to one graph and exports is tried on a narrow UNet with the same names.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from importlib.metadata import version
from typing import Any

import torch

NEEDS = ("torch", "diffusers", "hidiffusion")


def make(width: int, dtype: torch.dtype) -> Any:
    """A UNet with SD1.5's modules; 320 channels are its own width."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    torch.manual_seed(0)
    unet: Any = UNet2DConditionModel(
        sample_size=64, cross_attention_dim=768, attention_head_dim=8,
        block_out_channels=(width, 2 * width, 4 * width, 4 * width),
    )  # fmt: skip
    return unet.eval().requires_grad_(requires_grad=False).to(dtype)


def inputs(px: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One latent, its time, its text."""
    noise = torch.Generator().manual_seed(1)
    latent = torch.randn(1, 4, px // 8, px // 8, generator=noise).to(dtype)
    text = torch.randn(1, 77, 768, generator=noise).to(dtype)
    return latent, torch.tensor(500), text


def patched(unet: Any, steps: int) -> Any:
    """The UNet under it, for a schedule of so many calls."""
    from hidiffusion import apply_hidiffusion  # pyright: ignore[reportMissingImports]

    # It asks a pipeline for these; a UNet alone is its own.
    unet._num_timesteps, unet.name_or_path = steps, ""
    return apply_hidiffusion(unet)


def child(px: int, steps: int) -> None:
    """In the environment apart: measure, print JSON."""
    torch.set_num_threads(1)
    dtype = torch.bfloat16
    unet, call = make(320, dtype), inputs(px, dtype)

    def cost() -> float:
        begun = time.process_time()
        unet(*call)
        return time.process_time() - begun

    cost()
    dense = [cost()]
    patched(unet, steps)
    under = [cost() for _ in range(steps)]
    from hidiffusion import remove_hidiffusion  # pyright: ignore[reportMissingImports]

    remove_hidiffusion(unet)
    dense.append(cost())
    found = {
        "px": px, "steps": steps, "dense": dense, "under": under, "fits": fits(steps),
        "versions": {name: version(name) for name in NEEDS},
    }  # fmt: skip
    print(json.dumps(found))


def fits(steps: int) -> dict[str, str]:
    """One graph a step with equal numbers, and export: "yes", or what it says."""
    said: dict[str, str] = {}
    call = inputs(512, torch.float32)

    def one_graph() -> None:
        expected = patched(make(32, torch.float32), steps)(*call).sample
        compiled = torch.compile(
            patched(make(32, torch.float32), steps), fullgraph=True, backend="eager"
        )
        torch.testing.assert_close(compiled(*call).sample, expected)

    def exported() -> None:
        torch.export.export(patched(make(32, torch.float32), steps), call, strict=False)

    for name, attempt in (("fullgraph", one_graph), ("onnx", exported)):
        try:
            attempt()
            said[name] = "yes"
        except Exception as error:  # noqa: BLE001 - whatever another program says is the result
            said[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160]}"
    return said


def main() -> None:
    """Start the other environment's Python, keep what it prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--python", help="of the environment apart")
    parser.add_argument("--px", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=5)
    given = parser.parse_args()
    if given.python is None:
        child(given.px, given.steps)
        return
    from common import save

    command = [given.python, __file__, "--px", str(given.px), "--steps", str(given.steps)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    dense, under = sum(found["dense"]) / len(found["dense"]), sum(found["under"]) / given.steps
    print(save("race-hidiffusion", {**found, "ratio": dense / under}), f"{dense / under:.2f}x")


if __name__ == "__main__":
    sys.exit(main())
