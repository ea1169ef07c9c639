"""Look into an output: its manifest, whether its files are intact, and what it consists of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from todo_compile.bundle.manifest import Manifest, check_files, read
from todo_compile.errors import BundleError, TodoError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from todo_compile.bundle.tensors import Tensor


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Attributes:
        path: of the main file.
        manifest: of the output.
        damage: what is wrong with the files; empty if they are intact.
        layers: the engine's layers; empty if they were not asked for or cannot be read.
        note: why there are no layers.
    """

    path: Path
    manifest: Manifest
    damage: tuple[str, ...]
    layers: tuple[str, ...] = ()
    note: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "path": str(self.path),
            "manifest": self.manifest.model_dump(mode="json"),
            "damage": list(self.damage),
            "layers": list(self.layers),
            "note": self.note,
        }

    def lines(self) -> list[str]:
        """For people."""
        manifest = self.manifest
        lines = [str(self.path), *manifest.summary(), f"created        {manifest.created}"]
        lines += _tensors("input", manifest.inputs) + _tensors("output", manifest.outputs)
        rewritten = [s for s in manifest.sites if s.get("action") == "rewritten"]
        lines += [
            f"site           {s['module']}: {s['key_tokens']:,} → {s['key_tokens_after']:,} keys"
            for s in rewritten
        ]
        lines += [
            f"refused        {s['module']}: {s['reason']}"
            for s in manifest.sites
            if s.get("action") == "refused"
        ]
        counts = sorted(manifest.onnx.get("ops", {}).items(), key=lambda item: -item[1])
        if counts:
            lines.append("ONNX nodes     " + ", ".join(f"{n} {op}" for op, n in counts[:8]))
        lines.append(
            "versions       " + ", ".join(f"{k} {v}" for k, v in manifest.versions.items())
        )
        lines.append(
            "seconds        " + ", ".join(f"{k} {v:.1f}" for k, v in manifest.seconds.items())
        )
        lines.append("intact         " + ("yes" if not self.damage else "; ".join(self.damage)))
        lines += [f"layer          {layer}" for layer in self.layers]
        if self.note is not None:
            lines.append(f"layers         {self.note}")
        return lines


def _tensors(kind: str, specs: Sequence[Tensor]) -> list[str]:
    return [f"{kind:<14} {s.name} {s.dtype}[{s.text}]" for s in specs]


def inspect(
    path: Path, *, layers: Callable[[Path, str], tuple[str, ...]] | None = None
) -> Inspection:
    """Inspect the output at `path` (the main file or its manifest).

    Args:
        layers: lists an engine's layers, `export.layers.engine_layers`; None leaves them out.

    Raises:
        BundleError: `path` or its manifest is missing or damaged.
    """
    if not path.exists():
        raise BundleError(
            f"{path} does not exist.", remedy="Give the .plan, .engine, .onnx or .pt2 file."
        )
    if path.is_dir():
        raise BundleError(
            f"{path} is a folder.", remedy="Give the .plan, .engine, .onnx or .pt2 file in it."
        )
    manifest = read(path)
    main = path.parent / manifest.files[0 if manifest.library else -1].name
    damage = tuple(check_files(manifest, path.parent))
    found: tuple[str, ...] = ()
    note: str | None = None
    if layers is not None and damage:
        note = "not read: the file is damaged"
    elif layers is not None and manifest.library is None:
        note = "an ONNX file has operators, listed above"
    elif layers is not None and manifest.packaged:
        note = "an AOTInductor package is machine code"
    elif layers is not None:
        try:
            found = layers(main, manifest.library or "")
        except TodoError as error:
            note = f"cannot be read here: {error.message}"
    return Inspection(main, manifest, damage, found, note)
