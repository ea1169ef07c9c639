"""Crafted safetensors files: one sentence from the header alone, whatever stands in it."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from todo_compile.errors import ModelError
from todo_compile.models.lora import parse_lora
from todo_compile.models.stfile import read_header, read_metadata

LAYER = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q."
DOWN, UP, ALPHA = (f"{LAYER}{name}" for name in ("lora_A.weight", "lora_B.weight", "alpha"))


def tensor(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def crafted(path: Path, header: dict[str, Any] | bytes, data: int = 640) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))
    return path


GOOD = {DOWN: tensor([2, 40], 0, 320), UP: tensor([40, 2], 320, 640)}
BAD: dict[str, tuple[dict[str, Any] | bytes, int, str]] = {
    "nested": (b'{"a":' * 200_000, 0, "nested too deeply"),
    "overlapping": ({**GOOD, UP: tensor([40, 2], 0, 320)}, 320, "overlaps another"),
    "partly overlapping": ({**GOOD, UP: tensor([40, 2], 316, 636)}, 640, "overlaps another"),
    "unknown type": ({**GOOD, DOWN: tensor([2, 40], 0, 320, "X9")}, 640, "X9 tensors"),
    "integers": (
        {DOWN: tensor([2, 40], 0, 640, "I64"), UP: tensor([40, 2], 640, 960)},
        960,
        "I64 tensors",
    ),
    "alpha of three": ({**GOOD, ALPHA: tensor([3], 640, 652)}, 652, "not one number"),
    "metadata is a list": ({"__metadata__": [1], **GOOD}, 640, "not text by name"),
    "metadata is no text": ({"__metadata__": {"a": 1}, **GOOD}, 640, "not text by name"),
    "configuration is a list": (
        {"__metadata__": {"lora_adapter_metadata": "[1]"}, **GOOD},
        640,
        "damaged adapter configuration",
    ),
    "configuration is nested": (
        {"__metadata__": {"lora_adapter_metadata": "[" * 200_000}, **GOOD},
        640,
        "damaged adapter configuration",
    ),
    "half": ({DOWN: GOOD[DOWN]}, 320, "only part"),
    "empty": ({}, 0, "holds no layers"),
}


@pytest.mark.parametrize("case", BAD)
def test_crafted(tmp_path: Path, case: str) -> None:
    header, data, says = BAD[case]
    path = crafted(tmp_path / "x.safetensors", header, data)
    with pytest.raises(ModelError, match=says) as caught:
        parse_lora(str(path))
    assert caught.value.remedy


def test_a_good_one(tmp_path: Path) -> None:
    alpha = {ALPHA: tensor([1], 640, 644)}
    path = crafted(tmp_path / "x.safetensors", {"__metadata__": {"a": "b"}, **GOOD, **alpha}, 644)
    assert list(read_header(path)) == [DOWN, UP, ALPHA]
    assert read_metadata(path) == {"a": "b"}
    assert list(parse_lora(str(path)).of("unet")) == [LAYER.removeprefix("unet.")[:-1]]
