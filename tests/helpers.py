"""What tests of several folders do."""

from __future__ import annotations

import pytest

from todo_compile.export import onnx


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """Standard error in one line: the console wraps."""
    return " ".join(capsys.readouterr().err.split())


def weights_outside(patch: pytest.MonkeyPatch) -> None:
    """Tiny weights go to a file of their own, as big ones do."""
    patch.setattr(onnx, "EXTERNAL_OVER", 0)
    patch.setattr(onnx, "SHARED_OVER", 0)
