"""What commands print with ``--json``: one model each, which names its format and version.

The version is raised when a field goes or changes its meaning; a new field leaves it. The site's
reference is made of these models, so nothing is documented twice. A plan of `tune`, manifests and
``bundle.json`` are files with formats of their own, which answers contain as they are.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from todo_compile.bundle.description import Bundle
from todo_compile.bundle.manifest import Manifest
from todo_compile.drift.report import SiteDrift
from todo_compile.foreign import printable
from todo_compile.passes.report import PassReport, SiteReport, Totals


def print_json(data: Any) -> None:
    """JSON on standard output, for programs."""
    print(printable(json.dumps(data, indent=2, ensure_ascii=False, default=str)))


class Answer(BaseModel):
    """An answer of a command."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def print(self) -> None:
        """Print it on standard output, for programs."""
        print_json(self.model_dump(mode="json"))


class PlanAnswer(Answer):
    """``plan --json``.

    Attributes:
        sites: one row an attention site, rewritten or not.
        passes: what ran, how often it changed something.
        totals: of the graph, dense and rewritten.
        options: that factors were chosen by.
        nodes: of the graph.
        per_item: the batch is dynamic, and figures are of one item.
        counts: of sites by action: rewritten, dense, refused.
        seconds: of all passes, wall-clock.
        batch: where it is a range.
        figures_for_batch: the one that figures are for, where it is a range.
    """

    format: Literal["todo-compile plan report"] = "todo-compile plan report"
    version: Literal[1] = 1
    sites: tuple[SiteReport, ...]
    passes: tuple[PassReport, ...]
    totals: Totals
    options: dict[str, Any]
    nodes: int
    per_item: bool
    counts: dict[str, int]
    seconds: float
    batch: str | None = None
    figures_for_batch: int | None = None


class CompileAnswer(Answer):
    """``compile --json`` of a file.

    Attributes:
        path: of the output.
        reused: an equal output stood there and was kept.
        rebuilt_because: what differed from the output that stood there.
        manifest: as it lies beside the output.
    """

    format: Literal["todo-compile output"] = "todo-compile output"
    version: Literal[1] = 1
    path: str
    reused: bool
    rebuilt_because: tuple[str, ...]
    manifest: Manifest


class Part(BaseModel):
    """An output of a bundle.

    Attributes:
        reused: an equal one stood there and was kept.
        rebuilt_because: what differed.
    """

    reused: bool
    rebuilt_because: tuple[str, ...]


class BundleAnswer(Answer):
    """``compile --json`` of a bundle.

    Attributes:
        path: of the folder.
        reused: the whole bundle stood there and was kept.
        bundle: as ``bundle.json`` in the folder.
        components: by the outputs' names.
    """

    format: Literal["todo-compile bundle output"] = "todo-compile bundle output"
    version: Literal[1] = 1
    path: str
    reused: bool
    bundle: Bundle
    components: dict[str, Part]


class Listed(BaseModel):
    """A build that a file asks for.

    Attributes:
        id: its number in the file, for ``--only``.
        out: where it goes.
        line: of the file.
        options: that differ from their defaults.
    """

    id: int
    out: str
    line: int
    options: dict[str, Any]


class ListedAnswer(Answer):
    """``build --list --json``.

    Attributes:
        builds: in their order.
    """

    format: Literal["todo-compile listed builds"] = "todo-compile listed builds"
    version: Literal[1] = 1
    builds: tuple[Listed, ...]


class Planned(Listed):
    """A build that a file asks for, with what it needs.

    Attributes:
        id: its number in the file, for ``--only``.
        out: where it goes.
        line: of the file.
        options: that differ from their defaults.
        memory_bytes: that it is expected to need; None if that cannot be told.
    """

    memory_bytes: int | float | None


class PlannedAnswer(Answer):
    """``build --dry-run --json``.

    Attributes:
        builds: in their order.
        memory_bytes: for all that run at once.
        jobs: most at once.
    """

    format: Literal["todo-compile planned builds"] = "todo-compile planned builds"
    version: Literal[1] = 1
    builds: tuple[Planned, ...]
    memory_bytes: int
    jobs: int


class Built(BaseModel):
    """What became of a build.

    Attributes:
        out: where it goes.
        status: built, kept (an equal output stood there), failed or stopped.
        seconds: that it ran, wall-clock.
        bytes: of the output.
        peak_rss_bytes: the most memory that it and its children held.
        error: first line, empty where there is none.
        log: file with what it said; None if it never ran.
    """

    out: str
    status: Literal["built", "kept", "failed", "stopped"]
    seconds: float
    bytes: int
    peak_rss_bytes: int
    error: str
    log: str | None


class BuildsAnswer(Answer):
    """``build --json``.

    Attributes:
        builds: in their order.
        failed: how many failed.
    """

    format: Literal["todo-compile builds"] = "todo-compile builds"
    version: Literal[1] = 1
    builds: tuple[Built, ...]
    failed: int


class InspectAnswer(Answer):
    """``inspect --json`` of a file.

    Attributes:
        path: of the file.
        manifest: as it lies beside the file.
        damage: what is wrong with the files; empty if they are intact.
        layers: of an engine, with ``--layers``.
        note: why there are no layers.
    """

    format: Literal["todo-compile inspection"] = "todo-compile inspection"
    version: Literal[1] = 1
    path: str
    manifest: Manifest
    damage: tuple[str, ...]
    layers: tuple[str, ...]
    note: str | None


class InspectBundleAnswer(Answer):
    """``inspect --json`` of a bundle.

    Attributes:
        bundle: as ``bundle.json`` in the folder.
        damage: what is wrong with the files; empty if they are intact.
    """

    format: Literal["todo-compile bundle inspection"] = "todo-compile bundle inspection"
    version: Literal[1] = 1
    bundle: Bundle
    damage: tuple[str, ...]


class KnownModel(BaseModel):
    """A model that has a name.

    Attributes:
        name: for ``--model``.
        hub_id: where its weights are; None for the packaged one.
        native_pixels: size that it was trained at.
        native_kv_tokens: key tokens of its largest attention at that size.
        parameters: of the denoising model.
        licence: of the weights.
        description: a line.
    """

    name: str
    hub_id: str | None
    native_pixels: str
    native_kv_tokens: int
    parameters: int
    licence: str
    description: str


class ModelsAnswer(Answer):
    """``models --json``.

    Attributes:
        models: that have names.
    """

    format: Literal["todo-compile models"] = "todo-compile models"
    version: Literal[1] = 1
    models: tuple[KnownModel, ...]


class DriftAnswer(Answer):
    """``drift --json``.

    Attributes:
        model, res, precision, batch: what was measured; of a module the address of its factory,
            and neither size nor batch.
        weights, weights_hash: which, and their hash.
        random_weights: the numbers say nothing of pictures.
        conditions: random: stand-ins for encoded prompts; given: a module's example inputs.
        local: only errors at the sites themselves were measured.
        timesteps: of the columns; a module has one, 0.
        total: mean relative error of the output by timestep, all sites rewritten.
        sites: each rewritten site alone.
        samples: latents for each timestep.
        options: that factors were chosen by.
    """

    format: Literal["todo-compile drift"] = "todo-compile drift"
    version: Literal[1] = 1
    model: str
    res: str | None
    weights: str
    weights_hash: str | None
    random_weights: bool
    precision: str
    batch: int | None
    conditions: str
    local: bool
    timesteps: tuple[float, ...]
    total: tuple[float, ...]
    sites: tuple[SiteDrift, ...]
    samples: int
    options: dict[str, Any]


class PictureAnswer(Answer):
    """``generate --json``.

    Attributes:
        path: of the picture.
        seed, steps: it was drawn with.
        seconds: of all steps.
        steps_per_second: without ``--compare``.
        mse, psnr: of the pixels, rewritten against dense, with ``--compare``; psnr in dB, None for
            equal pictures.
        hpf, hpf_dense: sharpness: energy of high frequencies, with ``--compare``.
        seconds_dense: of all steps of the dense picture.
        decoder: ``bundle's`` where both pictures were decoded by the bundle.
    """

    format: Literal["todo-compile picture"] = "todo-compile picture"
    version: Literal[1] = 1
    path: str
    seed: int
    steps: int
    seconds: float
    steps_per_second: float | None = None
    mse: float | None = None
    psnr: float | None = None
    hpf: float | None = None
    hpf_dense: float | None = None
    seconds_dense: float | None = None
    decoder: str | None = None


ANSWERS: tuple[type[Answer], ...] = (
    *(PlanAnswer, CompileAnswer, BundleAnswer, ListedAnswer, PlannedAnswer, BuildsAnswer),
    *(InspectAnswer, InspectBundleAnswer, ModelsAnswer, DriftAnswer, PictureAnswer),
)
