"""Every mistake ends with what is wrong, what to do, and an exit status; nothing is written."""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import said

from todo_compile.build import compiler
from todo_compile.cli.app import main
from todo_compile.errors import EngineError
from todo_compile.export import library

Refused = Callable[..., None]


@pytest.fixture
def refused(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run the command with `more` (later options win) and compare what it says."""

    def check(
        *more: str,
        says: str,
        remedy: str = "",
        code: int = 2,
        out: str = "x.onnx",
        written: tuple[str, ...] = (),
    ) -> None:
        folder = tmp_path / "out"
        folder.mkdir(exist_ok=True)
        capsys.readouterr()
        size = [] if "-r" in more else ["-r", "64"]
        base = ["-m", str(model), *size, "-o", str(folder / out)]
        status = main([*base, *more])
        captured = capsys.readouterr()
        text = " ".join(captured.err.split())
        assert says in text
        assert remedy in text
        assert "Traceback" not in text
        assert status == code
        assert captured.out == ""
        assert sorted(p.name for p in folder.iterdir()) == sorted(written)

    return check


@pytest.fixture
def copied(model: Path, tmp_path: Path) -> Path:
    """The weights' file of a copy of the model."""
    shutil.copytree(model, tmp_path / "copy")
    return tmp_path / "copy" / "unet" / "diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    ("more", "says", "remedy"),
    [
        (("-m", "sd1.5"), "Unknown model 'sd1.5'. Did you mean sd15?", "Known: sd15"),
        (("-r", "1001"), "cannot make 1001x1001 pixels", "1000x1000 or 1008x1008"),
        (("-r", "big"), "'big' is not a resolution", "1920x1080"),
        (("-r", "0"), "A side of 0 pixels", "Sides are 1 to"),
        (("--batch", "0"), "A batch of 0 is not possible", "Give 1 to"),
        (("--factors", "two"), "'two' in factors 'two' is not a positive factor", "e.g. 4,2,1"),
        (("--factors", "0"), "'0' in factors '0' is not a positive factor", "e.g. 4,2,1"),
        (("--preset", "todo-2x", "--factors", "2"), "already sets factors", "Leave out"),
        (("--preset", "fast"), "Unknown preset 'fast'", "todo-4x"),
        (("--kv-tokens", "0"), "kv_tokens must be a positive whole number", "4096"),
        (("--kv-tokens", "9", "--factors", "2"), "both say how far", "Give one"),
        (("--sampling", "best"), "Unknown sampling 'best'", "nearest-exact"),
        (("--opset", "17"), "Opset 17 is not supported", "18 to 23"),
        (("--precision", "int4"), "Unknown precision 'int4'", "fp16, bf16, fp32"),
        (("--target", "sm42"), "Unknown target: sm42", "sm89"),
        (("--weights", "random:x"), "'x' is not a seed", "random:SEED"),
        (("--quiet", "--verbose"), "exclude each other", ""),
        (("--frobnicate",), "No such option", ""),
    ],
)
def test_options(refused: Refused, more: tuple[str, ...], says: str, remedy: str) -> None:
    refused(*more, says=says, remedy=remedy)


@pytest.mark.parametrize("name", ["x.trt", "x.onnx.gz"])
def test_unknown_suffix(refused: Refused, name: str) -> None:
    refused(out=name, says="says nothing about the format", remedy=".plan or .engine")


def test_factor_larger_than_the_grid(refused: Refused) -> None:
    refused("--factors", "9", says="exceeds its grid of at most 8×8 tokens", remedy="at most the")
    refused("--factors", "2,5", says="level 2 exceeds its grid of at most 4×4", remedy="at most")


@pytest.mark.parametrize("command", ["plan", "drift"])
def test_one_resolution_where_one_is_shown(
    command: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "-m", str(model), "-r", "64", "-r", "128"]) == 2
    assert "2 resolutions were given" in said(capsys)


def test_more_factors_than_levels(refused: Refused) -> None:
    refused("--factors", "2,2,2", says="3 factors were given", remedy="one factor a level")


def test_missing_weights(refused: Refused, copied: Path) -> None:
    copied.unlink()
    refused(
        "-m",
        str(copied.parents[1]),
        says="has no diffusion_pytorch_model.safetensors",
        remedy="--weights random",
    )


def test_truncated_weights(refused: Refused, copied: Path) -> None:
    os.truncate(copied, copied.stat().st_size - 100)
    refused("-m", str(copied.parents[1]), says="is truncated or damaged", remedy="Download or copy")


def test_pickle(refused: Refused, copied: Path) -> None:
    copied.rename(copied.with_suffix(".bin"))
    refused("-m", str(copied.parents[1]), says="is a pickle", remedy="Convert it once")


def test_wrong_keys(refused: Refused, copied: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"nonsense": torch.zeros(2)}, copied)
    refused(
        "-m", str(copied.parents[1]), says="does not fit the model", remedy="or other --weights"
    )


def test_folder_absent(refused: Refused) -> None:
    refused(out="no/x.onnx", says="does not exist", remedy="mkdir -p", code=7)


def test_output_is_a_folder(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "out" / "x.onnx").mkdir(parents=True)
    refused(says="is a folder", remedy="Name a file", code=7, written=("x.onnx",))


def test_read_only(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may write anywhere here: the system's answer is what is replaced.
    monkeypatch.setattr(os, "access", lambda *_args, **_kwargs: False)
    refused(says="Cannot write in", remedy="change its permissions", code=7)


def test_disk_full(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(job: object) -> object:
        del job
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(compiler, "_rewritten", full)
    refused(says="Disk full: x.onnx", remedy="Free some space", code=7)


def test_tensorrt_absent(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> object:
        return None if name.startswith("tensorrt") else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    refused(out="x.plan", says="TensorRT is not installed", remedy="todo-compile[rtx]", code=9)
    refused(
        "--library",
        "tensorrt",
        out="x.plan",
        says="tensorrt is not installed",
        remedy="todo-compile[tensorrt]",
        code=9,
    )


def test_target_that_the_library_does_not_know(refused: Refused) -> None:
    refused(
        "--target",
        "sm90",
        out="x.plan",
        says="cannot build for sm90",
        remedy="write ONNX",
        code=6,
    )


def test_unknown_library(refused: Refused) -> None:
    refused("--library", "onnx", out="x.plan", says="Unknown library onnx", remedy="Known: auto")


def test_current_without_a_gpu(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "current_gpu", lambda: None)
    refused("--target", "current", out="x.plan", says="There is no GPU", remedy="--target", code=6)


def test_any_user_error_has_its_own_status(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(job: object) -> object:
        del job
        raise EngineError("broken [bold]text[/bold]", remedy="mend it")

    monkeypatch.setattr(compiler, "_rewritten", fail)
    refused(says="error: broken [bold]text[/bold]", remedy="mend it", code=6)


@pytest.mark.parametrize("content", [None, "{", '{"format": 9}', "[]"])
def test_inspect_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    (tmp_path / "x.onnx").write_bytes(b"model")
    if content is not None:
        (tmp_path / "x.onnx.json").write_text(content)
    assert main(["inspect", str(tmp_path / "x.onnx")]) == 7
    captured = capsys.readouterr()
    assert "Build the output again" in " ".join(captured.err.split())
    assert captured.out == ""


def test_help_shows_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    """rich takes [square brackets] for markup and swallows them."""
    for command in ("compile", "plan", "generate", "build"):
        assert main([command, "--help"]) == 0
        assert "[default:" in capsys.readouterr().out
    assert main(["compile", "--help"]) == 0
    text = re.sub(r"[│\s]+", " ", capsys.readouterr().out)  # out of its box
    assert "[default: tensorrt]" in text


@pytest.mark.parametrize(
    "words",
    [
        ("compile", "-m", "demo", "-r", "128", "-o", "x" * 300 + ".onnx"),
        ("compile", "-m", "x" * 300, "-r", "128", "-o", "x.onnx"),
        ("inspect", "x" * 300),
        ("generate", "--bundle", "x" * 300, "-p", "a cat", "-o", "a.png"),
    ],
)
def test_names_that_are_too_long(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "too long" in said
    assert len(said) < 400
