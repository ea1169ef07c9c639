"""onnxruntime's providers on one CPU thread: processor time of the packaged model's UNet.

    pip install onnxruntime-openvino      # in an environment apart: it replaces onnxruntime
    python benchmarks/providers.py

The same file (opset 20) through `load`, call about call in turn; ratios of one run. Writes
``results/providers.json``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch
from common import save, spread

import todo_compile

OPSET = 20
PROVIDERS = ("cpu", "openvino")


def measured(path: Path, calls: int) -> dict[str, Any]:
    """Seconds of processor time a call by provider, their ratio, and how far the outputs differ."""
    units = {name: todo_compile.load(path, provider=name, threads=1) for name in PROVIDERS}
    unet = units["cpu"]
    noise = torch.Generator().manual_seed(0)
    shapes = {name: spec.shape for name, spec in unet.session.inputs.items()}
    sample = torch.randn(shapes["sample"], generator=noise)
    text = torch.randn(shapes["encoder_hidden_states"], generator=noise)
    seconds: dict[str, list[float]] = {name: [] for name in PROVIDERS}
    outputs: dict[str, torch.Tensor] = {}
    for number in range(calls + 1):
        for name, module in units.items():
            start = time.process_time()
            outputs[name] = module(sample, torch.tensor(500), text).sample
            if number:  # the first call sets things up
                seconds[name].append(time.process_time() - start)
    ratios = [a / b for a, b in zip(*(seconds[name] for name in PROVIDERS), strict=True)]
    error = (outputs["openvino"] - outputs["cpu"]).norm() / outputs["cpu"].norm()
    return {
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "ratio": spread(ratios),
        "relative_l2": float(error),
    }


def main() -> None:
    """Measure each size, dense and downsampled."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--calls", type=int, default=7)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for px in options.sides:
        for factors in ("off", "2"):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "unet.onnx"
                todo_compile.compile(
                    "demo", res=px, out=path, precision="fp32", factors=factors, opset=OPSET
                )
                rows.append({"px": px, "factors": factors, **measured(path, options.calls)})
                print(rows[-1])
    save("providers", {"onnxruntime": ort.__version__, "opset": OPSET, "rows": rows})


if __name__ == "__main__":
    main()
