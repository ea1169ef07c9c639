"""The manifest beside an output: what it is, what it was made from, and whether it is intact.

``engine.plan`` has ``engine.plan.json``. An output is reused only if everything in the manifest's
``request`` equals what is asked for now and every file has the size and hash that stand there;
competitors' engines are found by name alone and go stale unnoticed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from todo_compile.bundle import entries
from todo_compile.bundle.entries import FORMAT, FileEntry, Frozen, read_small, wrong_files
from todo_compile.bundle.files import finish_moves
from todo_compile.bundle.plan_entry import PlanEntry
from todo_compile.bundle.tensors import Tensor
from todo_compile.bundle.verdict import Verdict
from todo_compile.disk import format_bytes
from todo_compile.errors import BundleError

MAX_BYTES = 16 * 2**20  # SDXL's is 60 kB
_REBUILD = "Build the output again with todo-compile."


class MemoryUse(Frozen):
    """Bytes that the engine takes when it runs, as the builder reports them.

    Attributes:
        activation: for values between layers, one execution.
        scratch: for the layers' own use.
        weights: on the device.
    """

    activation: int | None = None
    scratch: int | None = None
    weights: int | None = None


class Manifest(Frozen):
    """What an output is and how it was made.

    Attributes:
        format: version of this layout.
        created: UTC time.
        request: everything that decides whether the output can be reused.
        versions: of the software that made it.
        model: identity, configuration, and whether the weights are random.
        plan: the tuned plan that it follows, with what was measured; None if it follows none.
        sites: decision for every attention site.
        totals: predicted FLOPs and bytes, dense and rewritten.
        files: main file first.
        inputs, outputs: its tensors; see `Tensor.shape` where it takes a range of batches.
        library: builder of the engine or package with version; None for ONNX.
        targets: GPU architectures of an engine; system and instructions that a package needs;
            empty for ONNX.
        memory: as the builder reports it; None for ONNX.
        onnx: opset and operator counts.
        gate: what ``--gate`` found; None if not asked for.
        verification: result of ``--verify``, with the error of every site; None if not asked for.
        seconds: of each step.
        peak_rss_bytes: the most memory that the builder's process held.
    """

    format: int = FORMAT
    created: str
    request: dict[str, Any]
    versions: dict[str, str]
    model: dict[str, Any]
    sites: list[dict[str, Any]]
    totals: dict[str, int]
    plan: PlanEntry | None = None
    files: Annotated[list[FileEntry], Field(min_length=1)]
    inputs: list[Tensor]
    outputs: list[Tensor]
    library: str | None = None
    targets: list[str] = []
    memory: MemoryUse | None = None
    onnx: dict[str, Any] = {}
    gate: Verdict | None = None
    verification: dict[str, Any] | None = None
    seconds: dict[str, float]
    peak_rss_bytes: int | None = None

    @property
    def packaged(self) -> bool:
        """Whether this is an AOTInductor package."""
        return (self.library or "").startswith("aotinductor ")

    @property
    def dense(self) -> bool:
        """Whether it downsamples nothing."""
        return all(site.get("action") != "rewritten" for site in self.sites)

    def summary(self) -> list[str]:
        """The manifest in a few lines for people."""
        actions = [s.get("action") for s in self.sites]
        counts = ", ".join(f"{actions.count(a)} {a}" for a in ("rewritten", "dense", "refused"))
        model = self.model
        lines = [
            f"model          {model.get('name')} ({model.get('class')})"
            + (f" at {model['resolution']}" if model.get("resolution") else "")
            + f", batch {model.get('batch')}, {model.get('precision')}",
            f"weights        {model.get('weights')}",
            f"attention      {counts}",
            *(self.plan.lines() if self.plan is not None else ()),
        ]
        if self.library is not None:
            kind = "package" if self.packaged else "engine"
            lines.append(f"{kind:<14} {self.library} for {', '.join(self.targets)}")
        if self.memory is not None:
            parts = (
                ("activations", self.memory.activation),
                ("scratch", self.memory.scratch),
                ("weights", self.memory.weights),
            )
            known = [f"{name} {format_bytes(n)}" for name, n in parts if n is not None]
            lines.append(f"GPU memory     {', '.join(known) or 'not reported'}")
        lines.append(
            "files          " + ", ".join(f"{f.name} ({format_bytes(f.bytes)})" for f in self.files)
        )
        if self.gate is not None:
            lines += self.gate.lines()
        if self.verification is not None:
            lines.append(f"verified       {self.verification.get('summary')}")
            if proved := self.verification.get("sites_summary"):
                lines.append(f"proved         {proved}")
        return lines


@dataclass(frozen=True)
class Reuse:
    """Whether an existing output serves a request, and if not, why.

    Attributes:
        reusable: everything that matters is equal and the files are intact.
        reasons: differences, for people; empty if there is no output yet.
    """

    reusable: bool
    reasons: tuple[str, ...] = ()


def manifest_path(output: Path) -> Path:
    """Where the manifest of `output` lies."""
    return output.with_name(f"{output.name}.json")


def read(output: Path) -> Manifest:
    """The manifest of an output.

    Args:
        output: the engine or ONNX file, or the manifest itself.

    Raises:
        BundleError: there is none, or it is damaged or of another version.
    """
    path = output if output.suffix == ".json" else manifest_path(output)
    if not os.path.exists(path):
        finish_moves(path.with_suffix(""))
    if path != output and not os.path.exists(path):  # False for names that cannot be, too
        if not os.path.exists(output):
            raise BundleError(f"{output} does not exist.", remedy=_REBUILD)
        raise BundleError(
            f"{output} has no manifest beside it: {path} does not exist.", remedy=_REBUILD
        )
    return parse(read_small(path, MAX_BYTES, remedy=_REBUILD), path)


def parse(data: bytes, path: Path) -> Manifest:
    """The manifest in `data`, which was read from `path`.

    Raises:
        BundleError: damaged or of another version.
    """
    return entries.parse(Manifest, data, path, remedy=_REBUILD)


def check_files(manifest: Manifest, folder: Path, *, hashes: bool = True) -> list[str]:
    """What is wrong with the files of an output; empty if they are intact. Sizes first.

    Args:
        manifest: of the output.
        folder: where its files lie.
        hashes: read the files too; without, existence and sizes alone.
    """
    return wrong_files(manifest.files, folder, hashes=hashes)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What changed between two requests, one phrase each: ``batch: 2 → 4``."""
    changed: list[str] = []
    for key in dict.fromkeys([*old, *new]):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changed += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            changed.append(f"{prefix}{key}: {_shown(before)} → {_shown(after)}")
    return changed


def _shown(value: object) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "…"


def same_request(output: Path, request: Mapping[str, Any]) -> bool:
    """Whether the manifest of `output` has this request; looks at no other file."""
    try:
        old = read(output).request
    except BundleError:
        return False
    return not differences(old, json.loads(json.dumps(request)))


def find_reusable(output: Path, request: Mapping[str, Any]) -> Reuse:
    """Whether `output` exists and is what `request` asks for, intact."""
    if not output.exists():
        return Reuse(False)
    try:
        manifest = read(output)
    except BundleError as error:
        return Reuse(False, (error.message,))
    if not any(entry.name == output.name for entry in manifest.files):
        return Reuse(False, (f"its manifest does not describe {output.name}",))
    # Through JSON and back, as the stored one went: tuples are lists there.
    changed = differences(manifest.request, json.loads(json.dumps(request)))
    if changed:
        return Reuse(False, tuple(changed))
    wrong = check_files(manifest, output.parent)
    return Reuse(not wrong, tuple(wrong))
