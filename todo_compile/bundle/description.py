"""What ``bundle.json`` says: components, phases, sizes, parts in torch, light files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator, Field, model_validator

from todo_compile.bundle.entries import (
    FORMAT,
    FileEntry,
    Frozen,
    Sha256,
    plain_name,
    relative_name,
)
from todo_compile.bundle.plan_parts import MAX_PHASES
from todo_compile.bundle.verdict import Verdict
from todo_compile.disk import format_bytes

ComponentName = Literal["unet", "transformer", "vae_decoder", "text_encoder", "text_encoder_2"]
COMPONENTS: tuple[ComponentName, ...] = get_args(ComponentName)
"""Names that components can have, in the order in which they are built."""
DenoiserName = Literal["unet", "transformer"]
DENOISERS: tuple[DenoiserName, ...] = get_args(DenoiserName)
SizedName = Literal["unet", "transformer", "vae_decoder"]
SIZED: tuple[SizedName, ...] = get_args(SizedName)
"""Components that are built for one resolution each; text has none."""
MAX_SIZES = 32
"""Most resolutions in one bundle."""
MAX_EXTRA_BYTES = 64 * 2**20
"""Largest file that is copied along: tokenizers have 1 to 4 MB; weights must not slip in."""

_PLAIN = r"^[A-Za-z][A-Za-z0-9_]{0,99}$"
_BATCHES = r"^\d{1,5}(\.\.\d{1,5}){1,2}$"


_Name = Annotated[str, AfterValidator(plain_name)]
_Pixels = Annotated[str, Field(pattern=r"^\d{1,5}x\d{1,5}$")]
_Part = Annotated[str, Field(pattern=_PLAIN)]


class ComponentEntry(Frozen):
    """One component.

    Attributes:
        file: name of the model file, beside which its manifest lies.
        manifest_sha256: of the manifest.
    """

    file: _Name
    manifest_sha256: Sha256


class PhaseEntry(ComponentEntry):
    """A denoiser that takes over from the one before; several may name one file.

    Attributes:
        file, manifest_sha256: as of any component.
        start: share of the steps before it.
    """

    start: Annotated[float, Field(gt=0, lt=1)]


class LightFile(FileEntry):
    """A light file copied along from the pipeline's folder.

    Attributes:
        name: path in the bundle, with slashes.
        bytes, sha256: as of any file.
    """

    name: Annotated[str, AfterValidator(relative_name)]
    bytes: Annotated[int, Field(ge=0, le=MAX_EXTRA_BYTES)]


_Phases = Annotated[list[PhaseEntry], Field(max_length=MAX_PHASES - 1)]


class WeightFile(FileEntry):
    """A file of weights of a part that stays in torch.

    Attributes:
        name: path in the bundle, with slashes.
        bytes, sha256: as of any file.
    """

    name: Annotated[str, AfterValidator(relative_name), Field(pattern=r"\.(safetensors|json)$")]


class TorchEntry(Frozen):
    """A part that was not compiled: torch runs it.

    Attributes:
        library, class_name: as in ``model_index.json``.
        files: of its weights; its configuration is among the light files.
    """

    library: Annotated[str, Field(pattern=_PLAIN)]
    class_name: Annotated[str, Field(pattern=_PLAIN)]
    files: Annotated[list[WeightFile], Field(min_length=1, max_length=256)]


class SizeEntry(Frozen):
    """What a bundle has for one more resolution; all else serves every resolution.

    Attributes:
        resolution: ``WIDTHxHEIGHT`` in pixels.
        components: the denoising model and the VAE decoder, as far as the bundle has them.
        phases: the denoising model for later phases of the schedule.
    """

    resolution: _Pixels
    components: Annotated[dict[SizedName, ComponentEntry], Field(min_length=1)]
    phases: _Phases = []


class Bundle(Frozen):
    """What ``bundle.json`` says.

    Attributes:
        format: version of this layout.
        created: UTC time.
        model: registry name, folder or hub id that it was built from.
        resolution: ``WIDTHxHEIGHT`` in pixels; the first, where there are several.
        batch: of the denoising model; its half is the number of images with guidance. A range is
            a string such as ``1..4``.
        precision: of the denoising model; a component's manifest has its own.
        kind: what the components are.
        pipeline_class: the diffusers pipeline that they make up.
        components: by name, see `COMPONENTS`; the denoising model for the first steps.
        phases: the denoising model for later phases of the schedule (``--plan``,
            ``--dense-after``); they begin at the same steps at every resolution.
        sizes: components for further resolutions.
        torch: parts that stay in torch, by the pipeline's names for them.
        light_files: light files that were copied along.
        gates: what ``--gate`` found at each resolution; empty if not asked for.
    """

    format: int = FORMAT
    created: str
    model: str
    resolution: _Pixels
    batch: Annotated[int, Field(ge=1, le=99_999)] | Annotated[str, Field(pattern=_BATCHES)]
    precision: str
    kind: Literal["onnx", "tensorrt", "pt2"]
    pipeline_class: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9]{0,99}$")]
    components: Annotated[dict[ComponentName, ComponentEntry], Field(min_length=1)]
    phases: _Phases = []
    sizes: Annotated[list[SizeEntry], Field(max_length=MAX_SIZES - 1)] = []
    torch: Annotated[dict[_Part, TorchEntry], Field(max_length=16)] = {}
    light_files: Annotated[list[LightFile], Field(max_length=64)] = []
    gates: Annotated[list[Verdict], Field(max_length=MAX_SIZES)] = []

    @model_validator(mode="after")
    def _phases_fit(self) -> Self:
        starts = [phase.start for phase in self.phases]
        if sorted(set(starts)) != starts:
            raise ValueError("the phases do not begin one after the other")
        if starts and self.denoiser is None:
            raise ValueError("there are phases, but no denoising model")
        for size in self.sizes:
            if [p.start for p in size.phases] != (starts if self.denoiser else []):
                raise ValueError("the phases differ from resolution to resolution")
            if self.denoiser is not None and self.denoiser not in size.components:
                raise ValueError(f"there is no {self.denoiser} for {size.resolution}")
        return self

    @property
    def denoiser(self) -> DenoiserName | None:
        """Name of the denoising model, if the bundle has one."""
        return next((name for name in DENOISERS if name in self.components), None)

    def entries(self) -> Iterator[tuple[ComponentName, ComponentEntry]]:
        """(component, entry) of every component in every phase, at every resolution."""
        for size in (self, *self.sizes):
            yield from size.components.items()
            for phase in size.phases:
                assert self.denoiser is not None  # else there are no phases
                yield self.denoiser, phase

    def loose(self) -> Iterator[LightFile | WeightFile]:
        """Every file that no component's manifest describes."""
        yield from self.light_files
        for part in self.torch.values():
            yield from part.files

    @property
    def resolutions(self) -> list[str]:
        """All resolutions that it serves, the first one first."""
        return [self.resolution, *(size.resolution for size in self.sizes)]

    def summary(self) -> list[str]:
        """The bundle in a few lines for people."""
        lines = [
            f"bundle         {self.model} at {', '.join(self.resolutions)}, batch {self.batch}, "
            f"{self.kind}",
            f"components     {', '.join(dict.fromkeys(e.file for _, e in self.entries()))}",
        ]
        if self.denoiser is not None and self.phases:
            files = [(0.0, self.components[self.denoiser].file)]
            files += [(phase.start, phase.file) for phase in self.phases]
            lines.append(
                "phases         " + ", ".join(f"{name} from {at:.0%}" for at, name in files)
            )
        if self.torch:
            named = (f"{name} ({part.class_name})" for name, part in self.torch.items())
            lines.append(f"in torch       {', '.join(named)}")
        lines += [line for verdict in self.gates for line in verdict.lines()]
        size = format_bytes(sum(one.bytes for one in self.light_files))
        lines.append(
            f"pipeline       {self.pipeline_class}, {len(self.light_files)} light files ({size})"
        )
        return lines
