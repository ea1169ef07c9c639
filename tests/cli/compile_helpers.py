"""What the tests of single outputs share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def manifest_of(out: Path) -> dict[str, Any]:
    return json.loads(out.with_name(f"{out.name}.json").read_text())


def fp32(model: Path, out: Path, *more: str) -> list[str]:
    size = [] if "--res" in more else ["-r", "64"]
    return ["-m", str(model), *size, "-o", str(out), "--precision", "fp32", *more]
