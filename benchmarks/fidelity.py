r"""What downsampling does to pictures: dense against each setting, from the same seeds and prompts.

    python benchmarks/fidelity.py --quick
    python benchmarks/fidelity.py --run baseline --model ./my-sd15 --pairs 64
    python benchmarks/fidelity.py --run tradeoff --minutes 40
    python benchmarks/fidelity.py --run factors-2x \
        --prompts todo_compile/models/demo/prompts-patterns.txt --real build/training/pictures

Above its native size the demo model draws patterns, and is to be asked for them by that file of
prompts. Real pictures of both come from ``python -m training pictures --sides 128 256 512``.

What is measured is the compiler's own rewritten graph, captured at the size and batch. Pictures are
kept in ``build/fidelity`` and never drawn twice; a run that was stopped goes on where it was. Time
is bounded by ``--minutes``: settings then share fewer pairs, and the tables say how many.
Writes ``results/fidelity-RUN.json``, ``.md``, ``.png`` and a contact sheet for each size.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import DEMO, RESULTS, save
from fidelity_parts.evaluate import evaluate, real_pictures
from fidelity_parts.harness import Harness
from fidelity_parts.measures import Features
from fidelity_parts.model import Model, Pair
from fidelity_parts.origin import origin
from fidelity_parts.output import contact_sheet, markdown
from fidelity_parts.plots import plots
from fidelity_parts.redundancy import study
from fidelity_parts.settings import QUICK, RUNS, Setting

ROOT = Path(__file__).parent.parent
_START = time.monotonic()


def say(text: str) -> None:
    """Progress, with the time since the start."""
    print(f"[{time.monotonic() - _START:6.0f} s] {text}", flush=True)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", type=Path, default=DEMO, help="StableDiffusionPipeline folder")
    parser.add_argument("--run", choices=RUNS, default="baseline")
    parser.add_argument("--quick", action="store_true", help="few pairs and settings: minutes")
    parser.add_argument(
        "--prompts",
        type=Path,
        help="one a line; by default prompts.txt beside the model. For the demo model above its "
        "native size: todo_compile/models/demo/prompts-patterns.txt",
    )
    parser.add_argument(
        "--real", type=Path, help="folder of real pictures, or of a folder for each side, for KID"
    )
    parser.add_argument("--native", type=int, help="native side in pixels, if not the config's")
    parser.add_argument("--scales", help="multiples of the native side, e.g. 1,2")
    parser.add_argument("--pairs", type=int, help="prompt × seed pairs")
    parser.add_argument("--steps", type=int, help="of the sampler")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--batch", type=int, default=4, help="pairs drawn at once")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin nothing new after these")
    parser.add_argument("--only", help="settings by their names in the tables: a;b;…")
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "fidelity")
    parser.add_argument("--name", help="of the results; default: the run's")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def main() -> None:
    """Draw, measure, write."""
    given = arguments()
    if given.threads:
        torch.set_num_threads(given.threads)
    run = QUICK if given.quick else RUNS[given.run]
    name = given.name or f"fidelity-{'quick' if given.quick else given.run}"
    model = Model(given.model, device=given.device)
    native = given.native or model.native
    scales = tuple(int(s) for s in given.scales.split(",")) if given.scales else run.scales
    sides = [native * s for s in scales]
    settings = chosen(run.settings, given.only)
    pairs = make_pairs(model.prompts(given.prompts), given.pairs or run.pairs)
    steps = given.steps or run.steps
    say(f"{given.model.name}: {native} px native, sizes {sides}, {len(pairs)} pairs, {steps} steps")
    harness = Harness(
        model,
        given.cache,
        steps=steps,
        guidance=given.guidance,
        batch=min(given.batch, len(pairs)),
        deadline=time.monotonic() + 60 * given.minutes,
        say=say,
    )
    drawn = harness.draw(settings, sides, pairs)
    features, missing = load_features()
    if missing:
        say(f"no perceptual distance and KID: {missing}")
    pictures = {side: real_pictures(given.real, side) for side in sides} if given.real else {}
    real = {side: features(p)[0] for side, p in pictures.items()} if features else {}
    rows = evaluate(drawn, settings, pairs, features, real, say)
    similarity = study(model, pairs[: harness.batch], sides[0], steps, given.guidance)
    facts = {
        "steps": steps,
        "missing": missing,
        "left_out": harness.failures,
        "model": model.identity,
        "threads": torch.get_num_threads(),
        **origin(
            sys.argv[1:],
            ROOT,
            given.prompts or model.folder / "prompts.txt",
            given.real,
            {side: len(p) for side, p in pictures.items()},
        ),
    }
    write(name, given, rows, similarity, drawn, sides, pairs, facts)


def chosen(settings: Sequence[Setting], only: str | None) -> list[Setting]:
    """The settings that are called so, or all."""
    if only is None:
        return list(settings)
    wanted = [name.strip() for name in only.split(";")]
    known = [s.name for s in settings]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise SystemExit(f"No setting {'; '.join(unknown)} in this run. It has: {'; '.join(known)}")
    return [s for s in settings if s.name in wanted]


def make_pairs(prompts: list[str], count: int) -> list[Pair]:
    """Pairs with at least two seeds for each prompt (the other-seed control), prompts in order."""
    count = max(2, count + count % 2)
    used = prompts[: min(len(prompts), count // 2)]
    seeds = range(-(-count // len(used)))
    # Two seeds of every prompt before a third of any: a run that is cut short still has them all.
    ordered = sorted(
        ((seed // 2, index, seed) for index in range(len(used)) for seed in seeds),
    )
    return [Pair(used[index], 1000 * index + seed) for _, index, seed in ordered][:count]


def load_features() -> tuple[Features | None, str | None]:
    """The feature network, or why there is none."""
    try:
        return Features(), None
    except ImportError as error:
        return None, str(error)


def write(
    name: str,
    given: argparse.Namespace,
    rows: list[dict[str, Any]],
    similarity: dict[str, Any],
    drawn: Any,
    sides: list[int],
    pairs: list[Pair],
    facts: dict[str, Any],
) -> None:
    """All files of a run."""
    data = {
        **facts,
        "guidance": given.guidance,
        "batch": given.batch,
        "prompts": list(dict.fromkeys(p.prompt for p in pairs)),
        "rows": rows,
        "similarity": similarity,
    }
    path = save(name, data)
    text = markdown(rows)
    (RESULTS / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    plots(rows, similarity, RESULTS / f"{name}.png")
    for side in sides:
        contact_sheet(drawn, side, pairs, RESULTS / f"{name}-{side}px-sheet.jpg")
    print(text)
    say(f"wrote {path} and the .md and .png beside it")


if __name__ == "__main__":
    main()
