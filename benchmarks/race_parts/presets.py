"""Heats by name: what is run when little is asked, and what a session with a GPU runs."""

from __future__ import annotations

from dataclasses import dataclass

STEPS = ("dense", "default", "4,2", "bound")


@dataclass(frozen=True)
class Heat:
    """A workload at one size in one runtime; `peers` by name, or all of them."""

    workload: str
    px: int
    runtime: str
    precision: str = "bf16"
    batch: int = 1
    variants: tuple[str, ...] = STEPS
    rounds: int = 3
    warmup: int = 1
    peers: tuple[str, ...] | bool = False
    alone: bool = False


# Meant for five minutes of two cores with bf16 units.
QUICK = (
    Heat("sd15", 512, "eager", variants=("dense", "2", "bound"), rounds=3),
    Heat("sd15", 1024, "eager", rounds=1, warmup=0, peers=("tomesd 0.75", "patched keys 2")),
    Heat("vae-decode", 512, "eager", variants=("dense", "2", "bound"), rounds=1, warmup=0),
    Heat("block", 512, "onnxruntime", "fp32", variants=("dense", "2", "bound"), rounds=5),
)
# Seconds of compiling count too: what matters most comes first, what there is no time for is named.
CUDA = (
    Heat("plain", 1024, "inductor", "fp16", 2, rounds=20, warmup=3),
    Heat("plain", 2048, "inductor", "fp16", 2, rounds=10, warmup=2),
    Heat("plain", 1024, "inductor-graphs", "fp16", 2, rounds=20, warmup=3),
    Heat("plain", 2048, "eager", "fp16", 2, rounds=5, warmup=1),
    Heat("plain", 1024, "eager", "fp16", 2, rounds=10, warmup=2),
    Heat("plain", 512, "inductor", "fp16", 2, ("dense", "2", "bound"), rounds=20, warmup=3),
    Heat("plain", 4096, "eager", "fp16", 2, ("default", "8,4", "bound"), rounds=2),
    Heat("sd15", 1024, "eager", "fp16", 2, rounds=10, warmup=2, peers=True),
    Heat("flux", 2048, "inductor", "bf16", 1, rounds=10, warmup=2),
    Heat("sd3", 2048, "inductor", "bf16", 1, rounds=10, warmup=2),
    Heat("plain", 1024, "onnxruntime-cuda", "fp16", 2, rounds=10, warmup=2),
    Heat("plain", 1024, "tensorrt", "fp16", 2, rounds=20, warmup=3),
)
