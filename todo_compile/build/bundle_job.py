"""Put a bundle together: build what is missing, move it into place, describe it.

Every component is built as `compiler` builds one, in ``.parts`` inside the folder, where a
build that was stopped finds what was finished. When all are there, ``bundle.json`` is removed, the
files take their places, and the new ``bundle.json`` comes last. So a bundle that was whole stays
usable until its successor is, and a folder without ``bundle.json`` is never loaded. If the process
is killed while the files take their places, whoever looks next ends it (`bundle.moves`).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from todo_compile.build.bundle_gate import BundleGate
from todo_compile.build.compiler import CompileResult, asked_for, build
from todo_compile.build.exchange import copied, exchange, with_folder
from todo_compile.bundle import moves
from todo_compile.bundle._signals import undisturbed
from todo_compile.bundle.alone import only_one
from todo_compile.bundle.bundle import (
    BUNDLE_JSON,
    PARTS,
    check_bundle,
    component_manifest,
    read_bundle,
)
from todo_compile.bundle.description import (
    Bundle,
    ComponentEntry,
    LightFile,
    PhaseEntry,
    WeightFile,
)
from todo_compile.bundle.entries import file_sha256, now, write
from todo_compile.bundle.files import staged, sweep
from todo_compile.bundle.manifest import find_reusable, manifest_path, read
from todo_compile.disk import disk_errors
from todo_compile.errors import BundleError
from todo_compile.export import onnx
from todo_compile.progress import Progress

if TYPE_CHECKING:
    from todo_compile.build.job import Job
    from todo_compile.build.model_job import ModelJob
    from todo_compile.build.request import BuildRequest
    from todo_compile.models.torch_parts import TorchPart


@dataclass(frozen=True)
class BundleResult:
    """What a request for a bundle made or found.

    Attributes:
        folder: the bundle.
        bundle: what its ``bundle.json`` says.
        results: of the outputs by name: ``unet``, those of later phases ``unet.phase2`` and
            ``unet.dense``, at a further resolution ``unet.2048x1152``, ``unet.2048x1152.dense``.
        reused: nothing had to be built or moved.
    """

    folder: Path
    bundle: Bundle
    results: Mapping[str, CompileResult]
    reused: bool


@dataclass(frozen=True)
class BundleJob:
    """A checked request for a bundle.

    Attributes:
        request: what was asked for.
        kind: of the outputs, ``tensorrt``, ``onnx`` or ``pt2``.
        jobs: by the output's name.
        denoisers: for each resolution (start, output's name) of every phase of the schedule.
        light_files: tokenizers, the scheduler and configurations by name.
        torch: parts that stay in torch, by the pipeline's names; their files are linked or copied.
    """

    request: BuildRequest
    kind: str
    jobs: Mapping[str, ModelJob]
    denoisers: Mapping[str, Sequence[tuple[float, str]]]
    light_files: Mapping[str, bytes]
    torch: Mapping[str, TorchPart]
    progress: Progress

    @property
    def folder(self) -> Path:
        """The bundle."""
        return Path(self.request.out)

    @property
    def parts(self) -> Sequence[Job]:
        """The outputs that will be built."""
        return tuple(self.jobs.values())

    def build(self) -> BundleResult:
        """Build what is not there yet, alone in the folder, and put it together.

        Raises:
            TodoError: whatever the user can mend; an older bundle then stands as it was.
        """
        with only_one(self.folder), disk_errors(self.folder / BUNDLE_JSON):
            return self.run()

    def run(self) -> BundleResult:
        self._refuse_links()
        sweep(self.folder / BUNDLE_JSON)
        self._finish_moves()
        gate = BundleGate.of(self)
        if gate is not None:
            gate.before(None if self.request.force else self._intact())
        results: dict[str, CompileResult] = {}
        for name, job in self.jobs.items():
            # The first output of a component has its name and the weights; the others share them.
            results[name] = self._component(job, results.get(job.source.component))
        old = self._intact()
        bundle = self._describe(results)
        known = [] if old is None or not _same_but_gates(old, bundle) else old.gates
        gates = known if gate is None else gate.after(results, known)
        bundle = bundle.model_copy(update={"gates": gates})
        if old is not None and old == bundle.model_copy(update={"created": old.created}):
            self.progress.info(f"{self.folder} is up to date: every component is equal; kept.")
            shutil.rmtree(self.folder / PARTS, ignore_errors=True)
            return BundleResult(self.folder, old, results, reused=True)
        self._finish(bundle, results)
        moved = {
            name: replace(result, path=self.folder / result.path.name)
            for name, result in results.items()
        }
        return BundleResult(self.folder, bundle, moved, reused=False)

    def _finish_moves(self) -> None:
        """End what a killed build began when all its files were there; what cannot be is redone."""
        parts = self.folder / PARTS
        try:
            moves.finish(parts)
        except BundleError as error:
            self.progress.warn(f"{error.message} It is built again.")
            (parts / moves.NOTE).unlink()

    def _refuse_links(self) -> None:
        """Refuse to write through links, which a bundle from elsewhere may hold.

        Files that are links are replaced, not followed; folders would be.

        Raises:
            BundleError: there is one.
        """
        parts = self.folder / PARTS
        inner = list(parts.rglob("*")) if parts.is_dir() and not parts.is_symlink() else []
        folders = [*(n.split("/")[0] for n in self.light_files), *self.torch]
        for path in (parts, *inner, *(self.folder / name for name in folders)):
            if path.is_symlink() and (path.is_dir() or path in (parts, *inner)):
                raise BundleError(
                    f"{path} is a link, and a bundle is not built through links.",
                    remedy="Remove it, or name another folder.",
                )

    def _component(self, job: ModelJob, first: CompileResult | None) -> CompileResult:
        """Find the component in its place or among the parts, or build it there.

        Args:
            job: of the component.
            first: the output for the first phase and resolution, if this is for another one. Both
                share the weights, so this one fits only those.
        """
        part = self.folder / PARTS / job.out.name
        shared = self._shared(job)
        forced = self.request.force and job.out.exists()
        reasons = asked_for(force=True, verify=False) if forced else ()
        before = dict(self.progress.seconds)
        # A forced build that was stopped goes on with what it finished; parts are newer.
        for place in (part,) if self.request.force else (part, job.out):
            sweep(place)
            if _linked(place):
                continue  # what it leads to may change without the bundle
            found = find_reusable(place, job.identity)
            if found.reusable and not job.request.verify:
                result = CompileResult(place, read(place), reused=True)
                if shared and _keeps_weights(result):
                    reasons = ("its weights shall be shared, and lie in the model file",)
                elif _fits(result, first):
                    self.progress.info(f"{job.out.name} is up to date; kept.")
                    return result
            elif found.reusable:
                reasons = reasons or asked_for(force=False, verify=job.request.verify)
            else:
                reasons = found.reasons or reasons
        if reasons:
            self.progress.info(f"Rebuilding {job.out.name}: " + "; ".join(reasons))
        part.parent.mkdir(exist_ok=True)
        return build(
            replace(job, out=part),
            reasons,
            since=before,
            weights_of=self._beside(part, first),
            shared=shared,
        )

    def _shared(self, job: ModelJob) -> bool:
        """Whether there is another model with the same weights, as only ONNX can share them."""
        same = [j for j in self.jobs.values() if j.source.component == job.source.component]
        return self.kind == "onnx" and len(same) > 1

    def _beside(self, part: Path, first: CompileResult | None) -> Path | None:
        """The first output's file; its weights are linked to the parts, where they must lie too."""
        if first is None or self.kind != "onnx":
            return None
        data = first.path.with_name(onnx.data_name(first.path))
        link = part.with_name(data.name)
        if data.exists() and data != link:
            link.unlink(missing_ok=True)
            try:
                link.hardlink_to(data)
            except OSError:
                return None  # a file system without links: the weights are stored twice
        return first.path

    def _intact(self) -> Bundle | None:
        """The bundle that stands, if it is whole."""
        try:
            bundle = read_bundle(self.folder)
        except BundleError:
            return None
        # The components' files were hashed by the search for reusable ones.
        wrong = check_bundle(bundle, self.folder, hashes=False)
        same = all(
            (self.folder / name).is_file() and (self.folder / name).read_bytes() == content
            for name, content in self.light_files.items()
        )
        return bundle if not wrong and same else None

    def _describe(self, results: Mapping[str, CompileResult]) -> Bundle:
        import hashlib

        main = next(iter(self.jobs.values()))
        entries = {
            name: ComponentEntry(
                file=result.path.name, manifest_sha256=file_sha256(manifest_path(result.path))
            )
            for name, result in results.items()
        }
        later = {name for phases in self.denoisers.values() for _, name in phases[1:]}
        first = {phases[0][1] for phases in self.denoisers.values()}
        # By resolution; what serves all stands with the first one.
        sizes: dict[str, dict[str, Any]] = {}
        for name, entry in entries.items():
            job = self.jobs[name]
            size = sizes.setdefault(str(job.resolution), {"components": {}, "phases": []})
            if name in first or name not in later:
                size["components"][job.source.component] = entry
        for resolution, phases in self.denoisers.items():
            sizes[resolution]["phases"] = [
                PhaseEntry(start=start, **entries[name].model_dump()) for start, name in phases[1:]
            ]
        return Bundle.model_validate(
            {
                "created": now(),
                "model": main.source.identifier,
                "resolution": str(main.resolution),
                "batch": main.identity["batch"],
                "precision": main.precision,
                "kind": self.kind,
                "pipeline_class": main.source.pipeline or "StableDiffusionPipeline",
                **sizes.pop(str(main.resolution)),
                "sizes": [{"resolution": size, **found} for size, found in sizes.items()],
                "torch": {
                    name: {
                        "library": part.library,
                        "class_name": part.name,
                        "files": [
                            WeightFile(
                                name=f"{name}/{path.name}",
                                bytes=path.stat().st_size,
                                sha256=file_sha256(path),
                            )
                            for path in part.files
                        ],
                    }
                    for name, part in self.torch.items()
                },
                "light_files": [
                    LightFile(
                        name=name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
                    )
                    for name, content in self.light_files.items()
                ],
            }
        )

    def _finish(self, bundle: Bundle, results: Mapping[str, CompileResult]) -> None:
        """Make all that takes time or room beside the parts, then put everything in its place."""
        parts = self.folder / PARTS
        parts.mkdir(exist_ok=True)
        files = {f"{n}/{path.name}": path for n, part in self.torch.items() for path in part.files}
        with self.progress.step("assemble"):
            copies = [n for n, at in files.items() if copied(at, parts / n, self.folder / n)]
            for name, content in self.light_files.items():
                with staged(with_folder(parts / name)) as stage:
                    stage.publish((parts / name).name).write_bytes(content)
            with staged(parts / BUNDLE_JSON) as stage:
                write(bundle, stage.publish(BUNDLE_JSON))
            stale = self._files() - set(self.light_files) - set(files)
            with undisturbed():
                exchange(self.folder, parts, results, [*copies, *self.light_files], stale)
        shutil.rmtree(parts, ignore_errors=True)

    def _files(self) -> set[str]:
        """Files of the bundle that stands, by its own word."""
        try:
            bundle = read_bundle(self.folder)
        except BundleError:
            return set()
        found = {file.name for file in bundle.loose()}
        for component, entry in bundle.entries():
            found |= {entry.file, manifest_path(Path(entry.file)).name}
            try:
                manifest = component_manifest(self.folder, component, entry)
            except BundleError:
                continue  # damaged: what it would name cannot be trusted
            found |= {file.name for file in manifest.files}
        return found


def _same_but_gates(old: Bundle, new: Bundle) -> bool:
    """Whether two descriptions are of the same files."""
    return old == new.model_copy(update={"created": old.created, "gates": old.gates})


def _linked(output: Path) -> bool:
    """Whether an output, its manifest or its weights' file is a link."""
    beside = (output.with_name(f"{output.name}{end}") for end in ("", ".json", ".data"))
    return any(path.is_symlink() for path in beside)


def _fits(result: CompileResult, first: CompileResult | None) -> bool:
    """Whether an output shares the weights that the first output of its component has now."""
    if first is None:
        return True
    now = {entry.name: entry.sha256 for entry in first.manifest.files}
    return all(now.get(e.name, e.sha256) == e.sha256 for e in result.manifest.files)


def _keeps_weights(result: CompileResult) -> bool:
    """Whether a model has weights in its own file that are worth sharing.

    Such a model was built when no other output had its weights. The manifest says so, the request
    does not: a model whose weights lie in a file of their own can also stand alone.
    """
    return result.manifest.onnx.get("weight_bytes_inside", 0) > onnx.SHARED_OVER
