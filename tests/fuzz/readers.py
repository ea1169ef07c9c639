"""Readers of foreign files, valid files for them, and ways to damage one.

    PYTHONPATH=. python tests/fuzz/readers.py 100000 benchmarks/results/fuzz.json

runs that many over all readers, and a tenth as many command lines, and writes what came of them.
"""

from __future__ import annotations

import json
import math
import random
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from command_lines import run, without_work
from onnx import TensorProto, helper

from todo_compile.build.many.document import read_document
from todo_compile.build.many.matrix import expand
from todo_compile.bundle.bundle import read_bundle
from todo_compile.bundle.manifest import read
from todo_compile.bundle.plan import TunedPlan
from todo_compile.errors import TodoError
from todo_compile.models import Resolution
from todo_compile.models.lora import parse_lora
from todo_compile.models.single_file import recognise
from todo_compile.models.source import resolve
from todo_compile.models.stfile import read_header
from todo_compile.models.trust import check_index, read_index
from todo_compile.runtime.external import check_external
from todo_compile.runtime.schedulers import check_steps, make_scheduler
from todo_compile.tuning.prompts import read_prompts
from todo_compile.tuning.scores import Scores

_HASH = "0" * 64
_MANIFEST = {
    "format": 1,
    "created": "now",
    "request": {"batch": 2},
    "versions": {"torch": "2"},
    "model": {"name": "x", "config": {"sample_size": 8}},
    "sites": [{"action": "dense"}],
    "totals": {"flops": 1},
    "files": [{"name": "x.onnx", "bytes": 1, "sha256": _HASH}],
    "inputs": [{"name": "a", "shape": [2, 4], "dtype": "float16"}],
    "outputs": [{"name": "b", "shape": [-1, 4], "dtype": "float16", "batches": "1..4"}],
    "seconds": {"build": 1.5},
}
_BUNDLE = {
    "created": "now",
    "model": "x",
    "resolution": "64x64",
    "batch": 2,
    "precision": "fp16",
    "kind": "onnx",
    "pipeline_class": "StableDiffusionPipeline",
    "components": {"unet": {"file": "unet.onnx", "manifest_sha256": _HASH}},
    "light_files": [{"name": "tokenizer/vocab.json", "bytes": 2, "sha256": _HASH}],
}
_CONFIG = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 8,
    "block_out_channels": [16, 32],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "norm_eps": 1e-5,
}
_DOWN, _UP = "unet.a.lora_A.weight", "unet.a.lora_B.weight"
_TENSORS = {
    _DOWN: {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]},
    _UP: {"dtype": "F32", "shape": [4, 2], "data_offsets": [32, 64]},
}
_BUILDS = b"""memory: 16GB
defaults: {model: sd15, weights: random}
builds:
  - res: &r [1024, 2048]
    out: "{model}-{res}.plan"
  - {res: *r, batch: [1, 2], out: "b{batch}-{res}.onnx", lora: [null, a.safetensors]}
"""


_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.35.0",
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "safety_checker": [None, None],
    "unet": ["diffusers", "UNet2DConditionModel"],
}
_SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "trained_betas": None,
}
_PHASES = [
    {"start": 0.0, "sites": {"down.attn1": "nearest:4"}, "flops": 50},
    {"start": 0.5, "sites": {"down.attn1": "average:2x4"}, "flops": 70},
]
_POINT = {"name": "tuned", "speedup": 1.5, "predicted": 1e-3, "measured": None, "phases": _PHASES}
_PLAN = {
    "format": "todo-compile plan",
    "version": 1,
    "model": "x",
    "component": "unet",
    "weights": _HASH,
    "resolution": "64x64",
    "budget": "drift=0.001",
    "settings": {"steps": 8, "guidance": 3.0, "scheduler": "ddim", "precision": "fp32"},
    "cost": "FLOPs",
    "sites": [{"name": "down.attn1", "rows": 8, "columns": 8}],
    "dense_flops": 100,
    "chosen": _POINT,
    "curve": [_POINT],
}
_SCORES = {
    "format": "todo-compile scores",
    "version": 1,
    "key": {"model": "x"},
    "steps": [0.0, 0.5],
    "done": 4,
    "local": {"down.attn1": {"nearest:4": [0.1, 0.2]}},
    "uniform": {"nearest:4": {"all": 0.1}},
}
_STEM = "model.diffusion_model."
_CHECKPOINT = {
    f"{_STEM}input_blocks.0.0.weight": [320, 4, 3, 3],
    f"{_STEM}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": [320, 768],
    "first_stage_model.decoder.conv_in.weight": [8, 4, 3, 3],
}


def _safetensors(tensors: dict[str, Any] = _TENSORS, size: int = 64) -> bytes:
    header = json.dumps(tensors).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size)


def _checkpoint() -> bytes:
    """Some tensors of Stable Diffusion 1 in the original layout, all zeros."""
    tensors: dict[str, Any] = {}
    end = 0
    for name, shape in _CHECKPOINT.items():
        start, end = end, end + math.prod(shape)
        tensors[name] = {"dtype": "F8_E4M3", "shape": shape, "data_offsets": [start, end]}
    return _safetensors(tensors, end)


def _onnx() -> bytes:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [2, 2], [1.0, 2.0, 3.0, 4.0])
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [value("x", TensorProto.FLOAT, [1, 2])],
        [value("y", TensorProto.FLOAT, [1, 2])],
        [weight],
    )
    return helper.make_model(graph).SerializeToString()


def _summary(path: Path) -> None:
    read(path).summary()


def _index(path: Path) -> None:
    check_index(read_index(path.parent), path)


def _scheduler(path: Path) -> None:
    check_steps(make_scheduler(None, path.parent), 8)


def _output(path: Path) -> Any:
    return SimpleNamespace(path=path, manifest=SimpleNamespace(files=[]))


# Reader → (name of its file, a good one, what reads it).
READERS: dict[str, tuple[str, bytes, Callable[[Path], Any]]] = {
    "manifest": ("x.onnx.json", json.dumps(_MANIFEST).encode(), _summary),
    "bundle": ("bundle.json", json.dumps(_BUNDLE).encode(), lambda p: read_bundle(p).summary()),
    "config": (
        "config.json",
        json.dumps(_CONFIG).encode(),
        lambda p: resolve(str(p.parent)).native,
    ),
    "safetensors": ("x.safetensors", _safetensors(), read_header),
    "lora": ("x.safetensors", _safetensors(), lambda p: parse_lora(str(p))),
    "build file": ("builds.yaml", _BUILDS, lambda p: expand(read_document(p))),
    "model index": ("model_index.json", json.dumps(_INDEX).encode(), _index),
    "scheduler": ("scheduler_config.json", json.dumps(_SCHEDULER).encode(), _scheduler),
    "tuned plan": ("plan.json", json.dumps(_PLAN).encode(), TunedPlan.load),
    "scores": (
        "scores.json",
        json.dumps(_SCORES).encode(),
        lambda p: Scores.load(p, {"model": "x"}, strict=True),
    ),
    "prompts": (
        "prompts.txt",
        b"# held out\na cat\na dog\n\na blue circle\n",
        lambda p: read_prompts(p, None, Resolution(64, 64)),
    ),
    "single file": ("model.safetensors", _checkpoint(), recognise),
    "ONNX": ("x.onnx", _onnx(), lambda p: check_external(_output(p))),
}
_PIECES = (
    *(b"null", b"-1", b"0", b"1e999", b"NaN", b"true", b'""', b"[]", b"{}", b"0.5", b"2147483648"),
    *(b"9" * 30, b"\x00", b"\xff", b"\x1b[31m", b'"../../x"', b'"\\ud800"', b'"sample_size": 0,'),
    *(b"[" * 50, b'{"a":' * 50, b",", b":", b"\n"),
    *(b"*r", b"&r", b"- ", b"? ", b"<<: *r", b"!!python/object:os.system"),
)


def damaged(good: bytes, chance: random.Random) -> bytes:
    """`good` with one to four things wrong, where a large file has its header."""
    data = bytearray(good)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(min(len(data), 4000) + 1)
        end = min(len(data), at + chance.choice((0, 1, 1, 4, 20)))
        match chance.randrange(5):
            case 0:
                data[at:end] = chance.choice(_PIECES)
            case 1:
                data[at:at] = bytes(data[at:end]) * chance.choice((1, 2, 50))
            case 2:
                del data[at:end]
            case 3 if at < len(data):
                data[at] ^= 1 << chance.randrange(8)
            case _:
                del data[at:]
    return bytes(data)


def attempt(reader: str, folder: Path, seed: int) -> str:
    """Read one damaged file: "accepted" or the name of our error; anything else is raised."""
    name, good, read_it = READERS[reader]
    path = folder / name
    path.write_bytes(damaged(good, random.Random(f"{reader} {seed}")))
    try:
        read_it(path)
    except TodoError as error:
        return type(error).__name__
    return "accepted"


def main() -> None:
    """See the module."""
    count, out = int(sys.argv[1]), Path(sys.argv[2])
    found: dict[str, Counter[str]] = {reader: Counter() for reader in READERS}
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            reader = list(READERS)[number % len(READERS)]
            start = time.process_time()
            found[reader][attempt(reader, Path(folder), number)] += 1
            slowest = max(slowest, time.process_time() - start)
    lines = count // 10
    with tempfile.TemporaryDirectory() as folder, without_work(Path(folder)):
        statuses = Counter(run(number) for number in range(lines))
    facts = {
        "files": count,
        "slowest_cpu_seconds": round(slowest, 3),
        "outcomes": found,
        "command_lines": lines,
        "statuses": statuses,
    }
    out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
