"""A pytest plug-in: diffusers' pipelines get our ONNX file in the place of their UNet.

``SUITES_MODE=ours`` puts it in, ``baseline`` does not; ``SUITES_SIDE`` is the side of the latents
that it is compiled for; ``SUITES_OUT`` is where the outcomes go, one
JSON object a test. Every call of a compiled UNet is compared with the UNet that it was made from.
Tokenizers of the hub, which no test can fetch here, are one of letters, in both modes.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from transformers import CLIPTokenizer

import todo_compile
from todo_compile.errors import TodoError
from todo_compile.runtime.compiled import CompiledError

OURS = os.environ.get("SUITES_MODE") == "ours"
_HUB = "hf-internal-testing/"
_SIDE = int(os.environ.get("SUITES_SIDE", "32"))
_BATCHES = "1..8"
_folder = tempfile.TemporaryDirectory()
_calls: list[float] = []


def _letters() -> Any:
    """As many ids as the tests' text encoders have room for."""
    letters = [chr(code) for code in range(33, 127)]
    words = ["<|startoftext|>", "!", "<|endoftext|>", *letters[1:], *(f"{c}</w>" for c in letters)]
    made: Any = CLIPTokenizer
    return made(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)


def _tokenizers() -> None:
    tokenizer: Any = CLIPTokenizer
    real = tokenizer.from_pretrained

    def from_pretrained(name: Any, *args: Any, **more: Any) -> Any:
        return _letters() if str(name).startswith(_HUB) else real(name, *args, **more)

    tokenizer.from_pretrained = from_pretrained


def _file(unet: UNet2DConditionModel, controlnet: bool) -> Path:
    """The ONNX file of a UNet, dense, in fp32; made once for equal ones."""
    digest = hashlib.sha256(repr((sorted(unet.config.items(), key=str), controlnet)).encode())
    for value in unet.state_dict().values():
        digest.update(value.numpy().tobytes())
    folder = Path(_folder.name) / digest.hexdigest()[:16]
    out = folder / "unet.onnx"
    if not out.exists():
        unet.save_pretrained(folder / "model" / "unet")
        todo_compile.compile(
            folder / "model", res=8 * _SIDE, out=out, precision="fp32", factors="off",
            batch=_BATCHES, controlnet=controlnet,
        )  # fmt: skip
    return out


def _compiled(unet: UNet2DConditionModel, controlnet: bool) -> Any:
    made: Any = todo_compile.load(_file(unet, controlnet), device="cpu")

    def compare(_: Any, args: Any, keywords: Any, found: Any) -> None:
        with torch.no_grad():
            wanted = unet(*args, **{**keywords, "return_dict": False})[0]
        given = found[0] if isinstance(found, tuple) else found.sample
        _calls.append(float((given - wanted).abs().max() / wanted.abs().max()))

    made.register_forward_hook(compare, with_kwargs=True)
    return made


def _swap() -> None:
    real = DiffusionPipeline.register_modules

    def register_modules(self: Any, **modules: Any) -> None:
        unet = modules.get("unet")
        if isinstance(unet, UNet2DConditionModel):
            modules["unet"] = _compiled(unet, "controlnet" in modules)
        real(self, **modules)

    DiffusionPipeline.register_modules = register_modules


_tokenizers()
if OURS:
    _swap()


def _ours(error: BaseException | None) -> str:
    """The first line of a refusal of ours that an error is, or comes of."""
    while error is not None:
        if isinstance(error, (TodoError, CompiledError)):
            return str(error).partition("\n")[0]
        error = error.__cause__ or error.__context__
    return ""


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: Any, call: Any) -> Generator[None, Any]:
    """Note what became of a test, once: where it failed, or after its call."""
    outcome = yield
    report = outcome.get_result()
    if report.when != "call" and report.passed:
        return
    if report.when == "teardown":
        return
    error = call.excinfo.value if call.excinfo is not None else None
    row = {
        "test": item.nodeid,
        "outcome": report.outcome,
        "error": "" if error is None else f"{type(error).__name__}: {str(error)[:200]}",
        "ours": _ours(error),
        "calls": len(_calls),
        "most": max(_calls, default=0.0),
    }
    _calls.clear()
    with Path(os.environ["SUITES_OUT"]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
