"""diffusers' own pipeline tests with our ONNX file in the place of the UNet, beside the baseline.

    python benchmarks/suites.py CHECKOUT [--only WORD]

CHECKOUT is one of diffusers at about the installed version (its tests also need ``parameterized``
and ``requests-mock``). Its ``tests`` are run with the installed diffusers, in two processes a file:
as they are, and with every UNet compiled (dense, fp32, batches of 1 to 8, at one size a file). Each
call is compared with the torch UNet. Needs no network: what asks for the hub fails in both. Writes
``results/suites.json``; with ``--only`` the other files stay as they were.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from common import RESULTS, save

FILES = {
    "text to image": ("stable_diffusion/test_stable_diffusion.py", 32),
    "image to image": ("stable_diffusion/test_stable_diffusion_img2img.py", 16),
    "inpainting": ("stable_diffusion/test_stable_diffusion_inpaint.py", 32),
    "ControlNet": ("controlnet/test_controlnet.py", 32),
    "SDXL": ("stable_diffusion_xl/test_stable_diffusion_xl.py", 32),
}
"""Name of a row → tests, and the side of the latents that most of them denoise."""


def outcomes(checkout: Path, file: str, side: int, mode: str) -> dict[str, dict[str, Any]]:
    """What became of each test of a file."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "outcomes"
        here = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
        environment = {
            **os.environ,
            "SUITES_MODE": mode,
            "SUITES_SIDE": str(side),
            "SUITES_OUT": str(out),
            "HF_HUB_OFFLINE": "1",
            "DIFFUSERS_TEST_DEVICE": "cpu",
            "PYTHONPATH": os.pathsep.join([*here, os.environ.get("PYTHONPATH", "")]),
        }
        command = [
            *(sys.executable, "-m", "pytest", "-q", "--timeout", "120"),
            *("-p", "suites_parts.compiled", "-p", "no:cacheprovider"),
            f"tests/pipelines/{file}",
        ]
        run = subprocess.run(
            command, cwd=checkout, env=environment, check=False, capture_output=True, text=True
        )
        if run.returncode > 1 or not out.exists():
            raise SystemExit(run.stdout[-3000:] + run.stderr[-3000:])
        lines = out.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return {row["test"].partition("::")[2]: row for row in rows}


def kind(said: str) -> str:
    """What an error says, without the numbers, folders and addresses in it."""
    plain = re.sub(r"https?://[^\s'\")]+|(?<![\w.])/[\w./-]+", "…", said)
    return re.sub(r"\d+(x\d+)?", "N", plain)[:120]


def compared(name: str, file: str, side: int, checkout: Path) -> dict[str, Any]:
    """One row: counts, refusals by kind, and whatever else differs."""
    baseline, ours = (outcomes(checkout, file, side, mode) for mode in ("baseline", "ours"))
    passed = [test for test, row in baseline.items() if row["outcome"] == "passed"]
    refused = {test: ours[test]["ours"] for test in passed if ours[test]["ours"]}
    return {
        "name": name,
        "file": file,
        "tests": len(baseline),
        "skipped": sum(row["outcome"] == "skipped" for row in baseline.values()),
        "baseline_passed": len(passed),
        "passed": sum(ours[test]["outcome"] == "passed" for test in passed),
        "refused": dict(Counter(map(kind, refused.values()))),
        "refused_tests": sorted(refused),
        "differ": {
            test: kind(ours[test]["error"])
            for test in passed
            if ours[test]["outcome"] == "failed" and test not in refused
        },
        "calls": sum(row["calls"] for row in ours.values()),
        "most": max((row["most"] for row in ours.values()), default=0.0),
        "failed_in_both": dict(
            Counter(kind(row["error"]) for row in baseline.values() if row["outcome"] == "failed")
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--only", nargs="*", default=None, help="rows to run anew, by name")
    parser.add_argument("--dry", action="store_true", help="write no result")
    chosen = parser.parse_args()
    if not (chosen.checkout / "tests" / "pipelines").is_dir():
        raise SystemExit(
            f"{chosen.checkout} is no checkout of diffusers: it has no tests/pipelines."
        )
    path = RESULTS / "suites.json"
    old = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    rows = {row["name"]: row for row in old}
    for name, (file, side) in FILES.items():
        if chosen.only is not None and name not in chosen.only:
            continue
        rows[name] = compared(name, file, side, chosen.checkout)
        print(json.dumps(rows[name]), flush=True)
        if not chosen.dry:
            save("suites", {"rows": [rows[n] for n in FILES if n in rows]})


if __name__ == "__main__":
    main()
