"""`todo_compile.tune`: measure, choose, draw, and vouch for what was chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from todo_compile import models
from todo_compile.bundle.files import check_target
from todo_compile.bundle.plan import TunedPlan
from todo_compile.choices import choice_text, parse_candidates
from todo_compile.errors import ConfigError, ModelError, given_path
from todo_compile.models.components import pipeline_folder
from todo_compile.models.trust import INDEX
from todo_compile.options import PlanOptions, SiteChoice
from todo_compile.packages import need
from todo_compile.precision import dtype_of
from todo_compile.progress import Progress, SilentProgress
from todo_compile.runtime.torch_pipelines import check_one_stage, random_scheduler
from todo_compile.tuning.choosing import Problem
from todo_compile.tuning.prompts import read_prompts, split
from todo_compile.tuning.scores import Scores
from todo_compile.tuning.wishes import (
    DEFAULT_CANDIDATES,
    MAX_PARTS,
    QUICK_CANDIDATES,
    Budget,
    Effort,
    disabled,
)

if TYPE_CHECKING:
    from todo_compile.models import Source
    from todo_compile.models.weights import WeightsChoice
    from todo_compile.tuning.studio import Studio

RANDOM = (
    "The weights are random: scores, drift and the choice between factors say nothing about "
    "pictures. What is real is the time, the memory and the FLOPs."
)


QUICK = Effort(fit=4, pairs=6, parts=4, curve=4, rounds=4)


def tune(
    model: str,
    *,
    res: str | int,
    budget: str,
    candidates: str | Sequence[str] | None = None,
    phases: int = 3,
    dense_last: bool = False,
    disable: Sequence[str] = (),
    prompts: str | Path | Sequence[str] | None = None,
    scores: str | Path | None = None,
    steps: int = 8,
    guidance: float = 3.0,
    scheduler: str | None = None,
    batch: int | None = None,
    fit: int | None = None,
    pairs: int | None = None,
    parts: int | None = None,
    weights: str = "auto",
    precision: str = "fp32",
    device: str | None = None,
    quick: bool = False,
    progress: Progress | None = None,
) -> TunedPlan:
    """The plan that fits a budget, measured by drawing, with all that it was chosen from.

    Every site gets a candidate in every phase of the schedule, so that the predicted drift is least
    for a speed, or the speed the most for a drift; solved exactly. Plans are then drawn on held-out
    prompts and seeds, dense against tuned, and compared with the uniform ones: no uniform plan is
    both faster and closer than what is returned.

    Args:
        model: whose whole pipeline is on this machine or in the hub: a folder, a checkpoint's
            file, ``demo``, a hub id.
        res: side in pixels, or ``"WIDTHxHEIGHT"``.
        budget: ``"drift=1e-3"`` (mean squared error of pixel values 0 to 1; the upper end of its
            interval is held to it) or ``"speedup=1.5"`` (FLOPs of the denoiser over all steps).
        candidates: sampling and factors, one text or several; None takes ``"nearest:2,3,4,8"``
            (``"nearest:2,4,8"`` if `quick`).
        phases: most parts of the schedule that may differ.
        dense_last: the last phase is dense.
        disable: globs of sites that stay dense, ``"mid*"``.
        prompts: a file with one a line, or the prompts; None takes the model's own.
        scores: file that keeps what was measured; valid scores in it are taken up.
        steps, guidance, scheduler: of the drawings, as for ``generate``.
        batch: pictures at once; None takes 4 below 1024 latent cells, else 1.
        fit: pairs that scores are measured with; None takes 8 (4 if `quick`).
        pairs: held-out pairs; None takes 16 (6 if `quick`).
        parts: most parts of the schedule that scores tell apart; None takes 8 (4 if `quick`).
        weights: ``auto``, the pipeline's own; ``random`` or ``random:SEED`` of a registered model
            shows what a run takes, and its plan says that it means nothing for pictures.
        precision, device: as for ``generate``.
        quick: fewer pairs and parts: a first look.
        progress: receives steps and remarks; None is silent.

    Raises:
        ConfigError: a wish cannot be met or understood.
        ModelError: it is no pipeline.
        MissingPackageError: scipy, diffusers or transformers is absent.
    """
    wished = Budget.parse(budget)
    if candidates is None:
        candidates = QUICK_CANDIDATES if quick else DEFAULT_CANDIDATES
    wanted = parse_candidates([candidates] if isinstance(candidates, str) else list(candidates))
    own = QUICK if quick else Effort()
    effort = replace(
        own, fit=fit or own.fit, pairs=pairs or own.pairs, parts=min(parts or own.parts, MAX_PARTS)
    )
    choice = models.WeightsChoice.parse(weights)
    need("tune", "Choosing a plan")
    need("generate", "Drawing to verify a plan")
    _check_numbers(phases, dense_last, steps, (batch, fit, pairs, parts), guidance)
    resolution = models.Resolution.parse(res)
    source, folder = _pipeline(model, choice, resolution)
    if source.pipeline_defaults is not None:
        if batch not in (None, 1):
            raise ConfigError(
                f"A {source.pipeline} is drawn one picture at a time.", remedy="Leave --batch out."
            )
        batch = 1
    elif batch is None:
        cells = resolution.height * resolution.width // source.vae_scale**2
        batch = 4 if cells < 1024 else 1
    if prompts is None or isinstance(prompts, (str, Path)):
        file = None if prompts is None else given_path(prompts, "prompts")
        lines = read_prompts(file, folder, resolution)
    else:
        lines = list(dict.fromkeys(prompts))
    from todo_compile.tuning.drawing import Sampling, make_pairs
    from todo_compile.tuning.filling import candidate_texts, fill_scores
    from todo_compile.tuning.studio import Studio

    place = None if scores is None else given_path(scores, "scores")
    if place is not None:
        check_target(place)
    progress = progress or SilentProgress()
    random = choice.kind == "random"
    if random:
        progress.warn(RANDOM)
    with progress.step("model"):
        found = models.find_weights(source, choice, dtype=dtype_of(precision))
        digest = models.weights_hash(found)
        studio = Studio(
            source,
            resolution,
            Sampling(steps, guidance, scheduler, batch),
            device=device,
            precision=precision,
            seed=choice.seed if random else None,
        )
    fit_prompts, held_prompts = split(lines)
    fitted = make_pairs(fit_prompts, -(-effort.fit // batch) * batch, 0)
    held = make_pairs(held_prompts, effort.pairs, 10_000)
    names = [site.name for site in studio.sites]
    off = disabled(names, disable)
    options, saved = allowed(studio, wanted, off)
    told = schedule_parts(steps, effort.parts)
    key: dict[str, Any] = {
        "model": Path(source.identifier).name if source.kind == "folder" else source.identifier,
        "weights": digest,
        "resolution": str(resolution),
        "precision": precision,
        "steps": steps,
        "guidance": guidance,
        "scheduler": type(studio.pipeline.scheduler).__name__,
        "parts": [start for start, _ in told],
        "pairs": [[pair.prompt, pair.seed] for pair in fitted],
        "candidates": {site: [choice_text(c) for c in row] for site, row in options.items()},
    }
    known = Scores.load(place, key, strict=True)
    fill_scores(studio, known, fitted, options, told, place, effort, held, progress)
    starts, lengths = [s for s, _ in told], [n for _, n in told]
    problem = Problem(
        options=options,
        saved=saved,
        losses=known.losses(list(options), candidate_texts(options), starts),
        parts=starts,
        lengths=lengths,
        dense_flops=studio.dense_flops,
        phases=phases,
        dense_last=dense_last,
    )
    from todo_compile.tuning.search import Search

    search = Search(studio, problem, held, progress)
    chosen, curve, uniform, notes = search.run(wished, effort.curve, effort.rounds)
    settings = {
        **{k: v for k, v in key.items() if k not in ("pairs", "candidates", "model", "weights")},
        "candidates": [choice_text(c) for c in wanted],
        "phases": phases,
        "dense_last": dense_last,
        "disabled": sorted(off),
        "fit_pairs": len(fitted),
        "held_out_pairs": len(held),
        "held_out_prompts": len({pair.prompt for pair in held}),
        "quick": quick,
        **({} if (call := studio.captured.origin.call) is None else {"time": call["time"]}),
    }
    return TunedPlan(
        model=key["model"],
        component=studio.component,
        weights=digest,
        resolution=str(resolution),
        budget=str(wished),
        settings=settings,
        cost="FLOPs of the denoiser, mean over the steps",
        sites=studio.sites,
        dense_flops=studio.dense_flops,
        chosen=chosen,
        curve=curve,
        uniform=uniform,
        notes=(RANDOM, *notes) if random else notes,
    )


def _check_numbers(
    phases: int, dense_last: bool, steps: int, counts: Sequence[int | None], guidance: float
) -> None:
    from todo_compile.runtime.generate import check_settings

    check_settings(steps, guidance, 0)
    if not 1 <= phases <= MAX_PARTS:
        raise ConfigError(f"{phases} phases are not possible.", remedy=f"Give 1 to {MAX_PARTS}.")
    if dense_last and phases < 2:
        raise ConfigError(
            "A dense last phase needs another one before it.", remedy="Give --phases 2 or more."
        )
    if any(count is not None and count < 1 for count in counts):
        raise ConfigError(
            "Batch, pairs and parts are counted from 1.", remedy="Give 1 or more of each."
        )


def _pipeline(
    model: str, choice: WeightsChoice, resolution: models.Resolution
) -> tuple[Source, Path | None]:
    """The denoising model of a whole pipeline, and its folder, if it has one.

    Raises:
        ModelError: it is a model without a pipeline: it could not draw; or its pipeline draws in
            several stages or not from prompts; or its weights are not the pipeline's own.
    """
    from todo_compile.capture.inputs import check_scheduled, with_pipeline_defaults
    from todo_compile.tuning.drawing import check_drawn

    if choice.kind == "path":
        raise ModelError(
            f"--weights {choice}: plans are chosen for the pipeline's own weights.",
            remedy="Put other weights into a copy of the pipeline's folder, and give that as "
            "--model.",
        )
    source = models.resolve_component(model)
    # Before weights are read.
    check_one_stage(source)
    check_drawn(source, "Tuning")
    check_scheduled(source, resolution, "A tuned plan")
    source = with_pipeline_defaults(source)
    folder = pipeline_folder(source)
    if choice.kind == "random":
        random_scheduler(source)
    if source.kind == "folder" and (folder is None or not (folder / INDEX).is_file()):
        raise ModelError(
            f"{model} is no folder of a whole pipeline, and a plan is verified by drawing.",
            remedy=f"Give the folder that has the {INDEX}.",
        )
    return source, folder


def schedule_parts(steps: int, most: int) -> list[tuple[float, float]]:
    """(share before it, share of the steps) of every part of a schedule of `steps`."""
    count = min(steps, most)
    bounds = [round(i * steps / count) for i in range(count + 1)]
    return [(a / steps, (b - a) / steps) for a, b in pairwise(bounds) if b > a]


def allowed(
    studio: Studio, wanted: Sequence[SiteChoice], off: frozenset[str]
) -> tuple[dict[str, tuple[SiteChoice, ...]], dict[tuple[str, str], int]]:
    """Site → candidates that its grid has room for and that save something; what each saves.

    Raises:
        ConfigError: no candidate is left.
    """
    options: dict[str, tuple[SiteChoice, ...]] = {}
    saved: dict[tuple[str, str], int] = {}
    for site in studio.sites:
        row: list[SiteChoice] = []
        for choice in wanted if site.name not in off else ():
            if choice[0] > site.rows or choice[1] > site.columns:
                continue
            alone = PlanOptions(factors=(), sites=((site.name, choice),))
            gain = studio.dense_flops - studio.flops(alone)
            if gain > 0:
                row.append(choice)
                saved[site.name, choice_text(choice)] = gain
        if row:
            options[site.name] = tuple(row)
    if not options:
        raise ConfigError(
            "No site has room for any of the candidates.",
            remedy="Give smaller factors, or a larger --res: `todo-compile plan` shows the grids.",
        )
    return options, saved
