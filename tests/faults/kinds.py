"""The kinds of output that are built under faults, and what a reader is given of one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from todo_compile.bundle.bundle import check_bundle, is_bundle, read_bundle
from todo_compile.bundle.manifest import check_files, read
from todo_compile.errors import TodoError


@dataclass(frozen=True)
class Kind:
    """A way to build.

    Attributes:
        name: for the table.
        arguments: the command's, after the model.
        outputs: where they are.
    """

    name: str
    arguments: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def many(self) -> bool:
        """Whether it is a file of builds."""
        return len(self.outputs) > 1

    def command(self, model: Path) -> list[str]:
        """The command line; of a file of builds `place` writes the file."""
        if self.many:
            return ["build", *self.arguments, "-q"]
        return ["compile", "-m", str(model), *self.arguments, "-q"]

    def place(self, work: Path, model: Path) -> None:
        """Write what the command needs beside the model."""
        if not self.many:
            return
        text = (
            f"defaults: {{model: {model}, res: 64, precision: fp32}}\n"
            "builds:\n  - out: a.onnx\n  - {out: c.onnx, factors: '2'}\n"
        )
        (work / "builds.yaml").write_text(text, encoding="utf-8")
        (work / "builds.yaml").chmod(0o666)


KINDS = {
    kind.name: kind
    for kind in (
        Kind("file", ("-r", "64", "--precision", "fp32", "-o", "x.onnx"), ("x.onnx",)),
        Kind("engine", ("-r", "64", "-o", "x.plan"), ("x.plan",)),
        Kind(
            "bundle",
            ("-r", "32", "--precision", "fp32", "--format", "onnx", "-o", "b/"),
            ("b",),
        ),
        Kind(
            "bundle of two sizes and a twin",
            ("-r", "32", "-r", "48", "--precision", "fp32", "--format", "onnx", "-o", "b/",
             "--dense-after", "0.5", "--component", "unet"),
            ("b",),
        ),
        Kind("builds of a file", ("builds.yaml", "--jobs", "1"), ("a.onnx", "c.onnx")),
    )
}  # fmt: skip


def content(work: Path, kind: Kind) -> dict[str, str]:
    """What a reader of the place is given: what each output that loads was made of.

    What does not load is not there for a reader, as long as it is refused in our words. (Bytes
    cannot be compared: engines differ from build to build.)
    """
    found: dict[str, str] = {}
    for out in (work / name for name in kind.outputs):
        try:
            if is_bundle(out):
                bundle = read_bundle(out)
                if not check_bundle(bundle, out):
                    found |= {e.file: _made_of(out / e.file) for _, e in bundle.entries()}
            elif out.is_file() and not check_files(read(out), out.parent):
                found[out.name] = _made_of(out)
        except TodoError:
            continue
    return found


def _made_of(path: Path) -> str:
    return json.dumps(read(path).request, sort_keys=True, default=str)


def differences(one: dict[str, str], other: dict[str, str]) -> str:
    """Names of the files in which they differ."""
    names = [n for n in one.keys() | other.keys() if one.get(n) != other.get(n)]
    return ", ".join(sorted(names)[:5])
