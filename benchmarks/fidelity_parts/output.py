"""Tables and contact sheets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fidelity_parts.harness import Drawn
from fidelity_parts.model import Pair
from todo_compile import style


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """One table a size: mean [95 % interval, over prompts]."""
    lines: list[str] = []
    for side in dict.fromkeys(r["side"] for r in rows):
        here = [r for r in rows if r["side"] == side]
        lines += [
            f"### {side} px, {here[0]['pairs']} prompt × seed pairs",
            "",
            "| setting | MSE | PSNR | HPF / dense | SSIM | MS-SSIM | perceptual "
            "| KID to real (change) | MSE / nearest | attention FLOPs | FLOPs | step |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        dense: Mapping[str, Any] = next((r for r in here if r["kind"] == "dense"), {})
        for row in here:
            mean = row["mean"]
            low_high = "{:.2e} [{:.2e}, {:.2e}]".format(*mean["mse"])
            cells = [
                row["name"], low_high, f"{mean['psnr'][0]:.1f}", _hpf(row),
                _cell(mean, "ssim"), _cell(mean, "ms_ssim"), _cell(mean, "perceptual"),
                _kid(row), _ratio(row.get("against_nearest")),
                _less(dense, row, "attention_flops", "fewer"), _less(dense, row, "flops", "fewer"),
                _less(dense, row, "seconds", "faster"),
            ]  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _less(dense: Mapping[str, Any], row: Mapping[str, Any], name: str, word: str) -> str:
    """How much less than dense a row takes of something, or a dash."""
    if row["kind"] == "dense" or not (dense.get(name) and row.get(name)):
        return "–"
    return f"{dense[name] / row[name]:.2f}× {word}"


def _cell(mean: Mapping[str, Any], name: str) -> str:
    return f"{mean[name][0]:.4f}" if name in mean else "–"


def _hpf(row: Mapping[str, Any]) -> str:
    low, high = row["hpf_interval"]
    return f"{row['hpf_ratio']:.4f} [{low:.4f}, {high:.4f}]"


def _kid(row: Mapping[str, Any]) -> str:
    if "kid" not in row:
        return "–"
    change = row.get("kid_change")
    if change is None or row["kind"] == "dense":
        return f"{row['kid']:.4f}"
    return "{:.4f} ({:+.4f} [{:+.4f}, {:+.4f}])".format(row["kid"], *change)


def _ratio(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "–"
    p = f", p = {found['p']:.1e}" if found["p"] is not None else ""
    return f"{found['ratio']:.2f} [{found['low']:.2f}, {found['high']:.2f}]{p}"


def contact_sheet(
    drawn: Mapping[tuple[int, str], Drawn],
    side: int,
    pairs: Sequence[Pair],
    path: Path,
    limit: int = 6,
) -> None:
    """Two rows a setting, pictures of unlike prompts and below them their differences × 8."""
    from PIL import Image, ImageDraw

    names = [name for s, name in drawn if s == side and drawn[s, name].pictures]
    done = [p for p in pairs if p.key in drawn[side, "dense"].pictures]
    first = list({p.prompt: p for p in reversed(done)}.values())[::-1]  # one seed of each prompt
    shown = first[:: max(1, len(first) // limit)][:limit]
    cell, gap, label = min(side, 160), 6, 190
    font = style.letters(15)
    rows = 2 * len(names) - 1
    size = (label + (cell + gap) * len(shown), rows * cell + len(names) * gap)
    sheet = Image.new("RGB", size, style.PAPER)
    draw = ImageDraw.Draw(sheet)
    top = 0
    for name in names:
        note = "\n\nbelow: difference\nfrom dense × 8" if top else ""
        words = style.spelled(name.replace(", ", ",\n") + note, font)
        draw.multiline_text((4, top + 4), words, fill=style.INK, font=font)
        for column, pair in enumerate(shown):
            picture = np.asarray(drawn[side, name].pictures[pair.key], np.float32)
            dense = np.asarray(drawn[side, "dense"].pictures[pair.key], np.float32)
            layers = [picture]
            if name != "dense":
                layers.append((np.abs(picture - dense) * 8).clip(0, 1))
            for row, layer in enumerate(layers):
                image = Image.fromarray((layer * 255).round().astype(np.uint8)).resize((cell, cell))
                sheet.paste(image, (label + column * (cell + gap), top + row * cell))
        top += cell * (1 if name == "dense" else 2) + gap
    sheet.save(path, quality=72)
