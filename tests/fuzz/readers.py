"""Readers of foreign files, valid files for them, and ways to damage one.

    PYTHONPATH=. python tests/fuzz/readers.py 100000 benchmarks/results/fuzz.json

runs that many over all readers and writes what came of them, by reader.
"""

from __future__ import annotations

import json
import random
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from todo_compile.build.many.document import read_document
from todo_compile.build.many.matrix import expand
from todo_compile.bundle.bundle import read_bundle
from todo_compile.bundle.manifest import read
from todo_compile.errors import TodoError
from todo_compile.models.lora import parse_lora
from todo_compile.models.source import resolve
from todo_compile.models.stfile import read_header

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
    "extras": [{"name": "tokenizer/vocab.json", "bytes": 2, "sha256": _HASH}],
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


def _safetensors() -> bytes:
    header = json.dumps(_TENSORS).encode()
    return struct.pack("<Q", len(header)) + header + bytes(64)


def _summary(path: Path) -> None:
    read(path).summary()


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
}
_PIECES = (
    *(b"null", b"-1", b"0", b"1e999", b"NaN", b"true", b'""', b"[]", b"{}", b"0.5", b"2147483648"),
    *(b"9" * 30, b"\x00", b"\xff", b"\x1b[31m", b'"../../x"', b'"\\ud800"', b'"sample_size": 0,'),
    *(b"[" * 50, b'{"a":' * 50, b",", b":", b"\n"),
    *(b"*r", b"&r", b"- ", b"? ", b"<<: *r", b"!!python/object:os.system"),
)


def damaged(good: bytes, chance: random.Random) -> bytes:
    """`good` with one to four things wrong."""
    data = bytearray(good)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data) + 1)
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
    facts = {"files": count, "slowest_cpu_seconds": round(slowest, 3), "outcomes": found}
    out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
