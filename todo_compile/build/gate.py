"""A gate: what was built draws against the dense model before anything is published.

    compile --model M --res 1024 --out bundle/ --plan plan.json --gate drift=1e-3

The same pipeline draws the same prompts and seeds twice: with the model's own components, dense, in
torch and fp32; then with what was built in their places. ONNX files are run by onnxruntime. What
that cannot run here (engines, bf16, attention scores beyond the memory) is judged by the rewritten
graphs in torch, before the work where that is known, and the verdict says so.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from todo_compile import models, packages
from todo_compile.build import verification
from todo_compile.build.model_job import ModelJob
from todo_compile.bundle.verdict import Verdict
from todo_compile.errors import ConfigError, GateError, ModelError
from todo_compile.models.components import pipeline_folder
from todo_compile.models.trust import INDEX
from todo_compile.runtime.files import OpenPhase
from todo_compile.runtime.how import How, Wrapping
from todo_compile.runtime.onnx_session import choose_device
from todo_compile.runtime.torch_pipelines import torch_pipeline
from todo_compile.tuning.prompts import read_prompts, split
from todo_compile.tuning.statistics import measure
from todo_compile.tuning.wishes import Budget

if TYPE_CHECKING:
    from todo_compile.build.job import Job
    from todo_compile.build.request import BuildRequest
    from todo_compile.bundle.manifest import Manifest
    from todo_compile.bundle.plan import TunedPlan
    from todo_compile.progress import Progress
    from todo_compile.runtime.files import Output

_SEED = 20_000
"""First seed; tuning draws with others."""
_HELP = "Give drift=1e-3 or psnr=30, and if need be ,pairs=16,steps=20,guidance=7.5."


@dataclass(frozen=True, slots=True)
class Gate:
    """What pictures must keep.

    Args:
        drift: most mean squared error, for the upper end of its 95 % interval.
        pairs: of prompt and seed.
        steps, guidance: of the drawings.
    """

    drift: float
    pairs: int = 8
    steps: int = 8
    guidance: float = 3.0

    @classmethod
    def of(cls, request: BuildRequest, plan: TunedPlan | None) -> Gate | None:
        """The gate that a request asks for, drawn as its plan was if it does not say how.

        Raises:
            ConfigError: it is none.
        """
        if request.gate is None:
            return None
        first, *more = request.gate.split(",")
        budget = Budget.parse(first)
        if budget.kind != "drift":
            raise ConfigError(f"{first} is not a gate for pictures.", remedy=_HELP)
        values: dict[str, Any] = {}
        for part in more:
            found = re.fullmatch(r"\s*(pairs|steps|guidance)\s*=\s*(\d{1,6}(\.\d{1,6})?)\s*", part)
            if found is None or found[1] in values:
                raise ConfigError(f"{part!r:.60} is not a setting of a gate.", remedy=_HELP)
            values[found[1]] = float(found[2])
        settings = {} if plan is None else plan.settings
        for name in ("steps", "guidance"):
            known = settings.get(name)
            if isinstance(known, (int, float)) and math.isfinite(known):
                values.setdefault(name, known)
        made = replace(cls(budget.value), **values)
        if any(count < 1 or count != int(count) for count in (made.pairs, made.steps)):
            raise ConfigError("A gate has a whole number of pairs and steps.", remedy=_HELP)
        return replace(made, pairs=int(made.pairs), steps=int(made.steps))

    def __str__(self) -> str:
        return (
            f"drift={self.drift:.6g},pairs={self.pairs},steps={self.steps},"
            f"guidance={self.guidance:g}"
        )


def gate_of(job: Job) -> Gate | None:
    """The gate of a job for a file."""
    return Gate.of(job.request, None if job.planned is None else job.planned.plan)


def as_model(job: Job) -> ModelJob:
    """A gated job: of a model by name, since the option is for those alone."""
    assert isinstance(job, ModelJob)
    return job


def check_gate(request: BuildRequest, plan: TunedPlan | None, jobs: Sequence[ModelJob]) -> None:
    """Refuse a gate that could not be judged, before any work.

    Raises:
        ConfigError: it is none, or there is nothing to judge.
        ModelError: the model is no pipeline that draws.
        MissingPackageError: what drawing needs is absent.
    """
    if Gate.of(request, plan) is None:
        return
    packages.need("generate", "A gate, which draws")
    judged = _judged(jobs)
    if not judged:
        raise ConfigError(
            "A text encoder is never downsampled: there is nothing for a gate to judge.",
            remedy="Leave --gate out.",
        )
    beside = {
        "--controlnet": request.controlnet, "--t2i-adapter": request.t2i_adapter,
        "--ip-adapter": request.ip_adapter,
    }  # fmt: skip
    if option := next((name for name, given in beside.items() if given), None):
        raise ConfigError(
            f"A gate draws from prompts alone, and {option} needs a picture too.",
            remedy="Leave one of them out.",
        )
    for job in judged:
        if job.weights.kind == "random":
            raise ConfigError(
                "Random weights draw noise, about which a gate can say nothing.",
                remedy="Leave --gate out, or give real weights.",
            )
        folder = pipeline_folder(job.source)
        if job.source.kind == "folder" and (folder is None or not (folder / INDEX).is_file()):
            raise ModelError(
                f"{request.model} is not the folder of a whole pipeline, and a gate draws.",
                remedy=f"Give the folder that has the {INDEX}, or leave --gate out.",
            )


def why_not_onnxruntime(jobs: Sequence[Job]) -> str:
    """Why what will be built cannot draw in onnxruntime on this machine; "" where it can."""
    formats = {job.format for job in jobs}
    if "tensorrt" in formats:
        return "engines run on their GPU alone"
    if formats != {"onnx"}:
        return "the output is no ONNX file"
    if any(job.precision == "bf16" for job in jobs):
        return "onnxruntime's CPU provider has no bf16 kernels"
    return ""


def beyond_memory(manifests: Sequence[Manifest]) -> str:
    """Why finished ONNX files cannot draw here: onnxruntime keeps all scores of a site."""
    sites = [site for manifest in manifests for site in manifest.sites]
    scores = [s["heads"] * s["query_tokens"] * s["key_tokens_after"] for s in sites]
    # In fp32, before and after the softmax.
    short = 2 * 4 * max(scores, default=0) > verification.available_bytes() // 2
    return "onnxruntime's attention scores need more memory than is free" if short else ""


def judge(
    gate: Gate,
    phases: Sequence[tuple[float, ModelJob]],
    outputs: Mapping[str, Output] | None,
    progress: Progress,
    *,
    why: str = "",
) -> Verdict:
    """Draw dense and with what was built.

    Args:
        gate: to keep.
        phases: (start, job) of every phase of every component, for one resolution.
        outputs: finished files by the name of the job's; None runs the rewritten graphs in torch.
        progress: receives a step.
        why: torch runs them.

    Raises:
        GateError: the drift exceeds the gate.
        TodoError: the pipeline cannot be loaded, or not draw.
    """
    from todo_compile.tuning.drawing import Sampling, call_pipeline, for_measuring, make_pairs

    job = phases[0][1]
    assert job.request.model is not None
    source = models.resolve(job.request.model)
    device = None if outputs is None else str(choose_device(None))
    sampling = Sampling(gate.steps, gate.guidance)
    with progress.step("gate") as step:
        pipeline = torch_pipeline(source, precision="fp32", device=device)
        for_measuring(pipeline)
        _own_weights(pipeline, phases)
        _, held = split(read_prompts(None, pipeline_folder(source), job.resolution))
        pairs = make_pairs(held, gate.pairs, _SEED)
        done = 0

        def draw(what: str) -> list[Any]:
            nonlocal done
            found: list[Any] = []
            for pair in pairs:
                step.update(done, 2 * len(pairs), what)
                begun = time.perf_counter()
                found += call_pipeline(pipeline, [pair], sampling, job.resolution)
                done += 1
                if done == 1 and (seconds := time.perf_counter() - begun) * len(pairs) > 15:
                    progress.info(f"gate           about {seconds * len(pairs) / 30:.0f} min")
            return found

        dense = draw("dense")
        _put_in_place(pipeline, phases, outputs, device, sampling.rows)
        drawn = draw("built")
        verdict = Verdict(
            gate=str(gate),
            resolution=str(job.resolution),
            measured=measure(drawn, dense, [pair.prompt for pair in pairs]),
            scheduler=type(pipeline.scheduler).__name__,
            runner="torch" if outputs is None else "onnxruntime",
            why=why,
        )
        step.note(verdict.figures())
    if verdict.measured.drift.high > gate.drift:
        raise GateError(
            f"The gate {gate} is not kept at {job.resolution}: {verdict.figures()}. The upper end "
            "of the interval counts.",
            remedy="Nothing was published. Take gentler factors or a tuned plan, more pairs if the "
            "interval is wide, or another gate.",
        )
    return verdict


def _judged(jobs: Sequence[ModelJob]) -> list[ModelJob]:
    return [job for job in jobs if not job.source.component.startswith("text_encoder")]


def _own_weights(pipeline: Any, phases: Sequence[tuple[float, ModelJob]]) -> None:
    """Give the dense pipeline the weights that were built, where those are not the folder's own."""
    import torch

    from todo_compile.runtime.pipeline import place_of

    for component in dict.fromkeys(job.source.component for _, job in phases):
        job = next(job for _, job in phases if job.source.component == component)
        if job.loras or job.request.weights != "auto":
            loaded = models.load(
                job.source, job.weights, dtype=torch.float32, hashed=False, loras=job.loras
            )
            setattr(pipeline, place_of(component), loaded.module.to(pipeline.device))


def _put_in_place(
    pipeline: Any,
    phases: Sequence[tuple[float, ModelJob]],
    outputs: Mapping[str, Output] | None,
    device: str | None,
    rows: int,
) -> None:
    """Let the pipeline run what was built."""
    from todo_compile.runtime.loading import phased, wrap_phases
    from todo_compile.runtime.pipeline import place_of
    from todo_compile.runtime.switching import PhasedDenoiser
    from todo_compile.runtime.variants import CapturedComponent

    for component in dict.fromkeys(job.source.component for _, job in phases):
        own = [(start, job) for start, job in phases if job.source.component == component]
        if outputs is not None:
            opened = [OpenPhase(start, (outputs[job.out.name],)) for start, job in own]
            part = wrap_phases(opened, Wrapping(How(device=device), cast=True))
        else:
            first = own[0][1]
            own_rows = (
                rows
                if first.source.pipeline_defaults is None
                else first.source.pipeline_defaults.batch
            )
            batch = 1 if component == "vae_decoder" else own_rows
            captured = CapturedComponent(pipeline, first.source, first.resolution, batch=batch)
            made = {job.options: captured.variant(job.options)[0] for _, job in own}
            part = phased([made[job.options] for _, job in own], [start for start, _ in own])
        setattr(pipeline, place_of(component), part)
        if isinstance(part, PhasedDenoiser):
            part.follow(pipeline)
