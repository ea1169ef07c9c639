"""Drawing for `tune`: one pipeline, many plans, the same prompts and seeds.

Pictures are kept by plan and pair, so that nothing is drawn twice in one run.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from todo_compile.capture.recording.arguments import FROM_TEXT
from todo_compile.drift.meter import DriftMeter
from todo_compile.errors import ConfigError, InputError, TodoError, first_line
from todo_compile.options import PlanOptions
from todo_compile.passes.plan.single import numbered
from todo_compile.runtime.loading import adapt
from todo_compile.runtime.switching import PhasedDenoiser
from todo_compile.runtime.torch_pipelines import torch_pipeline
from todo_compile.runtime.variants import CapturedComponent, GraphSession
from todo_compile.tuning.plan_file import Phase, Site

if TYPE_CHECKING:
    from todo_compile.models import Resolution, Source

OFF = PlanOptions(factors=())
_KEPT = 96
_GIVEN = {
    "prompt", "num_inference_steps", "guidance_scale", "generator", "output_type", "height",
    "width",
}  # fmt: skip
_MORE = {"image", "image_embeds", "video", "control_image", "num_frames"}
Key = tuple[tuple[float, PlanOptions], ...]
"""What tells plans apart: start and options of every phase."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt and a seed."""

    prompt: str
    seed: int


@dataclass(frozen=True, slots=True)
class Sampling:
    """How pictures are drawn; part of what scores are valid for.

    Args:
        steps, guidance, scheduler: as for `generate`.
        batch: pictures at once.
    """

    steps: int = 8
    guidance: float = 3.0
    scheduler: str | None = None
    batch: int = 1

    @property
    def rows(self) -> int:
        """Batch of the denoiser."""
        return self.batch * (2 if self.guidance > 1 else 1)


class _Heard:
    """A session that tells of every call."""

    def __init__(self, inner: GraphSession, hear: Callable[[Mapping[str, Tensor]], None]) -> None:
        self._inner, self._hear = inner, hear
        self.device, self.inputs, self.outputs = inner.device, inner.inputs, inner.outputs

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self._hear(feeds)
        return self._inner.run(feeds)


class Studio:
    """A pipeline whose denoiser changes its plan from picture to picture.

    Args:
        source: of the denoising model of a whole pipeline.
        resolution: of the pictures.
        sampling: how they are drawn.
        device: as for `torch_device`.
        precision: of all components.

    Attributes:
        captured: the denoiser.
        component: its name in the pipeline.
        sites: those that a factor can be given to, by the names of plan files.
        names: site → its name in the graph.
        dense_flops: of one call of the dense denoiser.

    Raises:
        TodoError: the pipeline cannot be loaded, or its denoiser not be captured.
    """

    def __init__(
        self,
        source: Source,
        resolution: Resolution,
        sampling: Sampling,
        *,
        device: str | None = None,
        precision: str = "fp32",
    ) -> None:
        self.resolution, self.sampling = resolution, sampling
        self.pipeline = torch_pipeline(
            source, precision=precision, scheduler=sampling.scheduler, device=device
        )
        for_measuring(self.pipeline)
        self.captured = CapturedComponent(self.pipeline, source, resolution, batch=sampling.rows)
        self.component: Any = self.captured.source.component
        self._sessions: dict[PlanOptions, GraphSession] = {}
        self._flops: dict[PlanOptions, int] = {}
        self._pictures: dict[tuple[Key, Pair], Any] = {}
        self._meter: DriftMeter | None = None
        self.seconds = 0.0
        self.drawn = 0
        _, report = self.captured.session(OFF)
        self.dense_flops = report.totals.flops
        own = [s for s in report.sites if s.kind != "unknown"]
        prefix = f"{self.component}."
        paths = numbered([s.module.removeprefix(prefix) for s in own])
        free = [
            (site, path)
            for site, path in zip(own, paths, strict=True)
            if site.action == "dense"
            and site.kind in ("self", "joint")
            and site.grid is not None
            and site.grid[0] * site.grid[1] > 1
            and site.reason.startswith("factors are off")
        ]
        self.sites = tuple(
            Site(name=path or site.name, rows=site.grid[0], columns=site.grid[1])
            for site, path in free
            if site.grid is not None
        )
        self.names = {path or site.name: site.name for site, path in free}
        if not self.sites:
            raise ConfigError(
                "There is no attention here that could be downsampled.",
                remedy="`todo-compile plan --all` says why, site by site.",
            )

    @property
    def meter(self) -> DriftMeter:
        """Measures single sites on recorded calls."""
        if self._meter is None:
            # Every site with every candidate is met again at every step.
            plans = 32 * len(self.sites)
            self._meter = DriftMeter(self.captured.wrapper, self.captured.args, plans=plans)
        return self._meter

    def flops(self, options: PlanOptions) -> int:
        """Of one call of the denoiser under a plan; the batch's is the captured one's.

        Raises:
            ConfigError: options that this model cannot follow.
        """
        if options not in self._flops:
            self._session(options)
        return self._flops[options]

    def record(self, pairs: Sequence[Pair]) -> list[tuple[float, tuple[Tensor, ...]]]:
        """The dense denoiser's inputs at every call while these pairs are drawn.

        Returns:
            (share of the schedule before the call, inputs in order) for every call.
        """
        calls: list[tuple[float, tuple[Tensor, ...]]] = []
        names = self.captured.input_names

        def hear(feeds: Mapping[str, Tensor]) -> None:
            at = phased.done(feeds["timestep"])
            calls.append((at, tuple(feeds[name].clone() for name in names)))

        part = adapt(_Heard(self._session(OFF), hear), self.captured.origin)
        phased = PhasedDenoiser([part], [0.0])
        pictures = self._call(phased, pairs)
        for pair, picture in zip(pairs, pictures, strict=True):
            self._pictures[((0.0, OFF),), pair] = picture
        return calls

    def draw_dense(self, pairs: Sequence[Pair]) -> list[Any]:
        """As `draw`, of the dense model."""
        return self.draw([Phase(start=0.0, sites={}, flops=self.dense_flops)], pairs)

    def draw(
        self,
        phases: Sequence[Phase],
        pairs: Sequence[Pair],
        tick: Callable[[int], None] | None = None,
    ) -> list[Any]:
        """Pictures (H, W, 3), float in [0, 1], one for each pair.

        Args:
            phases: the plan.
            pairs: prompts and seeds.
            tick: told after every batch how many pictures were drawn or found.

        Raises:
            InputError: the pipeline cannot draw from a prompt alone.
        """
        key = tuple((phase.start, phase.options) for phase in phases)
        missing = [pair for pair in pairs if (key, pair) not in self._pictures]
        size = self.sampling.batch
        for start in range(0, len(missing), size):
            group = missing[start : start + size]
            full = [*group, *[group[-1]] * (size - len(group))]  # the graph has one batch
            denoiser = PhasedDenoiser(
                [adapt(self._session(p.options), self.captured.origin) for p in phases],
                [p.start for p in phases],
            )
            pictures = self._call(denoiser, full)
            for pair, picture in zip(group, pictures, strict=False):
                self._pictures[key, pair] = picture
            if tick is not None:
                tick(len(group))
        if tick is not None and len(missing) < len(pairs):
            tick(len(pairs) - len(missing))
        return [self._pictures[key, pair] for pair in pairs]

    def _session(self, options: PlanOptions) -> GraphSession:
        found = self._sessions.get(options)
        if found is None:
            found, report = self.captured.session(options)
            self._flops[options] = report.totals.flops_after
            if len(self._sessions) >= _KEPT:
                self._sessions.pop(next(iter(self._sessions)))
            self._sessions[options] = found
        return found

    def _call(self, denoiser: PhasedDenoiser, pairs: Sequence[Pair]) -> list[Any]:
        setattr(self.pipeline, self.component, denoiser)
        denoiser.follow(self.pipeline)
        start = time.perf_counter()
        pictures = call_pipeline(self.pipeline, pairs, self.sampling, self.resolution)
        self.seconds += time.perf_counter() - start
        self.drawn += len(pairs)
        return pictures


def for_measuring(pipeline: Any) -> None:
    """No bar, and no safety checker: it blackens pictures, and two black ones are equal."""
    pipeline.set_progress_bar_config(disable=True)
    if getattr(pipeline, "safety_checker", None) is not None:
        pipeline.safety_checker = None


def call_pipeline(
    pipeline: Any, pairs: Sequence[Pair], sampling: Sampling, resolution: Resolution
) -> list[Any]:
    """Pictures (H, W, 3), float in [0, 1], one for each pair, in one call.

    Raises:
        InputError: the pipeline cannot draw from a prompt alone, or draws no numbers.
    """
    import numpy as np

    known = inspect.signature(type(pipeline).__call__).parameters
    # PixArt would draw another size and enlarge it.
    binning = {"use_resolution_binning": False} if "use_resolution_binning" in known else {}
    try:
        found = pipeline(
            prompt=[pair.prompt for pair in pairs],
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance,
            generator=[torch.Generator("cpu").manual_seed(pair.seed) for pair in pairs],
            output_type="np",
            height=resolution.height,
            width=resolution.width,
            **binning,
        )
    except TodoError:
        raise
    except (ValueError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise InputError(
            f"{type(pipeline).__name__} cannot draw: {first_line(error)}",
            remedy="Pipelines that draw from a prompt alone can be measured; try other steps, "
            "another guidance or scheduler.",
        ) from error
    pictures = [np.asarray(one, dtype=np.float32) for one in found.images]
    if not all(bool(np.isfinite(one).all()) for one in pictures):
        raise InputError(
            f"{type(pipeline).__name__} draws NaN or infinity: nothing can be measured.",
            remedy="Give --precision fp32, or look whether the weights are damaged.",
        )
    return pictures


def drawn_from_prompts(name: str) -> bool:
    """Whether a pipeline of diffusers draws one picture from what `call_pipeline` gives.

    Args:
        name: of its class.
    """
    import diffusers

    cls = getattr(diffusers, name, None)
    known = {} if cls is None else inspect.signature(cls.__call__).parameters
    return known.keys() >= _GIVEN and (name in FROM_TEXT or not _MORE & known.keys())


def make_pairs(prompts: Sequence[str], count: int, first_seed: int) -> list[Pair]:
    """`count` pairs, every prompt once before any twice, each with a seed of its own.

    Raises:
        ConfigError: there are no prompts.
    """
    if not prompts:
        raise ConfigError("There are no prompts to draw.", remedy="Write one a line.")
    return [Pair(prompts[i % len(prompts)], first_seed + i) for i in range(count)]
