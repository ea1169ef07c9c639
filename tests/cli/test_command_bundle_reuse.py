"""Bundles that exist: reused part by part, mended, and never half there after a failure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bundle_helpers import (
    arguments,
    bundle_content,
    content,
    damage,
    refuse_build,
)
from helpers import said

from todo_compile.bundle.bundle import read_bundle
from todo_compile.cli.app import main
from todo_compile.errors import BundleError


def test_equal_is_kept(
    pipeline: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    before = content(bundle)
    started = refuse_build(monkeypatch)
    assert main(arguments(pipeline, bundle)) == 0
    assert started == []
    assert "every component is equal; kept" in said(capsys)
    assert content(bundle) == before


@pytest.mark.parametrize(
    ("more", "reason"), [(["--force"], "--force was given"), (["--verify"], "--verify was given")]
)
def test_equal_is_built_again_where_it_is_asked_for(
    pipeline: Path,
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    more: Any,
    reason: Any,
) -> None:
    started = refuse_build(monkeypatch, "unet")
    assert main(arguments(pipeline, bundle, *more)) == 5
    assert started == ["unet"]
    assert f"Rebuilding unet.onnx: {reason}" in said(capsys)


def test_only_what_changed_is_built(
    pipeline: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(bundle)
    started = refuse_build(monkeypatch)
    assert main(arguments(pipeline, bundle, "--vae-factors", "off", "-q")) == 0
    assert started == ["vae_decoder"]
    assert damage(bundle) == []
    after = content(bundle)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"bundle.json", "vae_decoder.onnx", "vae_decoder.onnx.json"}


def test_changed_light_file_is_copied_again(
    pipeline: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = refuse_build(monkeypatch)
    (bundle / "tokenizer" / "vocab.json").write_text('{"changed": 1}')
    assert main(arguments(pipeline, bundle, "-q")) == 0
    assert started == []
    assert (bundle / "tokenizer" / "vocab.json").read_text() == "{}"
    assert damage(bundle) == []


def test_failure_leaves_the_old_bundle_and_keeps_what_was_built(
    pipeline: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = bundle_content(bundle)
    started = refuse_build(monkeypatch, "vae_decoder")
    changed = arguments(pipeline, bundle, "--sampling", "average")
    assert main(changed) == 5
    assert started == ["unet", "vae_decoder"]
    assert bundle_content(bundle) == before
    assert damage(bundle) == []
    monkeypatch.undo()
    started = refuse_build(monkeypatch)
    assert main(changed) == 0
    assert started == ["vae_decoder"]  # the UNet of the failed run was kept
    assert damage(bundle) == []
    assert not (bundle / ".parts").exists()


@pytest.mark.parametrize("victim", ["unet.onnx", "unet.onnx.json", "bundle.json"])
def test_damaged_is_mended(
    pipeline: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    path = bundle / victim
    path.write_bytes(path.read_bytes()[:-9])
    started = refuse_build(monkeypatch)
    assert main(arguments(pipeline, bundle, "-q")) == 0
    assert started == ([] if victim == "bundle.json" else ["unet"])
    assert damage(bundle) == []


def test_fewer_components_leave_nothing_behind(pipeline: Path, bundle: Path) -> None:
    assert main(arguments(pipeline, bundle, "--component", "vae-decoder", "-q")) == 0
    assert list(read_bundle(bundle).components) == ["vae_decoder"]
    assert damage(bundle) == []
    assert sorted(p.name for p in bundle.glob("*.onnx*")) == [
        "vae_decoder.onnx", "vae_decoder.onnx.json",
    ]  # fmt: skip


def test_failed_first_build_leaves_no_bundle(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_build(monkeypatch, "unet")
    assert main(arguments(pipeline, tmp_path / "new", "-q")) == 5
    with pytest.raises(BundleError, match="not a finished bundle"):
        read_bundle(tmp_path / "new")
