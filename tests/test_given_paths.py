"""What is no path is a mistake in our own words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import todo_compile
from todo_compile.errors import ConfigError


@pytest.mark.parametrize("value", [None, 3, b"x", "", "a\0b", ["a"], object])
def test_no_path(value: Any, tmp_path: Path) -> None:
    out = tmp_path / "x.onnx"
    for call in (
        lambda: todo_compile.load(value),
        lambda: todo_compile.load_pipeline(value),
        lambda: todo_compile.plan(value, res=64),
        lambda: todo_compile.compile(value, res=64, out=out),
        lambda: todo_compile.compile("sd15", res=64, out=value),
        lambda: todo_compile.compile("sd15", res=64, out=out, weights=value),
        lambda: todo_compile.compile_bundle(value, res=64, out=tmp_path / "b"),
        lambda: todo_compile.compile_bundle("sd15", res=64, out=value),
    ):
        with pytest.raises(ConfigError, match="which is not a path"):
            call()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "given", [{"res": 10**5000}, {"batch": 10**400}, {"batch": (1, 10**5000)}, {"opset": -(10**99)}]
)
def test_no_number(given: dict[str, Any], tmp_path: Path) -> None:
    """Python itself refuses to write some into a message."""
    with pytest.raises(ConfigError, match="nothing is as large"):
        todo_compile.compile("sd15", out=tmp_path / "x.onnx", **{"res": 64, **given})
    with pytest.raises(ConfigError, match="is not a resolution"):
        todo_compile.plan("sd15", res="9" * 5000)
