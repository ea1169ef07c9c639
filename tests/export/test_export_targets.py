"""Targets and libraries: what can be built for here, and what is said when it can't."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from todo_compile.errors import ConfigError, EngineError, MissingPackageError
from todo_compile.export.library import Library, choose_library
from todo_compile.export.targets import DEFAULT_TARGETS, parse_targets, resolve_targets

RTX = Library("tensorrt_rtx", "1.7", ("sm75", "sm80", "sm86", "sm89", "sm120"))
CLASSIC = Library("tensorrt", "10.13", ())


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (None, ()),
        (" ", ()),
        ("sm89", ("sm89",)),
        ("SM_89, 12.0,89,sm120", ("sm89", "sm120")),
        ("8.6", ("sm86",)),
        ("current", ("current",)),
    ],
)
def test_parse(text: str | None, names: tuple[str, ...]):
    assert parse_targets(text) == names


@pytest.mark.parametrize("text", ["sm42", "ada", "sm89,rtx4090", "sm", "898"])
def test_unknown_name_lists_the_known(text: str):
    with pytest.raises(ConfigError, match=r"Unknown target.*\n.*sm75.*sm121.*current"):
        parse_targets(text)


def test_current_stands_alone():
    with pytest.raises(ConfigError, match="cannot be combined"):
        parse_targets("current,sm89")


def test_default_without_a_gpu_is_said():
    targets = resolve_targets((), RTX, None)
    assert (targets.names, targets.current) == (DEFAULT_TARGETS, False)
    assert "no GPU" in targets.reason


def test_default_is_the_gpu_in_the_machine_by_its_name():
    targets = resolve_targets((), RTX, "sm86")
    assert (targets.names, targets.current) == (("sm86",), True)


def test_default_beside_a_gpu_that_the_library_lacks_is_said():
    targets = resolve_targets((), RTX, "sm90")
    assert targets.names == DEFAULT_TARGETS
    assert "sm90" in targets.reason


def test_current_without_a_gpu():
    with pytest.raises(EngineError, match=r"no GPU.*\n.*--target sm75"):
        resolve_targets(("current",), RTX, None)


def test_target_that_the_library_lacks():
    with pytest.raises(EngineError, match=r"cannot build for sm90\.\nIt knows sm75.*FILE\.onnx"):
        resolve_targets(("sm89", "sm90"), RTX, None)


def test_the_real_library_says_what_it_knows(library: Library):
    assert "sm89" in library.targets
    assert library.version
    with pytest.raises(EngineError, match="cannot build for sm87"):
        resolve_targets(("sm87",), library, None)


@pytest.mark.parametrize("wanted", [(), ("current",), ("sm86",)])
def test_classic_builds_for_its_own_gpu(wanted: tuple[str, ...]):
    targets = resolve_targets(wanted, CLASSIC, "sm86")
    assert (targets.names, targets.current) == (("sm86",), True)


def test_classic_builds_for_no_other():
    with pytest.raises(EngineError, match=r"only for the GPU in the machine.*\n.*rtx"):
        resolve_targets(("sm120",), CLASSIC, "sm86")


def test_unknown_library():
    with pytest.raises(ConfigError, match="Known: auto"):
        choose_library("onnxruntime")


@pytest.mark.parametrize("choice", ["auto", "tensorrt_rtx", "tensorrt"])
def test_absent_library_names_the_package(monkeypatch: pytest.MonkeyPatch, choice: str):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    extra = "tensorrt" if choice == "tensorrt" else "rtx"
    with pytest.raises(MissingPackageError, match=rf"not installed.*\n.*todo-compile\[{extra}\]"):
        choose_library(choice)


def test_library_that_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "tensorrt_rtx.py").write_text("raise ImportError('libcudart is missing')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(EngineError, match=r"does not load.*libcudart is missing"):
        choose_library("tensorrt_rtx")
