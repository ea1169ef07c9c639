"""What a build will take, before it runs: from the size of its weights and measured factors.

The weights dominate: the engines of SD1.5 at 1024 and at 4096 px peak within 1 % of each other. A
build's components come one after the other, so the largest counts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from todo_compile.build.many.schedule import Need
from todo_compile.errors import ConfigError

if TYPE_CHECKING:
    from todo_compile.build.job import Job

SHARE = 0.9
"""Of the memory that is available now, what builds take unless told otherwise."""

_UNITS = {
    **{"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12},
    **{"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40},
}


@dataclass(frozen=True)
class _Measured:
    """Peak memory of a build and its children, as base + factor × bytes of weights."""

    base: float
    factor: float


# Over all processes, in fp16: engines of SD1.5 4.57 GB and SDXL 12.7 GB with 1.72 and 5.13 GB of
# weights (benchmarks/results/build-turns*.json), of a tiny UNet 1.1 GB; as ONNX files SD1.5
# 2.35 GB, its VAE 0.9 GB, a tiny UNet 0.6 GB.
_ENGINE = _Measured(1.1e9, 2.35)
_ONNX = _Measured(0.8e9, 1.0)
# An AOTInductor package of SD1.5 peaks at 5.84 GB.
_PACKAGE = _Measured(1.1e9, 2.8)
_MEASURED = {"tensorrt": _ENGINE, "onnx": _ONNX, "pt2": _PACKAGE}


def need(jobs: Sequence[Job]) -> Need:
    """What building these, one after the other, will take."""
    return Need(
        bytes=max(_estimate(job) for job in jobs),
        # Running an ONNX file takes what is free for attention: nothing may run beside it.
        alone=any(job.request.verify for job in jobs),
        # Classic TensorRT times kernels on the GPU; another build there would disturb it.
        timed=any(job.library is not None and job.library.name == "tensorrt" for job in jobs),
    )


def _estimate(job: Job) -> float:
    measured = _MEASURED[job.format]
    return measured.base + measured.factor * job.weight_bytes


def parse_memory(text: str) -> int:
    """Bytes of ``12GB``, ``800 MB``, ``16GiB``.

    Raises:
        ConfigError: it is no size.
    """
    found = re.fullmatch(r"\s*(\d{1,12}(?:\.\d{1,6})?)\s*([KMGT]I?B)\s*", text.upper())
    size = int(float(found[1]) * _UNITS[found[2]]) if found else 0
    if size <= 0:
        raise ConfigError(
            f"{text!r} is not a size of memory.", remedy="Write 12GB, 800MB or 16GiB, for example."
        )
    return size


def default_budget() -> int:
    """What builds may take on this machine as it is now."""
    return int(psutil.virtual_memory().available * SHARE)
