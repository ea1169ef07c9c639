"""Drawing for `tune`: one pipeline, many plans, the same prompts and seeds.

Pictures are kept by plan and pair, and dense calls by their inputs (`memory`), so that little is
done twice in one run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from todo_compile.bundle.plan_parts import Phase, Site
from todo_compile.drift.meter import DriftMeter
from todo_compile.errors import ConfigError
from todo_compile.options import PlanOptions
from todo_compile.passes.plan.single import numbered
from todo_compile.runtime.loading import adapt
from todo_compile.runtime.switching import PhasedDenoiser
from todo_compile.runtime.torch_pipelines import random_pipeline, torch_pipeline
from todo_compile.runtime.variants import CapturedComponent
from todo_compile.tuning.drawing import Pair, Sampling, call_pipeline, for_measuring
from todo_compile.tuning.memory import KeptPictures, RememberedSession

if TYPE_CHECKING:
    from todo_compile.models import Resolution, Source
    from todo_compile.runtime.session import Session

OFF = PlanOptions(factors=())
_KEPT = 96
Key = tuple[tuple[float, PlanOptions], ...]
"""What tells plans apart: start and options of every phase."""
DENSE: Key = ((0.0, OFF),)


class Studio:
    """A pipeline whose denoiser changes its plan from picture to picture.

    Args:
        source: of the denoising model of a whole pipeline.
        resolution: of the pictures.
        sampling: how they are drawn.
        device: as for `torch_device`.
        precision: of all components.
        seed: of random weights; None for the pipeline's own.

    Attributes:
        captured: the denoiser.
        component: its name in the pipeline.
        sites: those that a factor can be given to, by the names of plan files.
        names: site → its name in the graph.
        guidance: that the rows of a call are mixed with; 1 where that is not known.
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
        seed: int | None = None,
    ) -> None:
        self.resolution, self.sampling = resolution, sampling
        given: dict[str, Any] = {
            "precision": precision, "scheduler": sampling.scheduler, "device": device,
        }  # fmt: skip
        self.pipeline = (
            torch_pipeline(source, **given)
            if seed is None
            else random_pipeline(source, seed, **given)
        )
        for_measuring(self.pipeline)
        own = source.pipeline_defaults
        rows = sampling.rows if own is None else own.batch
        self.captured = CapturedComponent(self.pipeline, source, resolution, batch=rows)
        # A recorded pipeline may mix its rows as it likes.
        self.guidance = sampling.guidance if own is None else 1.0
        self.component: Any = self.captured.source.component
        self._sessions: dict[PlanOptions, Session] = {}
        self._flops: dict[PlanOptions, int] = {}
        self._pictures = KeptPictures(lambda key: key[0] == DENSE)
        self._meter: DriftMeter | None = None
        self.seconds = 0.0
        self.drawn = 0
        dense, report = self.captured.session(OFF)
        self._dense = RememberedSession(dense)
        self.dense_flops = report.totals.flops
        known = [s for s in report.sites if s.kind != "unknown"]
        prefix = f"{self.component}."
        paths = numbered([s.module.removeprefix(prefix) for s in known])
        free = [
            (site, path)
            for site, path in zip(known, paths, strict=True)
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
            self._meter = DriftMeter(self.captured.program, plans=plans)
        return self._meter

    def flops(self, options: PlanOptions) -> int:
        """Of one call of the denoiser under a plan; the batch's is the captured one's.

        Raises:
            ConfigError: options that this model cannot follow.
        """
        if options == OFF:
            return self.dense_flops
        if options not in self._flops:
            self._session(options)
        return self._flops[options]

    def record(
        self, pairs: Sequence[Pair], tick: Callable[[], None] = lambda: None
    ) -> list[tuple[float, tuple[Tensor, ...]]]:
        """The dense denoiser's inputs at every call while these pairs are drawn.

        Args:
            pairs: as many as the batch.
            tick: called before every call.

        Returns:
            (share of the schedule before the call, inputs in order) for every call.
        """
        calls: list[tuple[float, tuple[Tensor, ...]]] = []
        names = self.captured.input_names

        def hear(feeds: Mapping[str, Tensor]) -> None:
            calls.append((phased.at, tuple(feeds[name].clone() for name in names)))
            tick()

        phased = PhasedDenoiser([adapt(self._dense, self.captured.origin)], [0.0])
        self._dense.hear = hear
        try:
            pictures = self._call(phased, pairs)
        finally:
            self._dense.hear = None
        for pair, picture in zip(pairs, pictures, strict=True):
            self._pictures.add((DENSE, pair), picture)
        return calls

    def draw_dense(
        self, pairs: Sequence[Pair], tick: Callable[[int], None] | None = None
    ) -> list[Any]:
        """As `draw`, of the dense model."""
        return self.draw([Phase(start=0.0, sites={}, flops=self.dense_flops)], pairs, tick)

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
        found = {pair: self._pictures.get((key, pair)) for pair in pairs}
        missing = [pair for pair, picture in found.items() if picture is None]
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
                found[pair] = picture
                self._pictures.add((key, pair), picture)
            if tick is not None:
                tick(len(group))
        if tick is not None and len(missing) < len(pairs):
            tick(len(pairs) - len(missing))
        return [found[pair] for pair in pairs]

    def _session(self, options: PlanOptions) -> Session:
        if options == OFF:
            return self._dense
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
