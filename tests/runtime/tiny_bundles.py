"""Compiled components of tiny pipelines, and bundles of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny_pipelines as tiny
from oracle import OracleProcessor

import todo_compile
from todo_compile.bundle import entries
from todo_compile.bundle import manifest as manifests
from todo_compile.bundle.description import Bundle, ComponentEntry, LightFile
from todo_compile.options import PlanOptions

BATCHES = {"unet": 2, "vae_decoder": 1, "text_encoder": 1, "text_encoder_2": 1}


def compiled(model: Path, out: Path, component: str = "unet", **options: Any) -> Path:
    """An ONNX file of one component at the tiny resolution, fp32."""
    options = {"precision": "fp32", "batch": BATCHES[component], **options}
    if component == "vae_decoder":  # trained at 256 tokens, so by default it stays dense
        options["options"] = PlanOptions.create(kv_tokens=64)
    todo_compile.compile(str(model), res=tiny.PIXELS, out=out, component=component, **options)
    return out


def with_oracle(pipe: Any) -> Any:
    """The torch pipeline with keys and values subsampled by the oracle: 16×16 tokens by a
    factor of 2, in the UNet and in the decoder."""
    at = ({256: (16, 16)}, {256: (2, 2)}, "nearest")
    pipe.unet.set_attn_processor(OracleProcessor(*at))
    pipe.vae.decoder.mid_block.attentions[0].set_processor(OracleProcessor(*at))
    return pipe


def make_bundle(folder: Path, model: Path, files: dict[str, Path], **facts: Any) -> Path:
    """Finish `folder`, which has the components, as a bundle."""
    light = [*model.glob("tokenizer*/*"), *model.glob("scheduler/*"), model / "model_index.json"]
    found: list[LightFile] = []
    for one in light:
        name = one.relative_to(model).as_posix()
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(one.read_bytes())
        found.append(
            LightFile(name=name, bytes=target.stat().st_size, sha256=entries.file_sha256(target))
        )
    values: dict[str, Any] = {
        "created": entries.now(),
        "model": "tiny",
        "resolution": f"{tiny.PIXELS}x{tiny.PIXELS}",
        "batch": 2,
        "precision": "fp32",
        "kind": "onnx",
        "pipeline_class": "StableDiffusionPipeline",
        "components": {name: entry(path) for name, path in files.items()},
        "light_files": found,
        **facts,
    }
    entries.write(Bundle(**values), folder / "bundle.json")
    return folder


def entry(path: Path) -> ComponentEntry:
    manifest = manifests.manifest_path(path)
    return ComponentEntry(file=path.name, manifest_sha256=entries.file_sha256(manifest))
