"""What downsampling does to the pictures that an autoencoder decodes.

    python -m training pictures --sides 128 256 512
    python benchmarks/decoder.py --pictures build/training/pictures

Real pictures are encoded once and decoded dense and with every setting. Two errors for each: to the
dense decoder's picture (what the rewrite changes) and to the real picture (what is lost in all),
with "no attention" for scale. Writes ``results/decoder-NAME.json`` and prints a table.
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import DEMO, save
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from fidelity_parts.evaluate import real_pictures
from fidelity_parts.intervals import interval, paired
from rich.console import Console
from rich.table import Table

import todo_compile
from todo_compile.capture.wrappers import VaeDecoder
from todo_compile.options import PlanOptions
from todo_compile.runtime.metrics import hpf, mse

SAMPLINGS = ("nearest", "nearest-exact", "average", "blend:0.5")


class NoAttention(torch.nn.Module):
    """In place of an attention with a residual: the residual alone."""

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
        """Unchanged."""
        return hidden_states


def main() -> None:
    """Decode, measure, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", type=Path, default=DEMO, help="StableDiffusionPipeline folder")
    parser.add_argument("--pictures", type=Path, required=True, help="a folder for each side")
    parser.add_argument("--factors", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--name", default="demo")
    given = parser.parse_args()
    vae: Any = AutoencoderKL.from_pretrained(given.model / "vae", torch_dtype=torch.float32)
    vae.eval().requires_grad_(False)
    rows: list[dict[str, Any]] = []
    folders = [f for f in given.pictures.iterdir() if f.name.isdigit()]
    if not folders:
        raise SystemExit(f"{given.pictures} has no folders named by a side in pixels, as 256.")
    for folder in sorted(folders, key=lambda f: int(f.name)):
        side = int(folder.name)
        pictures = np.stack(real_pictures(given.pictures, side))
        rows += measure(vae, torch.from_numpy(pictures).permute(0, 3, 1, 2), side, given.factors)
    path = save(f"decoder-{given.name}", {"model": given.model.name, "rows": rows})
    show(rows)
    print(f"wrote {path}")


def measure(
    vae: Any, pictures: torch.Tensor, side: int, factors: list[int]
) -> list[dict[str, Any]]:
    """One row a setting, dense first; `pictures` (n, 3, side, side) in [0, 1]."""
    with torch.no_grad():
        latents = torch.cat([vae.encode(2 * p[None] - 1).latent_dist.mean for p in pictures])
    decoder = VaeDecoder(vae).eval()
    dense = decode(decoder, latents)
    rows = [row("dense", side, dense, dense, pictures)]
    grid = latents.shape[-1]
    for factor in factors:
        if factor > grid // 2:
            continue
        for sampling in SAMPLINGS:
            plan = PlanOptions(factors=((factor, factor),), sampling=sampling)
            module, report = todo_compile.rewrite(decoder, (latents[:1],), options=plan)
            assert report.rewritten == 1, report.summary()
            rows.append(row(f"{sampling} {factor}", side, decode(module, latents), dense, pictures))
    held = vae.decoder.mid_block.attentions
    vae.decoder.mid_block.attentions = torch.nn.ModuleList(NoAttention() for _ in held)
    rows.append(row("no attention", side, decode(decoder, latents), dense, pictures))
    vae.decoder.mid_block.attentions = held
    for each in rows[1:]:
        each["against_dense"] = paired(each["to_real"], rows[0]["to_real"])
    return rows


def decode(module: torch.nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """Pictures in [0, 1], one at a time."""
    with torch.no_grad():
        return torch.cat([(module(x[None]) / 2 + 0.5).clamp(0, 1) for x in latents])


def row(
    name: str, side: int, found: torch.Tensor, dense: torch.Tensor, real: torch.Tensor
) -> dict[str, Any]:
    """Errors picture by picture; all (n, 3, H, W) in [0, 1]."""
    a, b, c = (t.permute(0, 2, 3, 1).numpy() for t in (found, dense, real))
    return {
        "side": side,
        "name": name,
        "pictures": len(a),
        "to_dense": [mse(x, y) for x, y in zip(a, b, strict=True)],
        "to_real": [mse(x, y) for x, y in zip(a, c, strict=True)],
        "hpf_ratio": statistics.mean(hpf(x) for x in a) / statistics.mean(hpf(y) for y in b),
        "largest": float(np.abs(a - b).max()),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """The table."""
    table = Table(
        "px", "setting", "MSE to dense", "largest", "HPF / dense", "PSNR to real",
        "MSE to real / dense",
    )  # fmt: skip
    for each in rows:
        error, low, high = interval(each["to_dense"])
        psnr = statistics.mean(10 * math.log10(1 / e) for e in each["to_real"])
        ratio = each.get("against_dense")
        table.add_row(
            str(each["side"]), each["name"], f"{error:.1e} [{low:.1e}, {high:.1e}]",
            f"{each['largest']:.3f}", f"{each['hpf_ratio']:.4f}", f"{psnr:.3f}",
            f"{ratio['ratio']:.4f} [{ratio['low']:.4f}, {ratio['high']:.4f}]" if ratio else "",
        )  # fmt: skip
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
