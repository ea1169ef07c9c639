"""Whether an output may be opened: its manifest, its files, and the machine it is opened on.

All of it happens before onnxruntime or TensorRT reads a byte of the output: neither is written to
withstand a damaged or foreign file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

from todo_compile.bundle.bundle import check_bundle, component_manifest, inside, read_bundle
from todo_compile.bundle.description import SIZED, Bundle
from todo_compile.bundle.manifest import Manifest, check_files, read
from todo_compile.errors import BundleError, ConfigError, EngineError, ModelError
from todo_compile.models.bounds import check_config
from todo_compile.models.resolution import Resolution

Verify = Literal["full", "size"]
_REBUILD = "Build it again with todo-compile, or copy the output and its manifest anew."


@dataclass(frozen=True)
class Origin:
    """What a component was made from.

    Attributes:
        name: of the file or model, for messages.
        built_for: what it serves, a clause for messages.
        component: ``unet``, ``transformer``, ``vae_decoder``, ``text_encoder``, ``text_encoder_2``.
        class_name: of the module.
        config: of the module.
        call: of a denoiser whose inputs were read off its pipeline: see `CompiledCall`.
        frames: of the video that it was asked for; None for its pipeline's own number.
    """

    name: str
    built_for: str
    component: str
    class_name: str
    config: dict[str, Any] = field(repr=False)
    call: dict[str, Any] | None = field(default=None, repr=False)
    frames: int | None = None

    @classmethod
    def of(cls, name: str, model: dict[str, Any]) -> Origin:
        """From the part ``model`` of a manifest.

        Raises:
            BundleError: it is not what our builds write.
        """
        config: Any = model.get("config") or {}
        if not isinstance(config, dict):
            raise BundleError(
                f"The manifest of {name} has no table for its model's config.", remedy=_REBUILD
            )
        try:
            check_config(cast("dict[str, Any]", config), f"configuration in the manifest of {name}")
        except ModelError as error:
            raise BundleError(error.message, remedy=_REBUILD) from error
        call: Any = model.get("call")
        if call is not None and not _is_call(call):
            raise BundleError(
                f"The manifest of {name} does not describe its denoiser's call.", remedy=_REBUILD
            )
        return cls(
            name=name,
            built_for=f"{name} was built for "
            + (f"{model['resolution']} px, " if model.get("resolution") else "")
            + f"batch {model.get('batch')}, "
            + (f"text of {model['text_tokens']} tokens, " if model.get("text_tokens") else "")
            + (f"{model['frames']} frames, " if model.get("frames") else "")
            + f"{model.get('precision')}",
            component=str(model.get("component")),
            class_name=str(model.get("class")),
            config=dict(config),
            call=call,
            frames=_frames(model.get("frames")),
        )


def _frames(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None


def _is_call(call: Any) -> bool:
    if not isinstance(call, dict):
        return False
    parts = cast("dict[str, Any]", call)
    fixed, batched = parts.get("fixed"), parts.get("batched")
    padding: Any = parts.get("padding", {"text": "", "mask": ""})
    pictures: Any = parts.get("pictures", {})
    if not isinstance(pictures, dict) or not all(
        isinstance(grids, list) and all(_is_grid(one) for one in cast("list[Any]", grids))
        for grids in cast("dict[str, Any]", pictures).values()
    ):
        return False
    return (
        isinstance(fixed, dict)
        and isinstance(batched, list)
        and isinstance(padding, dict)
        and {key: type(value) for key, value in padding.items()} == {"text": str, "mask": str}
    )


def _is_grid(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(cast("list[Any]", value)) in (2, 3)
        and all(type(side) is int and side > 0 for side in cast("list[Any]", value))
    )


@dataclass(frozen=True)
class Output:
    """A compiled component whose files are what its manifest says.

    Attributes:
        path: engine or ONNX file.
        manifest: of it.
    """

    path: Path
    manifest: Manifest

    @property
    def origin(self) -> Origin:
        """What it was made from."""
        return Origin.of(self.path.name, self.manifest.model)

    @property
    def built_for(self) -> str:
        """What it was built for, for messages."""
        return self.origin.built_for


def open_output(path: Path, verify: Verify = "full") -> Output:
    """Check an output and its manifest; nothing of the output is interpreted.

    Args:
        path: engine, ONNX file, or the manifest of one.
        verify: ``full`` reads every file for its hash (about a second a gigabyte); ``size`` only
            compares sizes, which finds a broken copy but no changed byte.

    Raises:
        BundleError: the output or its manifest is missing, damaged, or they do not belong together.
        ConfigError: another `verify`.
    """
    hashes = _hashes(verify)
    if path.is_dir():
        raise BundleError(
            f"{path} is a folder.",
            remedy="Give a .plan, .onnx or .pt2 file, or load a bundle with load_pipeline.",
        )
    main = path.with_name(path.name.removesuffix(".json"))
    if not main.exists():
        raise BundleError(f"{main} does not exist.", remedy="Give the .plan, .onnx or .pt2 file.")
    manifest = read(main)
    names = [entry.name for entry in manifest.files]
    if main.name not in names:
        raise BundleError(
            f"The manifest beside {main.name} describes {', '.join(names)}, not {main.name}.",
            remedy="Files that refer to each other keep their names: rename them back.",
        )
    wrong = check_files(manifest, main.parent, hashes=hashes)
    if wrong:
        raise BundleError(f"{main} is not what was built: {'; '.join(wrong)}.", remedy=_REBUILD)
    return Output(main, manifest)


def check_again(output: Output, verify: Verify = "full") -> None:
    """Check an output that is opened later than its bundle was: it must be what was checked then.

    Args:
        output: from `open_output` or `open_bundle`.
        verify: as for `open_output`.

    Raises:
        BundleError: it was replaced or damaged meanwhile, by another build for one.
    """
    path, manifest = output.path, output.manifest
    wrong = (
        check_files(manifest, path.parent, hashes=_hashes(verify))
        if read(path) == manifest
        else ["it was built anew since it was loaded"]
    )
    if wrong:
        raise BundleError(
            f"{path} is not what was loaded: {'; '.join(wrong)}.",
            remedy="Load it again; if that fails too, build it again with todo-compile.",
        )


@dataclass(frozen=True)
class OpenPhase:
    """The denoising model in one part of the schedule.

    Attributes:
        start: share of the steps before it.
        outputs: one for every resolution.
    """

    start: float
    outputs: tuple[Output, ...]

    @property
    def dense(self) -> bool:
        """Whether it downsamples nothing."""
        return all(output.manifest.dense for output in self.outputs)


@dataclass(frozen=True)
class OpenBundle:
    """A bundle whose files are what it says.

    Attributes:
        folder: of the bundle.
        bundle: its description.
        components: by name; for each the outputs, one for every resolution that it is built for,
            the bundle's first resolution first.
        phases: of the denoising model, the first one among them; empty if the bundle has none.
    """

    folder: Path
    bundle: Bundle
    components: dict[str, tuple[Output, ...]]
    phases: tuple[OpenPhase, ...]

    @property
    def dense(self) -> OpenPhase | None:
        """A phase that downsamples nothing, if there is one."""
        return next((phase for phase in self.phases if phase.dense), None)


def open_bundle(
    folder: Path,
    verify: Verify = "full",
    *,
    res: str | int | None = None,
    engines: bool = True,
) -> OpenBundle:
    """Check a bundle with everything in it; nothing of its components is interpreted.

    Args:
        folder: the bundle, or its ``bundle.json``.
        verify: as for `open_output`.
        res: take what the bundle has for this resolution alone; None takes all.
        engines: False where the components' own files are elsewhere, see `check_bundle`.

    Raises:
        BundleError: it is no bundle, or anything in it is missing, damaged or foreign.
        ConfigError: another `verify`, or a resolution that the bundle does not have.
    """
    hashes = _hashes(verify)
    bundle = read_bundle(folder)
    folder = folder if folder.is_dir() else folder.parent
    wrong = check_bundle(bundle, folder, hashes=hashes, engines=engines)
    if wrong:
        raise BundleError(f"{folder} is not what was built: {'; '.join(wrong)}.", remedy=_REBUILD)
    components: dict[str, tuple[Output, ...]] = {}
    later: list[tuple[Output, ...]] = [()] * len(bundle.phases)
    chosen = None if res is None else str(Resolution.parse(res))
    if chosen is not None and chosen not in bundle.resolutions:
        raise ConfigError(
            f"{folder} has nothing for {chosen}.",
            remedy=f"It has {', '.join(bundle.resolutions)}.",
        )
    for size in (bundle, *bundle.sizes):
        wanted = chosen in (None, size.resolution)
        for name, entry in size.components.items():
            if wanted or name not in SIZED:
                output = Output(inside(folder, entry.file), component_manifest(folder, name, entry))
                components[name] = (*components.get(name, ()), output)
        for number, entry in enumerate(size.phases if wanted else ()):
            assert bundle.denoiser is not None  # else there are no phases
            manifest = component_manifest(folder, bundle.denoiser, entry)
            later[number] = (*later[number], Output(inside(folder, entry.file), manifest))
    phases: list[OpenPhase] = []
    if bundle.denoiser is not None:
        phases.append(OpenPhase(0.0, components[bundle.denoiser]))
        starts = [phase.start for phase in bundle.phases]
        phases += [OpenPhase(*pair) for pair in zip(starts, later, strict=True)]
    return OpenBundle(folder, bundle, components, tuple(phases))


def _hashes(verify: str) -> bool:
    if verify not in get_args(Verify):
        raise ConfigError(
            f"Unknown verify={verify!r}.", remedy=f"Known: {', '.join(get_args(Verify))}."
        )
    return verify == "full"


def check_library(output: Output, name: str, version: str) -> None:
    """Refuse an engine of another library or version: engines are not portable between them.

    Raises:
        EngineError: they differ.
    """
    wanted = output.manifest.library
    if wanted != f"{name} {version}":
        raise EngineError(
            f"{output.path.name} was built with {wanted}; here is {name} {version}.",
            remedy="Install that version, or build the engine again with this one.",
        )


def check_gpu(output: Output, gpu: str) -> None:
    """Refuse an engine that was built for other GPUs.

    Args:
        output: with an engine.
        gpu: of this machine, such as "sm89".

    Raises:
        EngineError: it is none of the engine's targets.
    """
    targets = output.manifest.targets
    if gpu not in targets:
        raise EngineError(
            f"{output.path.name} was built for {', '.join(targets)}; the GPU here is {gpu}.",
            remedy=f"Build it again with --target {','.join([*targets, gpu])}.",
        )
