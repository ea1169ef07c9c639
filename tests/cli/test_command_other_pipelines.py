"""What other pipelines than Stable Diffusion's and PixArt cannot do is refused at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import said

from todo_compile.cli.app import main

NEEDS = "draws from prompts and a size alone, and IFSuperResolutionPipeline needs more"


@pytest.mark.parametrize(
    ("pipeline", "words", "message"),
    [
        ("IFSuperResolution", "tune --budget drift=1e-3 --out plan.json", f"Tuning {NEEDS}"),
        ("IFSuperResolution", "compile --gate drift=1e-3 --out x.onnx", f"A gate {NEEDS}"),
        ("IFSuperResolution", "compile --gate drift=1e-3 --out bundle/", f"A gate {NEEDS}"),
    ],
)
def test_refused_before_weights_are_read(
    pipeline: str,
    words: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of a folder without any weights: what reads them fails in other words."""
    place, kind = "unet", "UNet2DConditionModel"
    folder = tmp_path / "model"
    (folder / place).mkdir(parents=True)
    names = {f"{place}/config": kind, "model_index": f"{pipeline}Pipeline"}
    for name, cls in names.items():
        (folder / f"{name}.json").write_text(json.dumps({"_class_name": cls}))
    monkeypatch.chdir(tmp_path)
    assert main([*words.split(), "--model", str(folder), "--res", "1024"]) == 2
    assert message in said(capsys)
    assert list(tmp_path.iterdir()) == [folder]
