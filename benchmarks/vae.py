"""VAE decoder engines, dense and rewritten side by side: GPU memory as the builder reports it.

python benchmarks/vae.py                          SD1.5's decoder at 1024, 2048, 4096 px

Random weights (sizes do not depend on them), fp16, batch 1, built for SM89 with no GPU; nothing is
run. A build that TensorRT refuses is a row with its message.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from build import build
from common import save
from rich.console import Console
from rich.table import Table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="sd15")
    parser.add_argument("--res", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--opset", type=int, nargs="+", default=[23])
    parser.add_argument("--plans", nargs="+", default=["off", "default"])
    parser.add_argument("--name", default="")
    arguments = parser.parse_args()
    name = arguments.name or f"vae-{arguments.model}"
    rows: list[dict[str, Any]] = []
    for px in arguments.res:
        for opset in arguments.opset:
            for plan in arguments.plans:
                factors = None if plan == "default" else plan
                more = ["--component", "vae-decoder", "--target", "sm89", "--precision", "fp16"]
                with tempfile.TemporaryDirectory() as folder:
                    rows.append(build(arguments.model, px, factors, opset, Path(folder), more))
                print(json.dumps({k: v for k, v in rows[-1].items() if k != "totals"}), flush=True)
                save(name, {"rows": rows})  # after every build: a long run may be stopped
    table = Table("px", "opset", "plan", "s", "peak GB", "activation GB", "scratch GB", "TFLOPs")
    for row in rows:
        memory, totals = row.get("memory") or {}, row.get("totals") or {}
        table.add_row(
            str(row["px"]),
            str(row["opset"]),
            row["plan"],
            f"{row['seconds']:.0f}",
            f"{row['peak_rss_bytes'] / 1e9:.1f}",
            *(f"{memory[k] / 1e9:.2f}" if k in memory else "–" for k in ("activation", "scratch")),
            f"{totals['flops_after'] / 1e12:.1f}" if totals else str(row.get("error", "")),
        )
    Console().print(table)


if __name__ == "__main__":
    main()
