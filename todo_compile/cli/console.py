"""How the command line shows steps and tables; everything but results goes to standard error.

On a terminal long steps have bars; elsewhere (CI, pipes) each step is one line when it ends, so
that logs stay clean.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from todo_compile.foreign import printable
from todo_compile.progress import Step

if TYPE_CHECKING:
    from todo_compile.passes.report import Report


class _BarStep:
    def __init__(self, bars: Bars | None, name: str) -> None:
        self._bars = bars
        self._task = bars.add_task(name, total=None, detail="") if bars is not None else None
        self.remarks: list[str] = []

    def update(self, done: float, total: float, detail: str = "") -> None:
        if self._bars is not None and self._task is not None:
            self._bars.update(
                self._task, completed=done, total=total, detail=printable(detail[:48])
            )

    def note(self, text: str) -> None:
        self.remarks.append(text)


class ConsoleProgress:
    """Shows steps on standard error.

    Args:
        console: of standard error, see `screen`.
        verbosity: -1 says only warnings, 0 steps, 1 remarks too.
    """

    def __init__(self, console: Console, verbosity: int = 0) -> None:
        self.console = console
        self.verbosity = verbosity
        self._seconds: dict[str, float] = {}

    @property
    def seconds(self) -> dict[str, float]:
        """Wall-clock seconds of finished steps."""
        return self._seconds

    @contextmanager
    def step(self, name: str) -> Generator[Step]:
        """Show a step while it runs, and its seconds when it ends."""
        start = time.perf_counter()
        bars = self._bars() if self.verbosity >= 0 and self.console.is_terminal else None
        if bars is not None:
            bars.start()
        step = _BarStep(bars, name)
        failed = True
        try:
            yield step
            failed = False
        finally:
            if bars is not None:
                bars.stop()
            seconds = time.perf_counter() - start
            self._seconds[name] = self._seconds.get(name, 0.0) + seconds
            if self.verbosity >= 0 and not failed:
                remark = f"  ({'; '.join(step.remarks)})" if step.remarks else ""
                self.console.print(f"{name:<14} {seconds:7.1f} s{remark}")

    def info(self, text: str) -> None:
        """Something worth knowing; shown unless quiet."""
        if self.verbosity >= 0:
            self.console.print(text, style="dim")

    def warn(self, text: str) -> None:
        """Something to act on; always shown."""
        self.console.print(f"warning: {text}", style="yellow")

    def _bars(self) -> Bars:
        return Bars(
            SpinnerColumn(),
            TextColumn("{task.description:<14}", markup=False),
            BarColumn(bar_width=30),
            TimeElapsedColumn(),
            TextColumn("{task.fields[detail]}", style="dim", markup=False),
            console=self.console,
            transient=True,
        )


def number(count: float) -> str:
    """1234567 → ``1.23 M``."""
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:.3g}"


def sites_table(report: Report, *, every: bool = False) -> Table:
    """The sites of a report; cross-attention is one row unless `every` row is wanted."""
    table = Table(title=None, header_style="bold", pad_edge=False, box=None)
    for header, justify in (
        ("level", "right"), ("module", "left"), ("kind", "left"), ("grid (H×W)", "right"),
        ("heads×dim", "right"), ("key tokens", "right"), ("factor", "right"), ("sampling", "left"),
        ("FLOPs", "right"), ("decision", "left"), ("reason", "left"),
    ):  # fmt: skip
        table.add_column(header, justify=justify, no_wrap=header != "reason", overflow="fold")  # type: ignore[arg-type]
    shown = [s for s in report.sites if every or s.kind != "cross"]
    for site in shown:
        tokens = f"{site.key_tokens:,}"
        if site.key_tokens_after != site.key_tokens:
            tokens += f" → {site.key_tokens_after:,}"
        rows, columns = site.factor
        style = {"rewritten": "green", "refused": "yellow"}.get(site.action, "")
        table.add_row(
            str(site.level) if site.level else "",
            _short(site.module or site.name),
            site.kind,
            f"{site.grid[0]}×{site.grid[1]}" if site.grid else "–",
            f"{site.heads}×{site.head_dim}",
            tokens,
            f"{rows}" if rows == columns else f"{rows}×{columns}",
            site.sampling,
            f"{site.share:.1%}",
            Text(site.action, style=style),
            site.reason,
        )
    hidden = len(report.sites) - len(shown)
    if hidden:
        share = sum(s.share for s in report.sites if s.kind == "cross")
        table.add_row(
            "", f"{hidden} more", "cross", "–", "", "", "1", "", f"{share:.1%}", "dense",
            "cross-attention: the keys are not the image's tokens (all rows: --all)",
        )  # fmt: skip
    return table


def stops_table(report: Report) -> Table | None:
    """Where poolings stopped below projections that then run on all tokens; None if nowhere."""
    found = [(site, s) for site in report.sites for s in site.stops if s.extra_flops]
    if not found:
        return None
    table = Table(header_style="bold", pad_edge=False, box=None)
    for header in ("module", "pooled", "below", "costs", "of the graph", "because"):
        table.add_column(header, justify="right" if header in ("costs", "of the graph") else "left")
    for site, stop in found:
        share = stop.extra_flops / report.totals.flops if report.totals.flops else 0.0
        table.add_row(
            _short(site.module or site.name),
            stop.operand,
            stop.node,
            f"{number(stop.extra_flops)}FLOP",
            f"{share:.2%}",
            stop.reason,
        )
    return table


def _short(module: str) -> str:
    return module.replace("transformer_blocks", "blocks").replace("attentions", "attn")


def totals_table(report: Report) -> Table:
    """Dense against rewritten: FLOPs, attention bytes, the largest QKᵀ."""
    totals = report.totals
    table = Table(header_style="bold", pad_edge=False, box=None)
    for header in ("", "dense", "rewritten", "ratio"):
        table.add_column(header, justify="left" if not header else "right")
    rows: list[tuple[str, float, float]] = [
        ("FLOPs", totals.flops, totals.flops_after),
        ("attention FLOPs", totals.attention_flops, totals.attention_flops_after),
        ("attention bytes (Q, K, V, out)", totals.attention_bytes, totals.attention_bytes_after),
        ("largest QKᵀ, elements", totals.score_elements, totals.score_elements_after),
    ]
    for name, dense, after in rows:
        ratio = f"{dense / after:.2f}×" if after else "–"
        table.add_row(name, number(dense), number(after), ratio)
    limit = totals.tensor_limit
    table.add_row(
        "… against TensorRT's 2³¹ limit",
        _limit(totals.score_elements, limit),
        _limit(totals.score_elements_after, limit),
        "",
    )
    return table


def _limit(elements: int, limit: int) -> str:
    return f"{elements / limit:.2f}×" + (" (over)" if elements > limit else "")


def print_json(data: Any) -> None:
    """JSON on standard output, for programs."""
    import json

    print(printable(json.dumps(data, indent=2, ensure_ascii=False, default=str)))
