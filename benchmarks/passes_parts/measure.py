"""The passes on one full-size graph, printed as JSON; run by `benchmarks/passes.py`.

python benchmarks/passes_parts/measure.py '{"class_name": …}'

The graph is captured by torch alone under fake tensors: no weights, any machine, and the same graph
whichever tree of this package PYTHONPATH names.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from typing import Any

import diffusers
import torch
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: TID251

from todo_compile.passes.pipeline import rewrite_graph


def _made(shapes: Any) -> Any:
    if isinstance(shapes, dict):
        return {name: _made(one) for name, one in shapes.items()}
    return torch.ones(shapes)


def captured(subject: dict[str, Any]) -> torch.fx.GraphModule:
    """The graph of a model that was never filled."""
    torch.set_default_dtype(torch.float16)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model = getattr(diffusers, subject["class_name"])(**subject["config"]).eval()
        inputs = _made(subject["inputs"]) | {"return_dict": False}
        program = torch.export.export(model, (), inputs, strict=False)
    torch.set_default_dtype(torch.float32)
    return program.graph_module


def main() -> None:
    subject: dict[str, Any] = json.loads(sys.argv[1])
    grids = {int(tokens): tuple(grid) for tokens, grid in (subject["token_grids"] or {}).items()}
    runs: list[dict[str, Any]] = []
    report, nodes = None, 0
    for _ in range(subject["repeats"]):
        module = captured(subject)
        nodes = len(module.graph.nodes)
        gc.collect()
        start = time.process_time()
        report = rewrite_graph(
            module,
            native_kv_tokens=subject["bound"],
            token_grids=grids or None,
            explicit_casts=True,
        )
        seconds = time.process_time() - start
        runs.append({"seconds": seconds, "passes": {p.name: p.seconds for p in report.passes}})
    assert report is not None, "at least one repeat"
    sites = [
        {
            "module": site.module,
            "kind": site.kind,
            "grid": site.grid,
            "keys": [site.key_tokens, site.key_tokens_after],
            "factor": site.factor,
            "action": site.action,
        }
        for site in report.sites
    ]
    print(json.dumps({"nodes": nodes, "runs": runs, "sites": sites}))


if __name__ == "__main__":
    main()
