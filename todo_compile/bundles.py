"""All components of a pipeline in one folder: `compile_bundle`.

Every component is built as `compiler.compile` builds one, in ``.parts`` inside the folder, where a
build that was stopped finds what was finished. When all are there, ``bundle.json`` is removed, the
files move to their places, and the new ``bundle.json`` is written last. So a bundle that was whole
stays usable until its successor is, and a folder without ``bundle.json`` is never loaded.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from todo_compile.compiler import CompileResult, build
from todo_compile.config import PlanOptions
from todo_compile.errors import BundleError, ConfigError
from todo_compile.jobs import SUFFIXES, check_used, prepare
from todo_compile.progress import Progress, SilentProgress

if TYPE_CHECKING:
    from todo_compile.export.bundle import Bundle
    from todo_compile.jobs import Job

SUFFIX = {"onnx": ".onnx", "tensorrt": ".plan"}
_PARTS = ".parts"
_LOCK = ".building"
_DENSE = ".dense"


@dataclass(frozen=True)
class BundleResult:
    """What `compile_bundle` made or found.

    Attributes:
        folder: the bundle.
        bundle: what its ``bundle.json`` says.
        results: of the components by name; a dense twin is ``unet.dense``.
        reused: nothing had to be built or moved.
    """

    folder: Path
    bundle: Bundle
    results: Mapping[str, CompileResult]
    reused: bool


def compile_bundle(
    model: str,
    *,
    res: str | int,
    out: str | Path,
    kind: str = "tensorrt",
    component: str = "all",
    weights: str = "auto",
    batch: int = 2,
    precision: str | None = None,
    vae_precision: str | None = None,
    options: PlanOptions | None = None,
    vae_options: PlanOptions | None = None,
    dense_after: float | None = None,
    loras: Sequence[str] = (),
    force: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> BundleResult:
    """Compile the components of a pipeline for one resolution into one folder.

    Components whose own request is equal are kept. The VAE decoder is built for the images of a
    batch with guidance (half of `batch`), the text encoders for one prompt.

    Args:
        model: registry name, local diffusers folder, or hub id.
        res: side in pixels, or ``"WIDTHxHEIGHT"``.
        out: the folder: absent, empty, or an older bundle.
        kind: ``tensorrt`` or ``onnx``.
        component: ``all``, or the only one to build.
        weights: as for `compiler.compile`; for all components.
        batch: of the denoising model.
        precision: of all components; None takes fp16, and fp32 for SDXL's own autoencoder.
        vae_precision: of the VAE decoder; None takes `precision`.
        options: how factors of the denoising model are chosen.
        vae_options: the same for the VAE decoder; None bounds its tokens by what it saw in
            training, or leaves it dense where `options` leaves all dense.
        dense_after: share of the denoising steps (0 to 1) after which attention is dense; adds a
            dense twin of the denoising model. In ONNX both share their weights' file.
        loras: ``FILE[:SCALE]`` each, fused into the components that they have layers for.
        force: rebuild even what is equal.
        progress: receives steps and remarks; None is silent.
        settings: the rest of `compiler.compile`'s: opset, target, library, timing_cache,
            weight_streaming, verify, dump.

    Raises:
        TodoError: whatever the user can mend; an older bundle then stands as it was.
    """
    from todo_compile.models import parse_lora

    progress = progress or SilentProgress()
    folder = Path(out)
    if kind not in SUFFIX:
        raise ConfigError(f"Unknown format {kind!r}.", remedy=f"Known: {', '.join(SUFFIX)}.")
    _check_folder(folder)
    adapters = [parse_lora(text) for text in loras]
    common = {"res": res, "weights": weights, "progress": progress, "loras": adapters, **settings}
    jobs: dict[str, Job] = {}
    for name in _components(model, component, progress):
        jobs[name] = prepare(
            model,
            out=folder / f"{name}{SUFFIX[kind]}",
            component=name,
            batch=_batch(name, batch),
            precision=(vae_precision or precision) if name == "vae_decoder" else precision,
            options=_options(name, options, vae_options),
            **_own(common, name),
        )
    check_used(adapters, list(jobs.values()))
    if dense_after is not None:
        name = next(iter(jobs))
        jobs[f"{name}{_DENSE}"] = _dense_job(jobs[name], name, dense_after)
    extras = _extras(jobs, progress)
    made = not folder.exists()
    folder.mkdir(exist_ok=True)
    try:
        with _only_one(folder):
            return _Build(folder, kind, jobs, extras, dense_after, force, progress).run()
    finally:
        if made and not any(p.name != _LOCK for p in folder.iterdir()):
            shutil.rmtree(folder, ignore_errors=True)


def _dense_job(job: Job, name: str, after: float) -> Job:
    """The dense twin of the denoising model's job; what was checked holds for it too."""
    from todo_compile.models.components import OTHERS

    if not 0 < after < 1:
        raise ConfigError(
            f"{after:g} is no share of the steps between 0 and 1.",
            remedy="--dense-after 0.7: dense for the last 30 % of the steps.",
        )
    if name in OTHERS:
        raise ConfigError(
            "--dense-after is for the denoising model, which this bundle lacks.",
            remedy="Leave it out, or build all components.",
        )
    options = replace(job.options, factors=(), kv_tokens=None)
    plan = {**options.describe(), "native_kv_tokens": job.source.native.kv_tokens}
    return replace(
        job,
        out=job.out.with_name(f"{name}{_DENSE}{job.out.suffix}"),
        options=options,
        dump=None if job.dump is None else job.dump.with_name(f"{name}{_DENSE}"),
        request={**job.request, "plan": plan},
    )


def is_folder_output(out: Path, text: str = "") -> bool:
    """Whether ``--out`` means a bundle: an existing folder, a trailing slash, or no suffix."""
    if text.endswith(("/", os.sep)):
        return True
    return out.suffix not in SUFFIXES and (out.is_dir() or out.suffix == "")


def _check_folder(folder: Path) -> None:
    """Refuse a folder that is no bundle of ours: components must not be strewn among files."""
    from todo_compile.export.bundle import BUNDLE_JSON
    from todo_compile.export.files import check_target

    if folder.is_file():
        raise ConfigError(
            f"{folder} is a file, not a folder.", remedy="Name another folder for the bundle."
        )
    check_target(folder / BUNDLE_JSON if folder.is_dir() else folder)
    if folder.is_dir():
        names = {p.name for p in folder.iterdir()}
        if names and not names & {BUNDLE_JSON, _LOCK}:
            raise BundleError(
                f"{folder} holds other files and is no bundle.",
                remedy=f"Name an empty or a new folder: {folder / 'bundle'}/",
            )


def _components(model: str, choice: str, progress: Progress) -> list[str]:
    """Names of the components to build; the denoising model first."""
    from todo_compile.errors import ModelError
    from todo_compile.models.components import OTHERS, part, resolve_component

    if choice != "all":
        return [resolve_component(model, choice).component]
    main = resolve_component(model)
    names = [main.component]
    for name in OTHERS:
        try:
            found = part(main, name)
        except ModelError as error:  # a class that we cannot compile
            progress.warn(f"not in the bundle: {error.message}")
            continue
        if found is not None:
            names.append(name)
        elif name != "text_encoder_2":  # only SDXL has one
            progress.warn(f"not in the bundle: {model} has no {name}")
    return names


def _batch(name: str, batch: int) -> int:
    if name.startswith("text_encoder"):
        return 1
    return max(1, batch // 2) if name == "vae_decoder" else batch


def _options(
    name: str, options: PlanOptions | None, vae_options: PlanOptions | None
) -> PlanOptions | None:
    if name.startswith("text_encoder"):
        return None
    if name != "vae_decoder":
        return options
    if vae_options is None and options is not None:
        # Levels and bounds are the denoising model's; how to sample, and "off", hold for both.
        dense = options.factors == ()
        return replace(options, factors=() if dense else None, kv_tokens=None)
    return vae_options


def _own(common: dict[str, Any], name: str) -> dict[str, Any]:
    """Settings for one component: each dumps to a folder of its own."""
    dump = common.get("dump")
    return common if dump is None else {**common, "dump": Path(dump) / name}


def _extras(jobs: Mapping[str, Job], progress: Progress) -> dict[str, bytes]:
    from todo_compile.models.extras import light_files

    fetch = any(job.weights.origin == "hub" for job in jobs.values())
    extras = light_files({name: job.source for name, job in jobs.items()}, fetch=fetch)
    for name in jobs:
        if not name.startswith("text_encoder"):
            continue
        tokenizer = name.replace("text_encoder", "tokenizer")
        if not any(e.startswith(f"{tokenizer}/") for e in extras):
            progress.warn(f"the bundle has no {tokenizer}: prompts must come as token numbers")
    return extras


def _fits(result: CompileResult, twin: CompileResult | None) -> bool:
    """Whether the weights that a dense twin shares are those of the model as it is now."""
    if twin is None:
        return True
    now = {entry.name: entry.sha256 for entry in twin.manifest.files}
    return all(now.get(e.name, e.sha256) == e.sha256 for e in result.manifest.files)


@contextmanager
def _only_one(folder: Path) -> Generator[None]:
    """Keep a second build out of the folder; the system lifts this when we die."""
    from todo_compile.export._locks import lock_file
    from todo_compile.export.files import disk_errors

    with disk_errors(folder / _LOCK):
        lock = lock_file(folder / _LOCK, create=True)
    if lock is None:
        raise BundleError(
            f"Another process is building into {folder}.",
            remedy="Wait for it, or choose another --out.",
        )
    try:
        yield
    finally:
        os.close(lock)


@dataclass(frozen=True)
class _Build:
    """One run over a folder that is ours alone."""

    folder: Path
    kind: str
    jobs: Mapping[str, Job]
    extras: Mapping[str, bytes]
    dense_after: float | None
    force: bool
    progress: Progress

    def run(self) -> BundleResult:
        from todo_compile.export.bundle import BUNDLE_JSON
        from todo_compile.export.files import sweep

        sweep(self.folder / BUNDLE_JSON)
        results: dict[str, CompileResult] = {}
        for name, job in self.jobs.items():
            results[name] = self._component(job, results.get(name.removesuffix(_DENSE)))
        old = self._intact()
        bundle = self._describe(results)
        if old is not None and old == bundle.model_copy(update={"created": old.created}):
            self.progress.info(f"{self.folder} is up to date: every component is equal; kept.")
            shutil.rmtree(self.folder / _PARTS, ignore_errors=True)
            return BundleResult(self.folder, old, results, reused=True)
        self._finish(bundle, results)
        moved = {
            name: replace(result, path=self.folder / result.path.name)
            for name, result in results.items()
        }
        return BundleResult(self.folder, bundle, moved, reused=False)

    def _component(self, job: Job, twin: CompileResult | None) -> CompileResult:
        """Find the component in its place or among the parts, or build it there.

        A dense twin comes after the model whose weights it shares, and only fits those.
        """
        from todo_compile.export.files import sweep
        from todo_compile.export.manifest import find_reusable, read

        part = self.folder / _PARTS / job.out.name
        reasons: tuple[str, ...] = ()
        before = dict(self.progress.seconds)
        # A forced build that was stopped goes on with what it finished; parts are newer.
        for place in (part,) if self.force else (part, job.out):
            sweep(place)
            found = find_reusable(place, job.request)
            if found.reusable and not job.verify:
                result = CompileResult(place, read(place), reused=True)
                if _fits(result, twin):
                    self.progress.info(f"{job.out.name} is up to date; kept.")
                    return result
            reasons = found.reasons or reasons
        if reasons:
            self.progress.info(f"Rebuilding {job.out.name}: " + "; ".join(reasons))
        part.parent.mkdir(exist_ok=True)
        return build(replace(job, out=part), reasons, since=before, twin=self._beside(part, twin))

    def _beside(self, part: Path, twin: CompileResult | None) -> Path | None:
        """The twin's model file; its weights are linked to the parts, where they must lie too."""
        from todo_compile.export.onnx import data_name

        if twin is None or self.kind != "onnx":
            return None
        data = twin.path.with_name(data_name(twin.path))
        link = part.with_name(data.name)
        if data.exists() and data != link:
            link.unlink(missing_ok=True)
            try:
                os.link(data, link)
            except OSError:
                return None  # a file system without links: the weights are stored twice
        return twin.path

    def _intact(self) -> Bundle | None:
        """The bundle that stands, if it is whole."""
        from todo_compile.export.bundle import check_bundle, read_bundle

        try:
            bundle = read_bundle(self.folder)
        except BundleError:
            return None
        # The components' files were hashed by the search for reusable ones.
        wrong = check_bundle(bundle, self.folder, hashes=False)
        same = all(
            (self.folder / name).is_file() and (self.folder / name).read_bytes() == content
            for name, content in self.extras.items()
        )
        return bundle if not wrong and same else None

    def _describe(self, results: Mapping[str, CompileResult]) -> Bundle:
        import hashlib

        from todo_compile.export.bundle import Bundle, ComponentEntry, ExtraFile, file_sha256
        from todo_compile.export.manifest import manifest_path, now

        main = next(iter(self.jobs.values()))
        entries = {
            name: ComponentEntry(
                file=result.path.name, manifest_sha256=file_sha256(manifest_path(result.path))
            )
            for name, result in results.items()
        }
        dense = {n.removesuffix(_DENSE): entries.pop(n) for n in list(entries) if _DENSE in n}
        return Bundle.model_validate(
            {
                "created": now(),
                "model": main.source.identifier,
                "resolution": str(main.resolution),
                "batch": main.batch,
                "precision": main.precision,
                "kind": self.kind,
                "pipeline_class": main.source.pipeline or "StableDiffusionPipeline",
                "components": entries,
                "dense": dense,
                "dense_after": self.dense_after,
                "extras": [
                    ExtraFile(
                        name=name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
                    )
                    for name, content in self.extras.items()
                ],
            }
        )

    def _finish(self, bundle: Bundle, results: Mapping[str, CompileResult]) -> None:
        """Move everything to its place. From the first line to the last there is no bundle."""
        from todo_compile.export.bundle import BUNDLE_JSON, write_bundle
        from todo_compile.export.files import disk_errors, staged
        from todo_compile.export.manifest import manifest_path

        target = self.folder / BUNDLE_JSON
        stale = self._files()
        moved: set[str] = set()
        with disk_errors(target):
            target.unlink(missing_ok=True)
            for result in results.values():
                names = [entry.name for entry in result.manifest.files]
                if result.path.parent != self.folder:
                    # The manifest last: a component that lacks its manifest is built again.
                    for name in (*names, manifest_path(result.path).name):
                        if name in moved:
                            continue  # shared weights
                        moved.add(name)
                        os.replace(result.path.with_name(name), self.folder / name)
                stale -= {*names, manifest_path(result.path).name}
            for name in stale - set(self.extras):
                (self.folder / name).unlink(missing_ok=True)
            for name, content in self.extras.items():
                path = self.folder / name
                path.parent.mkdir(exist_ok=True)
                with staged(path) as stage:
                    stage.publish(path.name).write_bytes(content)
            with staged(target) as stage:
                write_bundle(bundle, stage.publish(BUNDLE_JSON))
            shutil.rmtree(self.folder / _PARTS, ignore_errors=True)

    def _files(self) -> set[str]:
        """Files of the bundle that stands, by its own word."""
        from todo_compile.export.bundle import component_manifest, read_bundle
        from todo_compile.export.manifest import manifest_path

        try:
            bundle = read_bundle(self.folder)
        except BundleError:
            return set()
        found = {extra.name for extra in bundle.extras}
        for component, entry in bundle.entries():
            found |= {entry.file, manifest_path(Path(entry.file)).name}
            try:
                manifest = component_manifest(self.folder, component, entry)
            except BundleError:
                continue  # damaged: what it would name cannot be trusted
            found |= {file.name for file in manifest.files}
        return found
