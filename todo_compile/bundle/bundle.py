"""A bundle: the components of a pipeline in one folder, described by one ``bundle.json``.

Every component is an ordinary output (model file, manifest, perhaps a weights' file); the bundle
names its file and the hash of its manifest, and the manifest has the hashes of the files. So
``bundle.json`` vouches for everything, and since it is written last, a build that is killed leaves
a folder that is refused, never one that is half old and half new. Beside the components lie the
light files that a pipeline needs (tokenizer, scheduler, configurations), in diffusers' places.

Nothing in a bundle is unpickled, and nothing in it can name a file outside of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from todo_compile.bundle.manifest import (
    Manifest,
    check_files,
    file_sha256,
    manifest_path,
    parse,
    plain_name,
    read_small,
)
from todo_compile.bundle.verdict import Verdict
from todo_compile.disk import disk_errors, flush, format_bytes
from todo_compile.errors import BundleError
from todo_compile.foreign import parse_object
from todo_compile.tuning.plan_file import MAX_PHASES

FORMAT = 1
BUNDLE_JSON = "bundle.json"
Component = Literal["unet", "transformer", "vae_decoder", "text_encoder", "text_encoder_2"]
COMPONENTS: tuple[Component, ...] = get_args(Component)
"""Names that components can have, in the order in which they are built."""
Denoiser = Literal["unet", "transformer"]
DENOISERS: tuple[Denoiser, ...] = get_args(Denoiser)
SizedComponent = Literal["unet", "transformer", "vae_decoder"]
SIZED: tuple[SizedComponent, ...] = get_args(SizedComponent)
"""Components that are built for one resolution each; text has none."""
MAX_SIZES = 32
"""Most resolutions in one bundle."""
MAX_EXTRA_BYTES = 64 * 2**20
"""Largest file that is copied along: tokenizers have 1 to 4 MB; weights must not slip in."""

_REBUILD = "Build the bundle again with todo-compile."
_MAX_BYTES = 2**20
_PLAIN = r"^[A-Za-z][A-Za-z0-9_]{0,99}$"
_BATCHES = r"^\d{1,5}(\.\.\d{1,5}){1,2}$"
_HASH = Field(pattern="^[0-9a-f]{64}$")


def relative_name(name: str) -> str:
    """A file in the bundle or in a folder of it, with ``/`` on every system.

    Raises:
        ValueError: absolute, with ``.`` or ``..``, or with characters that mean something to a
            file system.
    """
    parts = name.split("/")
    if not 1 <= len(parts) <= 4:
        raise ValueError(f"{name!r} is not a name inside the bundle")
    for part in parts:
        plain_name(part)
    return name


_Name = Annotated[str, AfterValidator(plain_name)]
_Pixels = Annotated[str, Field(pattern=r"^\d{1,5}x\d{1,5}$")]
_Part = Annotated[str, Field(pattern=_PLAIN)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ComponentEntry(_Frozen):
    """One component.

    Attributes:
        file: name of the model file, beside which its manifest lies.
        manifest_sha256: of the manifest.
    """

    file: _Name
    manifest_sha256: Annotated[str, _HASH]


class PhaseEntry(ComponentEntry):
    """A denoiser that takes over from the one before; several may name one file.

    Attributes:
        file, manifest_sha256: as of any component.
        start: share of the steps before it.
    """

    start: Annotated[float, Field(gt=0, lt=1)]


class ExtraFile(_Frozen):
    """A light file copied along from the pipeline's folder.

    Attributes:
        name: path in the bundle, with slashes.
        bytes: its size.
        sha256: of its content.
    """

    name: Annotated[str, AfterValidator(relative_name)]
    bytes: Annotated[int, Field(ge=0, le=MAX_EXTRA_BYTES)]
    sha256: Annotated[str, _HASH]


_Phases = Annotated[list[PhaseEntry], Field(max_length=MAX_PHASES - 1)]


class WeightFile(_Frozen):
    """A file of weights of a part that stays in torch.

    Attributes:
        name: path in the bundle, with slashes.
        bytes: its size.
        sha256: of its content.
    """

    name: Annotated[str, AfterValidator(relative_name), Field(pattern=r"\.(safetensors|json)$")]
    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, _HASH]


class TorchEntry(_Frozen):
    """A part that was not compiled: torch runs it.

    Attributes:
        library, class_name: as in ``model_index.json``.
        files: of its weights; its configuration is among the light files.
    """

    library: Annotated[str, Field(pattern=_PLAIN)]
    class_name: Annotated[str, Field(pattern=_PLAIN)]
    files: Annotated[list[WeightFile], Field(min_length=1, max_length=256)]


class Size(_Frozen):
    """What a bundle has for one more resolution; all else serves every resolution.

    Attributes:
        resolution: ``WIDTHxHEIGHT`` in pixels.
        components: the denoising model and the VAE decoder, as far as the bundle has them.
        phases: the denoising model for later phases of the schedule.
    """

    resolution: _Pixels
    components: Annotated[dict[SizedComponent, ComponentEntry], Field(min_length=1)]
    phases: _Phases = []


class Bundle(_Frozen):
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
        extras: light files that were copied along.
        gates: what ``--gate`` found at each resolution; empty if not asked for.
    """

    format: int = FORMAT
    created: str
    model: str
    resolution: _Pixels
    batch: Annotated[int, Field(ge=1, le=99_999)] | Annotated[str, Field(pattern=_BATCHES)]
    precision: str
    kind: Literal["onnx", "tensorrt"]
    pipeline_class: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9]{0,99}$")]
    components: Annotated[dict[Component, ComponentEntry], Field(min_length=1)]
    phases: _Phases = []
    sizes: Annotated[list[Size], Field(max_length=MAX_SIZES - 1)] = []
    torch: Annotated[dict[_Part, TorchEntry], Field(max_length=16)] = {}
    extras: Annotated[list[ExtraFile], Field(max_length=64)] = []
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
    def denoiser(self) -> Denoiser | None:
        """Name of the denoising model, if the bundle has one."""
        return next((name for name in DENOISERS if name in self.components), None)

    def entries(self) -> Iterator[tuple[Component, ComponentEntry]]:
        """(component, entry) of every component in every phase, at every resolution."""
        for size in (self, *self.sizes):
            yield from size.components.items()
            for phase in size.phases:
                assert self.denoiser is not None  # else there are no phases
                yield self.denoiser, phase

    def loose(self) -> Iterator[ExtraFile | WeightFile]:
        """Every file that no component's manifest describes."""
        yield from self.extras
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
        size = format_bytes(sum(extra.bytes for extra in self.extras))
        lines.append(
            f"pipeline       {self.pipeline_class}, {len(self.extras)} light files ({size})"
        )
        return lines


def is_bundle(folder: Path) -> bool:
    """Whether `folder` says of itself that it is a bundle."""
    return (folder / BUNDLE_JSON).is_file()


def inside(folder: Path, name: str) -> Path:
    """The path of `name` in `folder`.

    Raises:
        BundleError: it leads out of the folder, by its name or by a link.
    """
    try:
        path = folder / relative_name(name)
    except ValueError as error:
        raise BundleError(f"{folder}: {error}.", remedy=_REBUILD) from error
    # A link is resolved, and so is the folder, which may itself be reached through one.
    if not path.resolve().is_relative_to(folder.resolve()):
        raise BundleError(f"{path} is a link that leads out of the bundle.", remedy=_REBUILD)
    return path


def read_bundle(folder: Path) -> Bundle:
    """Read ``bundle.json``; looks at no other file (see `check_bundle`).

    Args:
        folder: the bundle, or its ``bundle.json``.

    Raises:
        BundleError: there is none, or it is damaged, of another version, or names a file outside.
    """
    folder = folder.parent if folder.name == BUNDLE_JSON else folder
    path = folder / BUNDLE_JSON
    if not path.exists():
        raise BundleError(
            f"{folder} is not a finished bundle: it has no {BUNDLE_JSON}, which is written last.",
            remedy=_REBUILD,
        )
    inside(folder, BUNDLE_JSON)
    data = read_small(path, _MAX_BYTES)
    try:
        values = parse_object(data)
        if values.get("format", FORMAT) != FORMAT:
            raise BundleError(
                f"{path} has format {values['format']}, this version reads {FORMAT}.",
                remedy=_REBUILD,
            )
        bundle = Bundle.model_validate(values)
    except ValueError as error:
        raise BundleError(f"{path} is damaged: {_first(error)}.", remedy=_REBUILD) from error
    for _, entry in bundle.entries():
        inside(folder, entry.file)
    for file in bundle.loose():
        inside(folder, file.name)
    return bundle


def _first(error: Exception) -> str:
    """The first complaint, in one line."""
    if isinstance(error, ValidationError):
        detail = error.errors()[0]
        return f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}"
    return str(error)


def component_manifest(folder: Path, component: Component, entry: ComponentEntry) -> Manifest:
    """The manifest of a component, if it is the one that the bundle was finished with.

    The bytes that are parsed are the bytes that were hashed.

    Raises:
        BundleError: absent, changed, damaged, or another component's.
    """
    path = inside(folder, manifest_path(Path(entry.file)).name)
    if not path.is_file():
        raise BundleError(f"{path.name} is missing.", remedy=_REBUILD)
    data = read_small(path)
    if hashlib.sha256(data).hexdigest() != entry.manifest_sha256:
        raise BundleError(
            f"{path.name} is not the manifest that the bundle was finished with.",
            remedy=_REBUILD,
        )
    manifest = parse(data, path)
    if manifest.model.get("component") != component:
        raise BundleError(
            f"{entry.file} is a {manifest.model.get('component')}, not a {component}.",
            remedy=_REBUILD,
        )
    if all(file.name != entry.file for file in manifest.files):
        raise BundleError(f"{path.name} does not describe {entry.file}.", remedy=_REBUILD)
    for file in manifest.files:
        inside(folder, file.name)
    return manifest


def denoisers(bundle: Bundle, folder: Path) -> list[Manifest]:
    """Manifests of the denoising model in every phase, at the first resolution.

    Raises:
        BundleError: one is absent or changed.
    """
    if (name := bundle.denoiser) is None:
        return []
    entries = [bundle.components[name], *bundle.phases]
    return [component_manifest(folder, name, entry) for entry in entries]


def details(bundle: Bundle, folder: Path) -> list[str]:
    """What its manifests add to `Bundle.summary`: the plan, and what it takes on the disk.

    Raises:
        BundleError: a manifest is absent or changed.
    """
    whole: dict[str, int] = {extra.name: extra.bytes for extra in bundle.extras}
    plain = dict(whole)
    for size in (bundle, *bundle.sizes):
        for name, entry in size.components.items():
            files = component_manifest(folder, name, entry).files
            plain |= {file.name: file.bytes for file in files}
    whole |= plain
    for component, entry in bundle.entries():
        files = component_manifest(folder, component, entry).files
        whole |= {file.name: file.bytes for file in files}
    total, more = sum(whole.values()), sum(whole.values()) - sum(plain.values())
    said = f", of which later phases {format_bytes(more)}" if bundle.phases else ""
    plan = next((m.plan for m in denoisers(bundle, folder) if m.plan is not None), None)
    every = None if plan is None else range(1, len(plan.starts) + 1)
    return [
        *(plan.lines(every) if plan is not None else ()),
        f"disk           {format_bytes(total)}{said}",
    ]


def check_bundle(
    bundle: Bundle, folder: Path, *, hashes: bool = True, engines: bool = True
) -> list[str]:
    """What is wrong with the files of a bundle; empty if they are intact. Nothing is loaded.

    Sizes come first; files are read only if all sizes are right.

    Args:
        bundle: from `read_bundle`.
        folder: the same folder.
        hashes: read every file and compare its hash; without, names, manifests and sizes alone.
        engines: look at the components' own files; without, at their manifests alone, for who has
            them elsewhere.
    """
    wrong: list[str] = []
    manifests: list[Manifest] = []
    for component, entry in bundle.entries():
        try:
            manifests.append(component_manifest(folder, component, entry))
        except BundleError as error:
            wrong.append(error.message.rstrip("."))
    if not engines:
        manifests = []
    wrong += [f for m in manifests for f in check_files(m, folder, hashes=False)]
    for extra in bundle.loose():
        path = folder / extra.name
        try:
            inside(folder, extra.name)
        except BundleError as error:
            wrong.append(error.message.rstrip("."))
            continue
        if not path.is_file():
            wrong.append(f"{extra.name} is missing")
        elif (size := path.stat().st_size) != extra.bytes:
            wrong.append(f"{extra.name} has {size} bytes instead of {extra.bytes}")
    if wrong or not hashes:
        return list(dict.fromkeys(wrong))
    # Twins share their weights' file: each is read once.
    expected = {f.name: f.sha256 for m in manifests for f in m.files}
    expected |= {e.name: e.sha256 for e in bundle.loose()}
    return [
        f"{name} was changed (its hash differs)"
        for name, sha256 in expected.items()
        if file_sha256(folder / name) != sha256
    ]


def write_bundle(bundle: Bundle, path: Path) -> None:
    """Write ``bundle.json`` (into a stage: this is not atomic by itself).

    Raises:
        BundleError: it cannot be written.
    """
    with disk_errors(path):
        path.write_text(bundle.model_dump_json(indent=1) + "\n", encoding="utf-8")
        flush(path)
