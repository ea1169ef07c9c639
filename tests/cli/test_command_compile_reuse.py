"""An output that exists is kept only if everything that matters is equal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from compile_helpers import fp32
from helpers import said

from todo_compile.build import compiler, job
from todo_compile.cli.app import main
from todo_compile.errors import ExportError


@pytest.fixture
def no_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever would be built fails at once: for decisions before the build."""

    def refuse(_: object) -> object:
        raise ExportError("a build was started")

    monkeypatch.setattr(compiler, "_rewritten", refuse)


@pytest.mark.usefixtures("no_build")
class TestReuse:
    def test_equal_is_kept(
        self, model: Path, output: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = output.read_bytes()
        assert main(fp32(model, output, "--json")) == 0
        captured = capsys.readouterr()
        assert json.loads(captured.out)["reused"] is True
        assert "is up to date" in " ".join(captured.err.split())
        assert output.read_bytes() == before

    def test_quiet_says_nothing(
        self, model: Path, output: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(fp32(model, output, "-q")) == 0
        assert capsys.readouterr() == ("", "")

    @pytest.mark.parametrize(
        ("more", "reason"),
        [
            (("--batch", "1"), "batch: 2 → 1"),
            (("--res", "72x64"), "res: 64x64 → 72x64"),
            (("--weights", "random:3"), "weights: sha256:"),
            (("--factors", "4"), "plan.factors: none → [[4, 4]]"),
            (("--sampling", "average"), "plan.sampling: nearest → average"),
            (("--precision", "fp16"), "precision: fp32 → fp16"),
            (("--opset", "18"), "opset: 23 → 18"),
            (("--force",), "--force was given"),
            (("--verify",), "--verify was given"),
            (("--verify", "--force"), "--force was given"),
            (("--verify", "--force", "--batch", "1"), "batch: 2 → 1"),
        ],
    )
    def test_rebuilds_and_says_why(
        self,
        model: Path,
        output: Path,
        capsys: pytest.CaptureFixture[str],
        more: tuple[str, ...],
        reason: str,
    ) -> None:
        before = {p.name: p.read_bytes() for p in output.parent.iterdir()}
        assert main(fp32(model, output, *more)) == 5
        text = said(capsys)
        assert f"Rebuilding: {reason}" in text
        assert "a build was started" in text
        # It failed: the old output stands, and nothing else.
        assert {p.name: p.read_bytes() for p in output.parent.iterdir()} == before

    @pytest.mark.parametrize(
        ("victim", "content", "reason"),
        [
            ("x.onnx", b"short", "x.onnx has 5 bytes instead of"),
            ("x.onnx.json", b"{", "is damaged"),
            ("x.onnx.json", None, "x.onnx.json does not exist"),
        ],
    )
    def test_tampered_is_rebuilt(
        self,
        model: Path,
        output: Path,
        capsys: pytest.CaptureFixture[str],
        victim: str,
        content: bytes | None,
        reason: str,
    ) -> None:
        path = output.with_name(victim)
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        assert main(fp32(model, output)) == 5
        # A long path may be cut anywhere, inside the name too.
        assert reason.replace(" ", "") in said(capsys).replace(" ", "")


@pytest.mark.usefixtures("no_build")
def test_another_source_is_rebuilt(
    model: Path, output: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "sources_hash", lambda: "0123456789abcdef")
    assert main(fp32(model, output)) == 5
    text = said(capsys)
    assert "Rebuilding: sources:" in text
    assert "→ 0123456789abcdef" in text
