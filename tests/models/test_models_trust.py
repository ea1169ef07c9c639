"""What a model's folder says is checked before a library reads it, for every command."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import todo_compile
from todo_compile.cli.app import main
from todo_compile.errors import ModelError
from todo_compile.models import resolve, resolve_component
from todo_compile.models.trust import check_folder, check_index, check_part, read_index
from todo_compile.runtime.torch_pipelines import from_folder

_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.1",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "feature_extractor": ["transformers", "CLIPFeatureExtractor"],
    "image_encoder": [None, None],
    "requires_safety_checker": True,
}


def test_what_is_plain_passes() -> None:
    check_index(_INDEX, Path("model_index.json"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("scheduler", ["evil", "Evil"]),
        ("scheduler", ["diffusers", "Evil"]),
        ("scheduler", ["os", "system"]),
        ("scheduler", ["diffusers.utils", "import_utils"]),
        ("scheduler", ["transformers", "../evil"]),
        ("scheduler", [None, "DDIMScheduler"]),
        ("scheduler", ["diffusers", None]),
        ("scheduler", ["diffusers", ["DDIMScheduler"]]),
        ("scheduler", ["diffusers", "DDIMScheduler", "more"]),
        ("scheduler", {"diffusers": "DDIMScheduler"}),
        ("safety_checker", ["stable_diffusion", "Evil"]),
        ("extra", ["antigravity", "Fly"]),
        ("_class_name", ["evilpipe", "Evil"]),
        ("_class_name", "evil.Evil"),
        ("_class_name", "NoSuchPipeline"),
        ("_class_name", 3),
        ("_class_name", {}),
    ],
)
def test_index_with_code(pipeline: Path, key: str, value: Any) -> None:
    """Whatever lies in the folder under that name: it is not run, and nothing is built."""
    mark = pipeline / "ran"
    code = f"open({str(mark)!r}, 'w')\nclass Evil: pass\n"
    (pipeline / "scheduler").mkdir()
    for place in ("evilpipe.py", "evil.py", "scheduler/evil.py"):
        (pipeline / place).write_text(code)
    (pipeline / "model_index.json").write_text(json.dumps({**_INDEX, key: value}))
    for call in (
        lambda: resolve(str(pipeline)),
        lambda: resolve_component(str(pipeline), "vae_decoder"),
        lambda: resolve_component(str(pipeline / "unet")),
        lambda: from_folder(pipeline, torch.float32),
        lambda: read_index(pipeline),
        lambda: todo_compile.plan(str(pipeline), res=64),
    ):
        with pytest.raises(ModelError, match="it is refused"):
            call()
    assert not mark.exists()


@pytest.mark.parametrize("command", ["plan", "drift", "compile", "bundle", "generate"])
def test_every_command(
    pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    (pipeline / "model_index.json").write_text('{"scheduler": ["evil", "Evil"]}')
    base = ["-m", str(pipeline), "-r", "64"]
    arguments = {
        "plan": ["plan", *base],
        "drift": ["drift", *base],
        "compile": [*base, "-o", str(tmp_path / "x.onnx")],
        "bundle": [*base, "-o", f"{tmp_path / 'x'}/", "--format", "onnx"],
        "generate": ["generate", *base, "-p", "a", "-o", str(tmp_path / "x.png")],
    }[command]
    assert main(arguments) == 2
    assert "it is refused" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("text_encoder/config.json", '{"auto_map": {"AutoModel": "evil.Evil"}}', "would run code"),
        ("text_encoder/config.json", '{"attn_implementation": "org/kernel"}', "load a kernel"),
        ("text_encoder/config.json", '{"_attn_implementation": {"": "org/k"}}', "load a kernel"),
        ("scheduler/scheduler_config.json", '{"beta_start": NaN}', "NaN is no number"),
        ("scheduler/scheduler_config.json", "[" * 99_999, "nested too deeply"),
        ("tokenizer/tokenizer_config.json", '{"vocab_file": "/etc/passwd"}', "no file beside it"),
        ("tokenizer/tokenizer_config.json", '{"tokenizer_file": "../x.json"}', "no file beside"),
        ("tokenizer/tokenizer_config.json", '{"merges_file": ["a"]}', "no file beside it"),
    ],
)
def test_configurations(pipeline: Path, name: str, content: str, says: str) -> None:
    index = {**_INDEX, "tokenizer": ["transformers", "CLIPTokenizer"]}
    (pipeline / "model_index.json").write_text(json.dumps(index))
    path = pipeline / name
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(ModelError, match=says):
        check_folder(pipeline)
    if name.startswith("tokenizer"):
        with pytest.raises(ModelError, match=says):
            check_part(path.parent, pipeline)


def test_saved_tokenizers_pass(pipeline: Path) -> None:
    folder = pipeline / "tokenizer"
    folder.mkdir()
    values = {"special_tokens_map_file": "/home/x/y.json", "vocab_file": "vocab.json", "a": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    check_part(folder, pipeline)


def test_files_elsewhere(pipeline: Path, tmp_path: Path) -> None:
    """A link out of the folder would carry a stranger's choice of our files into a bundle."""
    (tmp_path / "private.json").write_text("{}")
    (pipeline / "tokenizer").mkdir()
    (pipeline / "tokenizer" / "vocab.json").symlink_to(tmp_path / "private.json")
    with pytest.raises(ModelError, match="leads out of"):
        check_part(pipeline / "tokenizer", pipeline)
    (pipeline / "vae" / "config.json").unlink()
    (pipeline / "vae" / "config.json").symlink_to(tmp_path / "private.json")
    with pytest.raises(ModelError, match="leads out of"):
        resolve(str(pipeline))


@pytest.mark.skipif(sys.platform == "win32", reason="no FIFOs")
def test_weights_that_never_come(pipeline: Path, tmp_path: Path) -> None:
    weights = pipeline / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    os.mkfifo(weights)
    assert main(["-m", str(pipeline), "-r", "64", "-o", str(tmp_path / "x.onnx")]) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="no FIFOs")
@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "spiece.model", "x.safetensors"])
def test_files_that_libraries_read(pipeline: Path, tmp_path: Path, name: str) -> None:
    """They would wait for a FIFO for ever; only weights may lie elsewhere."""
    folder = pipeline / "tokenizer"
    folder.mkdir()
    (folder / name).symlink_to(tmp_path / "elsewhere")
    check_part(folder, pipeline)  # as good as absent
    (tmp_path / "elsewhere").write_text("{}")
    if name == "x.safetensors":
        check_part(folder, pipeline)
    else:
        with pytest.raises(ModelError, match="leads out of"):
            check_part(folder, pipeline)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(ModelError, match="is no regular file"):
        check_part(folder, pipeline)


def test_names_that_transformers_lists_no_longer(tmp_path: Path) -> None:
    """SD3, FLUX and PixArt folders name T5TokenizerFast, which transformers 5 hides but has."""
    index = {"tokenizer": ["transformers", "T5TokenizerFast"]}
    check_index(index, tmp_path / "model_index.json")
    for name in ("T5TokenizerFaster", "os"):
        with pytest.raises(ModelError, match="it is refused"):
            check_index({"tokenizer": ["transformers", name]}, tmp_path / "model_index.json")
