"""Modules that are given as they are: videos of diffusers, and stages of other packages.

python benchmarks/modules.py [--only ROW …] [--packages FOLDER]   writes results/modules.json
                                                                  and docs/modules.md

Each is tiny and random, rewritten in both dialects and built to ONNX by ``compile(module, …)``, and
compared with an eager run whose attention subsamples its own keys and values. Stages of packages
that are not there keep their last row; ``--packages`` is a folder that has them::

    pip install --target FOLDER --no-deps imagen-pytorch dalle2-pytorch einops kornia kornia-rs \
        beartype ema-pytorch pytorch-warmup rotary-embedding-torch resize-right x-clip \
        coca-pytorch vector-quantize-pytorch clip-anytorch ftfy wcwidth webdataset \
        embedding-reader einx frozendict loguru click torch-einops-utils
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the oracle and the tiny models are the tests'

import torch
from common import save
from models_parts.measure import counts, rounded
from models_parts.rows import committed, timed
from models_parts.truth import distance, tensor_of
from modules_parts import peers
from modules_parts.exported import exported
from modules_parts.page import PAGE, page
from modules_parts.truth import PooledProducts, Segment, softmaxes
from torch import Tensor, nn

import todo_compile
from tests import oracle
from tests.graphs import capture
from tests.passes import video_models
from todo_compile.errors import TodoError, first_line
from todo_compile.options import PlanOptions, TokenGrid

FACTORS = (2, 2)
VIDEO = (video_models.FRAMES, *video_models.GRID)
TOKENS = video_models.FRAMES * video_models.GRID[0] * video_models.GRID[1]
TEXT = video_models.TEXT


@dataclass(frozen=True)
class Row:
    """One module.

    Args:
        key, title: names.
        make: the module and its inputs.
        segments: number of keys → (keys before the picture's, its sides): by hand, from how the
            architecture orders its tokens.
        fused: it calls fused attention, not products.
        token_grids: what the caller names.
    """

    key: str
    title: str
    make: Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]
    segments: dict[int, Segment]
    fused: bool = True
    token_grids: dict[int, TokenGrid] = field(default_factory=dict[int, TokenGrid])


def _video(name: str, title: str, segments: dict[int, Segment], **named: Any) -> Row:
    return Row(name, title, partial(video_models.make, name), segments, **named)


ALONE = {TOKENS: (0, VIDEO)}
BEHIND, AHEAD = {TOKENS + TEXT: (TEXT, VIDEO)}, {TOKENS + TEXT: (0, VIDEO)}
VIDEOS = (
    _video("wan", "Wan 2.1", ALONE),
    _video("hunyuan_video", "HunyuanVideo", AHEAD),
    _video("cogvideox", "CogVideoX", BEHIND),
    _video("cogvideox_15", "CogVideoX 1.5", BEHIND),
    _video("allegro", "Allegro", ALONE),
    _video("ltx", "LTX-Video, its grid named", ALONE, token_grids={TOKENS: VIDEO}),
    _video("latte", "Latte", {16: (0, (4, 4))}),
    _video("mochi", "Mochi", {}),
)


def _peers(folder: Path | None) -> Generator[Row]:
    """Those that are there: queries are the picture's, keys text and a null key in front."""
    area = peers.SIDES[0] * peers.SIDES[1]
    grids = [peers.SIDES, (peers.SIDES[0] // 2, peers.SIDES[1] // 2)]
    assert area == grids[0][0] * grids[0][1]
    for key, (package, title, make) in peers.PEERS.items():
        if not peers.is_there(package, folder):
            continue
        peers.reach(folder)
        segments = {
            grid[0] * grid[1] + ahead: (ahead, grid) for grid in grids for ahead in range(1, 64)
        }
        yield Row(key, title, make, segments, fused=False)


def measure(row: Row, root: Path) -> dict[str, Any]:
    """What becomes of a module, in the form of `benchmarks/models.py`'s rows."""
    torch.manual_seed(0)
    model, inputs = row.make()
    model.eval()
    said: dict[str, Any] = {"family": row.key, "title": row.title}
    said["softmaxes"] = softmaxes(model, inputs)
    options = PlanOptions(factors=(FACTORS, FACTORS))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dense = tensor_of(model(*inputs))
        with _pooled(row) as pooled:
            truth = tensor_of(model(*inputs))
    effect = rounded(distance(dense, truth))
    for dialect in ("export", "dynamo"):
        try:
            make = exported if dialect == "export" else partial(capture, dialect="dynamo")
            captured = make(model, inputs)
        except Exception as error:  # noqa: BLE001 -- whatever a model sets off in torch
            said[dialect] = {"captured": first_line(error)[:160]}
            continue
        report = captured.rewrite(_fitting(options, captured, row), token_grids=row.token_grids)
        found = counts(report)
        found["subsampled"] = pooled()
        found["error"] = rounded(distance(tensor_of(captured.run()), truth))
        said[dialect] = {**found, "effect": effect}
    said["onnx"] = _in_onnx(row, model, inputs, truth, root)
    return said


def _fitting(options: PlanOptions, captured: Any, row: Row) -> PlanOptions:
    """As many factors as there are levels."""
    report = captured.copy().rewrite(PlanOptions(factors=()), token_grids=row.token_grids)
    levels = max((site.level for site in report.sites), default=1) or 1
    return PlanOptions(factors=(FACTORS,) * levels, sampling=options.sampling)


@contextmanager
def _pooled(row: Row) -> Generator[Callable[[], int]]:
    """Attention with subsampled keys and values; how many there were."""
    if row.fused:
        segments = {keys: (before, grid, FACTORS) for keys, (before, grid) in row.segments.items()}
        with oracle.pooled_fused_attention(segments, "nearest") as seen:
            yield lambda: len(seen)
        return
    mode = PooledProducts(row.segments, FACTORS)
    with mode:
        yield lambda: mode.seen


def _in_onnx(
    row: Row, model: nn.Module, inputs: tuple[Tensor, ...], truth: Tensor, root: Path
) -> dict[str, Any]:
    out = root / f"{row.key.replace(' ', '-')}.onnx"
    try:
        report = todo_compile.plan(model, inputs, token_grids=row.token_grids)
        levels = max((site.level for site in report.sites), default=1) or 1
        todo_compile.compile(
            model, inputs, out=out, token_grids=row.token_grids,
            options=PlanOptions(factors=(FACTORS,) * levels),
        )  # fmt: skip
        found = tensor_of(todo_compile.load(out)(*inputs))
    except TodoError as error:
        return {"built": first_line(error)[:200]}
    return {"error": rounded(distance(found, truth))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=None, help="rows to measure anew")
    parser.add_argument("--packages", type=Path, default=None, metavar="FOLDER")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rows = committed("modules")
    order = [row.key for row in VIDEOS] + list(peers.PEERS)
    with tempfile.TemporaryDirectory() as folder:
        for row in (*VIDEOS, *_peers(chosen.packages)):
            if chosen.only is not None and row.key not in chosen.only:
                continue
            rows[row.key] = timed(partial(measure, row, Path(folder)))
            kept = [rows[key] for key in order if key in rows]
            save("modules", {"rows": kept})
            PAGE.write_text(page(kept), encoding="utf-8")


if __name__ == "__main__":
    main()
