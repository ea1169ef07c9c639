"""The tables of reports, laid out by the width that there is: nothing is cut.

Where a site does not fit into one line it takes two: the numbers, then its module and the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Group
from rich.table import Table
from rich.text import Text

from todo_compile.foreign import printable

if TYPE_CHECKING:
    from todo_compile.cli.answers import KnownModel
    from todo_compile.drift.measure import Drift
    from todo_compile.passes.report import Report, SiteReport

_GAP = "  "
_INDENT = 4
_LABEL = 15  # columns of a label with the space behind it
_PROSE = 36  # columns below which sentences are hard to read
_STYLES = {"rewritten": "green", "refused": "yellow"}


@dataclass(frozen=True)
class Column:
    """One column: its header, and whether it holds numbers, which stand to the right."""

    header: str
    number: bool = True


@dataclass(frozen=True)
class Row:
    """Cells, one a column; what the row is about; and a sentence on it, which may be long."""

    cells: tuple[str, ...]
    subject: str = ""
    sentence: str = ""
    style: str = ""


def laid_out(
    columns: Sequence[Column], rows: Sequence[Row], width: int, subject: str | None = None
) -> Group:
    """Rows of cells with a subject and a sentence: on one line each, or on two.

    Args:
        columns: of the cells.
        rows: each with as many cells as there are columns.
        width: characters of a line.
        subject: header of what the rows are about; None where their cells say it.
    """
    rows = [_printable(row) for row in rows]
    wide, all_columns = rows, columns
    if subject is not None:
        all_columns = (Column(subject, number=False), *columns)
        wide = [Row((row.subject, *row.cells), "", row.sentence, row.style) for row in rows]
    room = _room(all_columns, wide, width)
    if room >= (_PROSE if any(row.sentence for row in rows) else 0):
        return Group(*_lines(all_columns, wide, room))
    return Group(*_lines(columns, rows, 0, width))


def _printable(row: Row) -> Row:
    cells = tuple(printable(cell) for cell in row.cells)
    return Row(cells, printable(row.subject), printable(row.sentence), row.style)


def _widths(columns: Sequence[Column], rows: Sequence[Row]) -> list[int]:
    return [
        max([cell_len(column.header), *(cell_len(row.cells[i]) for row in rows)])
        for i, column in enumerate(columns)
    ]


def _room(columns: Sequence[Column], rows: Sequence[Row], width: int) -> int:
    """What a line leaves for its sentence."""
    return width - sum(w + len(_GAP) for w in _widths(columns, rows))


def _lines(
    columns: Sequence[Column], rows: Sequence[Row], room: int, width: int = 0
) -> Iterator[Text]:
    """With `room` the sentence goes on beside the cells; without, below them within `width`."""
    widths = _widths(columns, rows)

    def line(cells: Iterable[str]) -> str:
        return _GAP.join(
            " " * (w - cell_len(c)) + c if column.number else c + " " * (w - cell_len(c))
            for column, c, w in zip(columns, cells, widths, strict=True)
        )

    yield Text(line(column.header for column in columns).rstrip(), style="bold")
    indent = " " * (sum(widths) + len(_GAP) * len(widths))
    for row in rows:
        cells = line(row.cells)
        if room:
            first, *more = wrapped(row.sentence, room) or [""]
            yield Text(f"{cells}{_GAP}{first}".rstrip(), style=row.style)
            yield from (Text(indent + one, style=row.style) for one in more)
            continue
        yield Text(cells.rstrip(), style=row.style)
        below = ": ".join(part for part in (row.subject, row.sentence) if part)
        for one in wrapped(below, max(width - _INDENT, 16)):
            yield Text(" " * _INDENT + one, style="dim")


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width`; words that are longer, such as module paths, break at a mark."""
    lines: list[str] = []
    current = ""
    for word in text.split():
        if current and cell_len(current) + 1 + cell_len(word) > width:
            lines.append(current)
            current = ""
        current = f"{current} {word}" if current else word
        while cell_len(current) > width:
            cut = max(current.rfind(mark, 1, width) for mark in "./- ") + 1
            cut = cut if cut > width // 3 else width
            lines.append(current[:cut].rstrip())
            current = current[cut:]
    return [*lines, current] if current else lines


def facts(lines: Iterable[str], width: int | None, indent: int = 0) -> Iterator[str]:
    """Lines of a label and a text, which goes on below itself where it is too long.

    Args:
        lines: with texts from column 15 on.
        width: characters of a line; None for no end, where a program reads.
        indent: columns before each line.
    """
    margin = indent + _LABEL
    for line in lines:
        first, *more = [line]
        if width is not None and cell_len(printable(line)) > width - indent:
            first, *more = wrapped(printable(line[_LABEL:]), max(width - margin, 16)) or [""]
            first = line[:_LABEL] + first
        yield " " * indent + first
        yield from (" " * margin + one for one in more)


def number(count: float) -> str:
    """1234567 → ``1.23 M``."""
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:.3g}"


def factor_text(factor: tuple[int, int]) -> str:
    """``4``, or rows × columns where they differ: ``4×2``."""
    rows, columns = factor
    return f"{rows}" if rows == columns else f"{rows}×{columns}"


def grid_text(grid: tuple[int, int] | None, frames: int = 1) -> str:
    """Rows × columns, behind the frames of a video, or a dash where no grid is known."""
    ahead = f"{frames}×" if frames > 1 else ""
    return f"{ahead}{grid[0]}×{grid[1]}" if grid else "–"


def models_table(models: Sequence[KnownModel], width: int) -> Group:
    """Models that have a name."""
    headers = ("trained at", "key tokens", "parameters")
    columns = [Column("name", number=False), *map(Column, headers)]
    rows = [
        Row(
            (m.name, m.native_pixels, f"{m.native_kv_tokens:,}", f"{m.parameters / 1e6:,.0f} M"),
            sentence=f"{m.hub_id or 'in this package'} ({m.licence})",
        )
        for m in models
    ]
    return laid_out(columns, rows, width)


def sites_table(report: Report, width: int, *, every: bool = False) -> Group:
    """The sites of a report; cross-attention is one row unless `every` row is wanted."""
    shown = [s for s in report.sites if every or s.kind != "cross"]
    columns = [Column(h) for h in ("level", "grid (H×W)", "heads×dim", "key tokens", "factor")]
    columns += [Column("FLOPs"), Column("decision", number=False)]
    rows = [_site(site) for site in shown]
    if hidden := [s for s in report.sites if s not in shown]:
        share = sum(s.share for s in hidden)
        rows.append(
            Row(
                ("", "–", "", "", "1", f"{share:.1%}", "dense"),
                f"{len(hidden)} of cross-attention",
                "the keys are not the image's tokens (all rows: --all)",
            )
        )
    return laid_out(columns, rows, width, "module")


def _site(site: SiteReport) -> Row:
    tokens = f"{site.key_tokens:,}"
    if site.key_tokens_after != site.key_tokens:
        tokens += f" → {site.key_tokens_after:,}"
    sentence = site.reason
    if site.action == "rewritten":
        sentence = f"{site.sampling}; {sentence}"
    if site.kind != "self":
        sentence = f"{site.kind} attention; {sentence}"
    return Row(
        (
            str(site.level or ""),
            " + ".join(grid_text(one.grid, one.frames) for one in (site, *site.beside)),
            f"{site.heads}×{site.head_dim}",
            tokens,
            " + ".join(dict.fromkeys(factor_text(one.factor) for one in (site, *site.beside))),
            f"{site.share:.1%}",
            site.action,
        ),
        short(site.module or site.name),
        sentence,
        _STYLES.get(site.action, ""),
    )


def stops_table(report: Report, width: int) -> Group | None:
    """Where poolings stopped below projections that then run on all tokens; None if nowhere."""
    found = [(site, s) for site in report.sites for s in site.stops if s.extra_flops]
    if not found:
        return None
    whole = report.totals.flops
    columns = [Column("pooled", number=False), Column("below", number=False), Column("costs")]
    rows = [
        Row(
            (
                stop.operand,
                stop.node,
                f"{number(stop.extra_flops)}FLOP",
                f"{stop.extra_flops / whole if whole else 0.0:.2%}",
            ),
            short(site.module or site.name),
            stop.reason,
        )
        for site, stop in found
    ]
    return laid_out([*columns, Column("of the graph")], rows, width, "module")


def drift_table(drift: Drift, width: int, *, timed: bool = True) -> Group:
    """One row a site, one column a timestep (none where there is no time), the whole plan last."""
    times = [f"t={t:g}" for t in drift.timesteps] if timed else []
    headers = ("level", "grid", "factor", "mean" if timed else "error", *times)
    rows = [
        Row(
            (
                str(site.level),
                grid_text(site.grid),
                factor_text(site.factor),
                *_errors(site.output or site.local)[: 1 + len(times)],
            ),
            f"{site.module or site.name} ({site.sampling})",
        )
        for site in drift.sites
    ]
    rows.append(
        Row(
            ("", "", "", *_errors(drift.total)[: 1 + len(times)]),
            "all sites together",
            style="bold",
        )
    )
    return laid_out([Column(h) for h in headers], rows, width, "module")


def _errors(values: Sequence[float]) -> list[str]:
    mean = sum(values) / len(values) if values else 0.0
    return [f"{v:.2e}" for v in (mean, *values)]


def short(module: str) -> str:
    """A module's path with the longest of diffusers' words abbreviated."""
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
