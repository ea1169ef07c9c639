"""What the passes did: one row a site, totals, and how to show them.

Plain data without torch, so that a report can be kept, sent as JSON and compared.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class HoistStop:
    """A pooling that could move no further up.

    Args:
        operand: what it pools: key, value or mask.
        node: the node that it stands below.
        reason: why it does not move above that.
        extra_flops: of the projections that run on all tokens because of it, see
            `todo_compile.passes.rewrite.stops`; 0 where the pooling came as far as there is work
            to save.
    """

    operand: str
    node: str
    reason: str
    extra_flops: int = 0


@dataclass(frozen=True, slots=True)
class ImageKeys:
    """Where the image lies among the keys of a rewritten site, and how it is subsampled.

    Args:
        offset: keys before it (text).
        column_major: its tokens are counted down the columns, not along the rows.
        sampling: which token stands for a cell, without its phase.
        phase: first (row, column) that ``staggered`` keeps.
        keeps_mass: pooled keys weigh as the tokens that they stand for against the others.
    """

    offset: int
    column_major: bool
    sampling: str
    phase: tuple[int, int]
    keeps_mass: bool


@dataclass(frozen=True, slots=True)
class FurtherImage:
    """Another image among the keys, a reference say.

    Args:
        grid, frames, factor: as for the first, see `SiteReport`.
        image: its keys; None where the site was left alone.
    """

    grid: tuple[int, int]
    frames: int
    factor: tuple[int, int]
    image: ImageKeys | None


@dataclass(frozen=True, slots=True)
class SiteReport:
    """One attention site.

    Args:
        name: anchor node in the graph.
        module: dotted path of the attention module ("" if unknown).
        kind: self, cross, joint or unknown.
        spelling: sdpa, product, or the reason's operator for what was not understood.
        grid: (rows, columns) of the key tokens, None where there is none; of each frame of a video.
        level: 1 for the largest grid of self-attention, 0 for none.
        heads: batch × heads.
        head_dim: channels a head.
        query_tokens, key_tokens: sequence lengths before.
        key_tokens_after: keys after the rewrite.
        factor: (row, column) factor, (1, 1) where left alone.
        sampling: which token stands for a cell, with the phase where it differs from site to site
            (``nearest +1,+0``: rows from 1, columns from 0); "" where left alone.
        action: rewritten, dense or refused.
        reason: why.
        flops, flops_after: of the two attention products.
        share: of all FLOPs in the dense graph.
        score_elements, score_elements_after: elements of QKᵀ if it is materialised.
        attention_bytes, attention_bytes_after: of Q, K, V and the result, each moved once.
        stops: where the poolings of its operands ended, and why; empty where nothing was pooled.
        image: the image's keys; None where left alone.
        frames: grids that follow each other: a video's, else 1.
        beside: further images among the keys; `grid`, `factor`, `image` and `frames` are the
            first's.
    """

    name: str
    module: str
    kind: str
    spelling: str
    grid: tuple[int, int] | None
    level: int
    heads: int
    head_dim: int
    query_tokens: int
    key_tokens: int
    key_tokens_after: int
    factor: tuple[int, int]
    action: str
    reason: str
    flops: int
    flops_after: int
    share: float
    score_elements: int = 0
    score_elements_after: int = 0
    attention_bytes: int = 0
    attention_bytes_after: int = 0
    sampling: str = ""
    stops: tuple[HoistStop, ...] = ()
    image: ImageKeys | None = None
    frames: int = 1
    beside: tuple[FurtherImage, ...] = ()


@dataclass(frozen=True, slots=True)
class PassReport:
    """One pass.

    Args:
        name: of the pass.
        count: how often it changed something.
        seconds: that it ran, wall-clock.
        detail: counts of its rules by their names.
    """

    name: str
    count: int
    seconds: float
    detail: dict[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over a graph, dense and rewritten.

    Args:
        flops, flops_after: all counted operations.
        attention_flops, attention_flops_after: of all sites.
        attention_bytes, attention_bytes_after: Q, K, V and results, each moved once.
        score_elements, score_elements_after: of the largest QKᵀ, if materialised.
        tensor_limit: elements beyond which TensorRT refuses a tensor.
    """

    flops: int
    flops_after: int
    attention_flops: int
    attention_flops_after: int
    attention_bytes: int
    attention_bytes_after: int
    score_elements: int
    score_elements_after: int
    tensor_limit: int


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that the passes did to one graph."""

    sites: tuple[SiteReport, ...]
    passes: tuple[PassReport, ...]
    totals: Totals
    options: dict[str, Any]
    nodes: int
    per_item: bool = False
    """A size (the batch) is dynamic and counts as one: FLOPs, bytes and elements are of one item,
    `SiteReport.heads` of one image."""

    @property
    def rewritten(self) -> int:
        """Number of rewritten sites."""
        return sum(s.action == "rewritten" for s in self.sites)

    @property
    def counts(self) -> dict[str, int]:
        """Sites by action."""
        result = {"rewritten": 0, "dense": 0, "refused": 0}
        for site in self.sites:
            result[site.action] += 1
        return result

    @property
    def seconds(self) -> float:
        """Seconds of all passes."""
        return sum(p.seconds for p in self.passes)

    def nearest_miss(self) -> str | None:
        """Why the most expensive site that was not rewritten was not; None if there is none."""
        left = [s for s in self.sites if s.action != "rewritten" and s.kind != "cross"]
        left = left or [s for s in self.sites if s.action != "rewritten"]
        if not left:
            return None
        worst = max(left, key=lambda s: s.flops)
        return f"{worst.module or worst.name}: {worst.reason}"

    def why_none(self) -> str | None:
        """What to tell a user where no site was rewritten; None where one was or none should be."""
        if self.rewritten or self.options["factors"] == []:
            return None
        images = [s for s in self.sites if s.kind != "cross"]
        bounded = self.options["factors"] is None
        if images and bounded and all(s.action == "dense" for s in images):
            most = max(s.key_tokens for s in images)
            return (
                f"no site needs downsampling: the largest has {most:,} key tokens, within what "
                "the model saw in training. To downsample all the same: --factors 2, or a smaller "
                "--kv-tokens"
            )
        miss = self.nearest_miss()
        return "no attention site was rewritten" + (f"; nearest miss: {miss}" if miss else "")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {**asdict(self), "counts": self.counts, "seconds": self.seconds}

    def summary(self) -> str:
        """One line for people."""
        counts, totals = self.counts, self.totals
        saved = 1 - totals.flops_after / totals.flops if totals.flops else 0.0
        sites = "site" if counts["rewritten"] == 1 else "sites"
        return (
            f"{counts['rewritten']} attention {sites} rewritten, {counts['dense']} left dense, "
            f"{counts['refused']} refused; {saved:.0%} fewer FLOPs"
            + (" (figures are of one item: the batch is dynamic)" if self.per_item else "")
        )
