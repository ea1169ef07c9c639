"""A checkpoint of full size as sites for models have it: one file, fp16, the trainers' names.

Takes 6.9 GB of memory and a minute and a half of processor time.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import original_names
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from oracle import OracleProcessor
from safetensors.torch import save_file

import todo_compile
from todo_compile.build.verification import compare
from todo_compile.cli.app import main
from todo_compile.models.single_file import FAMILIES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@torch.no_grad()
def test_sd15(tmp_path: Path) -> None:
    """Through the command, against diffusers' own reader of such files with the oracle in it."""
    family = FAMILIES[0]
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    try:
        made: Any = UNet2DConditionModel.from_config(dict(family.unet))
    finally:
        torch.set_default_dtype(torch.float32)
    file = tmp_path / "dreamer.safetensors"
    save_file(original_names.unet(made.state_dict()), file)
    assert file.stat().st_size > 1.7e9
    del made

    out = tmp_path / "unet.onnx"
    arguments = ["--model", str(file), "--res", "512", "--kv-tokens", "1024", "--batch", "1"]
    assert main([*arguments, "--out", str(out), "-q"]) == 0
    manifest = json.loads(out.with_name("unet.onnx.json").read_text(encoding="utf-8"))
    assert {tuple(s["factor"]) for s in manifest["sites"] if s["action"] == "rewritten"} == {(2, 2)}

    noise = torch.Generator().manual_seed(1)
    sample = torch.randn(1, 4, 64, 64, generator=noise)
    text = torch.randn(1, 77, 768, generator=noise)
    unet = todo_compile.load(out, cast=True)
    found = unet(sample, torch.tensor(500), text).sample
    del unet

    folder = tmp_path / "config" / "unet"
    folder.mkdir(parents=True)
    config = {"_class_name": "UNet2DConditionModel", **family.unet}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    read: Any = UNet2DConditionModel.from_single_file(
        str(file), config=str(folder.parent), subfolder="unet", local_files_only=True,
        torch_dtype=torch.float32,
    )  # fmt: skip
    dense = read(sample, torch.tensor(500), text).sample
    read.set_attn_processor(OracleProcessor({4096: (64, 64)}, {4096: (2, 2)}, "nearest"))
    wanted = read(sample, torch.tensor(500), text).sample
    assert compare(found, wanted).relative_l2 < 5e-3
    assert compare(dense, wanted).relative_l2 > 2 * compare(found, wanted).relative_l2
