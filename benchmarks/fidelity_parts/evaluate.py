"""From pictures to numbers: one row a setting and size."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fidelity_parts.harness import Drawn
from fidelity_parts.intervals import interval, paired
from fidelity_parts.measures import Features, against_dense, kid, kid_change, perceptual
from fidelity_parts.model import Pair
from fidelity_parts.settings import Setting

Array = Any


def evaluate(
    drawn: Mapping[tuple[int, str], Drawn],
    settings: Sequence[Setting],
    pairs: Sequence[Pair],
    features: Features | None,
    real: Mapping[int, Array],
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Rows for tables and plots, each with its values pair by pair.

    Args:
        real: by side, features of real pictures of that size, for KID; may be empty.
    """
    rows: list[dict[str, Any]] = []
    for side in dict.fromkeys(side for side, _ in drawn):
        dense = drawn[side, "dense"]
        done = [p for p in pairs if p.key in dense.pictures]
        prompts = [p.prompt for p in done]
        reference = [dense.pictures[p.key] for p in done]
        dense_features = features(reference) if features is not None else None
        for setting in (Setting("dense"), *settings):
            if (side, setting.name) not in drawn:
                continue
            found = drawn[side, setting.name]
            if setting.sampling == "other seed":
                pictures = _other_seed(done, dense)
                if pictures is None:
                    continue
            else:
                pictures = [found.pictures[p.key] for p in done]
            values = [against_dense(a, b) for a, b in zip(pictures, reference, strict=True)]
            row: dict[str, Any] = {
                "side": side, "name": setting.name, "kind": setting.kind,
                "factors": setting.factors, "sampling": setting.sampling,
                "dense_last": setting.dense_last, "pairs": len(done),
                "flops": found.flops, "attention_flops": found.attention_flops,
                # The mean: of late dense steps there are only some.
                "seconds": statistics.fmean(found.seconds) if found.seconds else None,
            }  # fmt: skip
            if features is not None and dense_features is not None:
                pooled, maps = features(pictures)
                for one, a, b in zip(values, maps, dense_features[1], strict=True):
                    one["perceptual"] = perceptual(a, b)
                if side in real:
                    row["kid"] = kid(pooled, real[side])
                    row["kid_change"] = kid_change(pooled, dense_features[0], real[side], prompts)
            row["values"] = {name: [v[name] for v in values] for name in values[0]}
            row["mean"] = {name: interval(v, prompts) for name, v in row["values"].items()}
            hpf = paired(row["values"]["hpf"], row["values"]["hpf_dense"], prompts)
            row["hpf_ratio"] = hpf["ratio"]
            row["hpf_interval"] = (hpf["low"], hpf["high"])
            rows.append(row)
            say(f"measured {side} px {setting.name}")
        _compare([row for row in rows if row["side"] == side], prompts)
    return rows


def _other_seed(pairs: Sequence[Pair], dense: Drawn) -> list[Any] | None:
    """For each pair the dense picture of the same prompt with the next seed."""
    by_prompt: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_prompt.setdefault(pair.prompt, []).append(pair)
    if any(len(group) < 2 for group in by_prompt.values()):
        return None
    chosen: list[Any] = []
    for pair in pairs:
        group = by_prompt[pair.prompt]
        chosen.append(dense.pictures[group[(group.index(pair) + 1) % len(group)].key])
    return chosen


def _compare(rows: Sequence[dict[str, Any]], prompts: Sequence[str]) -> None:
    """Each rewrite of one size against plain nearest with the same factors."""
    base = {
        (r["factors"], r["dense_last"]): r
        for r in rows
        if r["kind"] == "todo" and r["sampling"] == "nearest"
    }
    for row in rows:
        other = base.get((row["factors"], row["dense_last"]))
        if row["kind"] == "todo" and other is not None and other is not row:
            row["against_nearest"] = paired(row["values"]["mse"], other["values"]["mse"], prompts)


def real_pictures(folder: Path, side: int, limit: int = 512) -> list[Array]:
    """The pictures in a folder, (side, side, 3) in [0, 1], on white where they are transparent.

    Where the folder has a folder named by the side, its pictures are taken; else all are resized.

    Raises:
        SystemExit: there are fewer than two.
    """
    from PIL import Image

    folder = folder / str(side) if (folder / str(side)).is_dir() else folder
    pictures: list[Any] = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in (".png", ".webp", ".jpg", ".jpeg") and len(pictures) < limit:
            with Image.open(path) as opened:
                rgba = opened.convert("RGBA")
            white = Image.new("RGBA", rgba.size, "white")
            flat = Image.alpha_composite(white, rgba).convert("RGB").resize((side, side))
            pictures.append(np.asarray(flat, np.float32) / 255)
    if len(pictures) < 2:
        raise SystemExit(f"{folder} holds no pictures: give a folder of at least two.")
    return pictures
