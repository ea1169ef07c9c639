"""Seconds of the passes on full-size graphs, and whether they grow linearly with nodes.

python benchmarks/passes.py [--repeats 5]

Graphs are captured under fake tensors: no weights, any machine. "depth" multiplies the transformer
layers of every attention block of SD1.5.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch
from common import save, spread
from rich.console import Console
from rich.table import Table

from todo_compile import models
from todo_compile.capture.inputs import example_inputs
from todo_compile.capture.trace import capture
from todo_compile.passes.pipeline import rewrite_graph


def measure(name: str, depth: int, repeats: int, px: int) -> dict[str, object]:
    """Seconds of all passes on `name` at `px`, with `depth` times the transformer layers."""
    source = models.resolve(name)
    if depth > 1:
        config = {**source.config, "transformer_layers_per_block": depth}
        source = replace(source, config=config)
    seconds: list[float] = []
    parts: dict[str, list[float]] = {}
    nodes = sites = 0
    for _ in range(repeats):
        loaded = models.load(source, dtype=torch.float16, fake=True)
        example = example_inputs(loaded, models.Resolution(px, px), batch=2)
        assert loaded.fake is not None
        with loaded.fake:
            program = capture(example.wrapper, example.args)
        nodes = len(program.graph.nodes)
        report = rewrite_graph(
            program.graph_module,
            native_kv_tokens=source.native.kv_tokens,
            explicit_casts=True,
        )
        seconds.append(report.seconds)
        sites = report.rewritten
        for one in report.passes:
            parts.setdefault(one.name, []).append(one.seconds)
    return {
        "model": name,
        "depth": depth,
        "px": px,
        "nodes": nodes,
        "rewritten_sites": sites,
        "seconds": spread(seconds),
        "passes": {part: spread(values) for part, values in parts.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    rows = [measure("sd15", depth, repeats, 2048) for depth in (1, 2, 4)]
    rows.append(measure("sdxl", 1, repeats, 2048))
    table = Table("model", "depth", "nodes", "rewritten", "passes ms (median)", "µs a node")
    for row in rows:
        median = row["seconds"]["median"]  # type: ignore[index]
        table.add_row(
            str(row["model"]),
            str(row["depth"]),
            str(row["nodes"]),
            str(row["rewritten_sites"]),
            f"{median * 1e3:.0f}",
            f"{median / int(str(row['nodes'])) * 1e6:.0f}",
        )
    Console().print(table)
    print("wrote", save("passes", {"rows": rows}))


if __name__ == "__main__":
    main()
