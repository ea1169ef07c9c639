"""What other pipelines than Stable Diffusion's and PixArt cannot do is refused at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import said

from todo_compile.cli.app import main


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder without any weights: what reads them fails in other words."""
    folder = tmp_path_factory.mktemp("flux")
    (folder / "transformer").mkdir()
    names = {"transformer/config": "FluxTransformer2DModel", "model_index": "FluxPipeline"}
    for name, kind in names.items():
        (folder / f"{name}.json").write_text(json.dumps({"_class_name": kind}))
    return folder


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("tune --budget drift=1e-3 --out plan.json", "A tuned plan"),
        ("compile --gate drift=1e-3 --out x.onnx", "A gate for an output"),
        ("compile --gate drift=1e-3 --out bundle/", "A gate for an output"),
    ],
)
def test_refused_before_weights_are_read(
    flux: Path,
    words: str,
    what: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*words.split(), "--model", str(flux), "--res", "1024"]) == 2
    assert f"{what} of a FluxPipeline is not possible yet" in said(capsys)
    assert not list(tmp_path.iterdir())
