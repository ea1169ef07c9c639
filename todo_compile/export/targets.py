"""Which GPUs an engine is built for: names, the machine's own GPU, and the default."""

from __future__ import annotations

import re
from dataclasses import dataclass

from todo_compile import packages
from todo_compile.errors import ConfigError, EngineError
from todo_compile.export.library import Library

# Compute capabilities by NVIDIA's names; which of them can be built for is the library's matter.
KNOWN_TARGETS = (
    "sm75",
    "sm80",
    "sm86",
    "sm87",
    "sm89",
    "sm90",
    "sm100",
    "sm103",
    "sm110",
    "sm120",
    "sm121",
)
# Without a GPU in the machine and without --target: Ada (RTX 40, L4, L40), the most common
# generation that diffusion models are served on and that TensorRT for RTX builds for.
DEFAULT_TARGETS = ("sm89",)
CURRENT = "current"


@dataclass(frozen=True)
class Targets:
    """GPUs to build for.

    Attributes:
        names: such as ``("sm89", "sm120")``; never "current", which would mean something else on
            the next machine.
        current: the library shall ask the GPU in the machine instead of naming it.
        reason: how they were chosen, for the report.
    """

    names: tuple[str, ...]
    current: bool
    reason: str


def parse_targets(text: str | None) -> tuple[str, ...]:
    """Read ``--target``: names separated by commas, or "current"; None or "" gives an empty tuple.

    Raises:
        ConfigError: a name is unknown, or "current" stands with others.
    """
    if text is None or not text.strip():
        return ()
    names = tuple(dict.fromkeys(_normal(part) for part in text.split(",") if part.strip()))
    unknown = [name for name in names if name not in (*KNOWN_TARGETS, CURRENT)]
    if unknown:
        raise ConfigError(
            f"Unknown target: {', '.join(unknown)}.",
            remedy=f"Known: {', '.join(KNOWN_TARGETS)}, or {CURRENT} (the GPU in this machine).",
        )
    if CURRENT in names and len(names) > 1:
        raise ConfigError(
            '"current" cannot be combined with other targets.',
            remedy=f"Name them all: --target {','.join(KNOWN_TARGETS[4:6])}",
        )
    return names


def resolve_targets(wanted: tuple[str, ...], library: Library, gpu: str | None = None) -> Targets:
    """Decide what to build for, given what the library knows and the machine has.

    Args:
        wanted: from `parse_targets`; empty for the default.
        library: what will build.
        gpu: the machine's GPU such as "sm89", or None; see `library.current_gpu`.

    Raises:
        EngineError: the library cannot build for a target.
    """
    if not wanted and gpu is not None and (not library.targets or gpu in library.targets):
        return Targets((gpu,), current=True, reason=f"the GPU in this machine is {gpu}")
    if wanted == (CURRENT,) or (not library.targets and wanted in {(), (gpu,)}):
        if gpu is None:
            raise EngineError(
                "There is no GPU in this machine to build for.",
                remedy=f"Name targets: --target {','.join(library.targets or DEFAULT_TARGETS)}"
                + ("" if library.targets else f" with {packages.install('rtx')}"),
            )
        return Targets((gpu,), current=True, reason=f"the GPU in this machine is {gpu}")
    if not library.targets:
        raise EngineError(
            f"{library.name} builds only for the GPU in the machine"
            f" ({gpu or 'there is none'}), not for {', '.join(wanted)}.",
            remedy=f"Use TensorRT for RTX: {packages.install('rtx')}",
        )
    names = wanted or DEFAULT_TARGETS
    foreign = [name for name in names if name not in library.targets]
    if foreign:
        raise EngineError(
            f"{library.name} {library.version} cannot build for {', '.join(foreign)}.",
            remedy=f"It knows {', '.join(library.targets)}. Choose one of these, or write ONNX"
            " (--out FILE.onnx) and build with TensorRT on a machine that has this GPU.",
        )
    reason = "as asked"
    if not wanted and gpu is None:
        reason = "default, since there is no GPU in this machine"
    elif not wanted:
        reason = f"default, since {library.name} cannot build for this machine's {gpu}"
    return Targets(names, current=False, reason=reason)


def _normal(part: str) -> str:
    """``SM_8.9``, ``8.9`` and ``89`` all mean ``sm89``."""
    name = part.strip().lower()
    match = re.fullmatch(r"(?:sm)?[_-]?(\d{1,3})\.?(\d)", name)
    return f"sm{match[1]}{match[2]}" if match else name
