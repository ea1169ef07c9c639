"""What a session and a loaded component cost beyond bare onnxruntime, per call.

python benchmarks/session.py [--calls 300]

A graph that computes next to nothing, in the shapes of SD1.5 at 1024 px with guidance, so that
what is left is the cost of calling: checks, binding, allocation. Three ways in turn, so that other
load strikes all alike: onnxruntime with NumPy arrays; our session; the component that diffusers
calls.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from common import save, spread
from torch import Tensor, nn

from todo_compile.bundle import entries
from todo_compile.bundle import manifest as manifests
from todo_compile.bundle.tensors import Tensor as Spec
from todo_compile.bundle.tensors import tensors
from todo_compile.capture.inputs import input_specs
from todo_compile.export.onnx import export_onnx
from todo_compile.models import Resolution, resolve
from todo_compile.progress import SilentProgress
from todo_compile.runtime.loading import load


class Light(nn.Module):
    """All inputs of a UNet, hardly any work."""

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        return sample * timestep + encoder_hidden_states[:, :1, :1, None]


def output(folder: Path) -> Path:
    """The graph as an output with a manifest."""
    source = resolve("sd15")
    specs = input_specs(source, Resolution(1024, 1024), batch=2, dtype=torch.float32)
    args = tuple(torch.ones(spec.shape, dtype=spec.dtype) for spec in specs)
    path = folder / "light.onnx"
    export_onnx(
        torch.export.export(Light(), args),
        path,
        opset=23,
        input_names=[spec.name for spec in specs],
        output_names=["out_sample"],
        progress=SilentProgress(),
    )
    document = manifests.Manifest(
        created=entries.now(),
        request={},
        versions={},
        model={
            "component": "unet",
            "class": source.class_name,
            "config": dict(source.config),
            "resolution": "1024x1024",
            "batch": 2,
            "precision": "fp32",
        },
        sites=[],
        totals={},
        files=[entries.file_entry(path)],
        inputs=tensors(specs),
        outputs=[Spec(name="out_sample", shape=specs[0].shape, dtype="float32")],
        seconds={},
    )
    entries.write(document, manifests.manifest_path(path))
    return path


def measure(calls: int) -> dict[str, list[float]]:
    """Seconds of every call, by way."""
    seconds: dict[str, list[float]] = {"onnxruntime": [], "session": [], "component": []}
    with tempfile.TemporaryDirectory() as folder:
        path = output(Path(folder))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        bare: Any = onnxruntime.InferenceSession(str(path), options)
        unet = load(path, threads=1)
        feeds = {name: torch.ones(spec.shape) for name, spec in unet.session.inputs.items()}
        arrays = {name: value.numpy() for name, value in feeds.items()}
        sample, timestep, text = feeds.values()
        ways: dict[str, Any] = {
            "onnxruntime": lambda: bare.run(None, arrays),
            "session": lambda: unet.session.run(feeds),
            "component": lambda: unet(sample, timestep, text, return_dict=False),
        }
        for index in range(calls + 10):
            for name, call in ways.items():
                start = time.perf_counter()
                call()
                if index >= 10:
                    seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=300)
    found = measure(parser.parse_args().calls)
    rows = {name: {**spread(values), "min": min(values)} for name, values in found.items()}
    for name, row in rows.items():
        print(f"{name:<12} median {row['median'] * 1e6:8.0f} µs, least {row['min'] * 1e6:8.0f} µs")
    print("wrote", save("session", {"ways": rows}))


if __name__ == "__main__":
    main()
