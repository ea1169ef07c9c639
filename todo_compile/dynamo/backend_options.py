"""``options=`` of ``torch.compile(…, backend="todo_inductor")``: ours, and those of Inductor."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from todo_compile._torch import inductor_mode, inductor_options
from todo_compile.bundle.plan import read_plan, single_phase
from todo_compile.errors import ConfigError
from todo_compile.models import Resolution
from todo_compile.options import PlanOptions, TokenGrid, check_token_grids

if TYPE_CHECKING:
    from todo_compile.bundle.plan import TunedPlan

OPTIONS = (
    "kv_tokens",
    "factors",
    "sampling",
    "preset",
    "plan",
    "phase",
    "masks",
    "res",
    "token_grids",
    "inner",
    "dump",
    "mode",
)
"""Options of ours; all others are Inductor's."""

_LATENT_SCALE = 8
_LEVELS = 6


@dataclass(frozen=True)
class BackendOptions:
    """``options=`` of `torch.compile`, taken apart.

    Args:
        plan: how factors are chosen.
        token_grids: number of tokens → (rows, columns), or (frames, rows, columns) of a video. The
            caller's word for what comes in packed: the largest input with as many tokens as one of
            them is taken for the image, whatever it is, so name the grids of images only, and not
            for a part that sees text of that length.
        patch_grid: (rows, columns) of packed patches of 2×2 latent cells at ``res``: believed of a
            whole denoiser that takes and returns as many tokens, of nothing else.
        inner: backend that compiles the rewritten graph.
        inductor: Inductor's own options, the mode's included.
        dump: folder for the graph before and after every pass, or None.
        tuned: the plan from `tune` that `plan` is a phase of.
        levels: numbers of tokens of the levels at ``res`` and of `token_grids`: what levels are
            counted by, no evidence of a grid.
    """

    plan: PlanOptions
    token_grids: dict[int, TokenGrid]
    inner: str
    inductor: dict[str, Any]
    dump: str | None
    levels: frozenset[int] = frozenset()
    patch_grid: tuple[int, int] | None = None
    tuned: TunedPlan | None = None

    @staticmethod
    def parse(options: Mapping[str, Any] | None, mode: str | None) -> BackendOptions:
        """Check the options.

        Raises:
            ConfigError: an option is unknown or its value is impossible.
        """
        given = dict(options or {})
        ours = {name: given.pop(name) for name in OPTIONS if name in given}
        # torch takes its own `mode` or `options`, not both.
        mode = _text(ours, "mode") or mode
        inner, dump = _text(ours, "inner") or "inductor", _text(ours, "dump")
        _check_foreign(given, inner, mode)
        patches = {**_of_mode(mode if inner == "inductor" else None), **given}
        grids = check_token_grids(ours.get("token_grids"))
        levels: dict[int, tuple[int, int]] = {}
        patches_at: tuple[int, int] | None = None
        if ours.get("res") is not None:
            levels = grids_at(str(ours["res"]))
            if not levels:
                raise ConfigError(
                    f"res {ours['res']} is less than two latent cells.",
                    remedy="It is a size in pixels: 1024, or WIDTHxHEIGHT.",
                )
            patches_at = patch_grid_at(str(ours["res"]))
        tuned, phase = _tuned(ours)
        plan = phase or PlanOptions.create(
            kv_tokens=ours.get("kv_tokens"),
            factors=ours.get("factors"),
            sampling=ours.get("sampling"),
            preset=ours.get("preset"),
            masks=ours.get("masks"),
        )
        family = frozenset(levels) | frozenset(grids)
        return BackendOptions(plan, grids, inner, patches, dump, family, patches_at, tuned)


def _tuned(given: Mapping[str, Any]) -> tuple[TunedPlan | None, PlanOptions | None]:
    """The tuned plan that was given, and the phase of it that this graph is for."""
    plan, phase = given.get("plan"), given.get("phase")
    if plan is None:
        if phase is not None:
            raise ConfigError("phase needs a plan.", remedy="Give the plan too.")
        return None, None

    for other in ("kv_tokens", "factors", "sampling", "preset"):
        if given.get(other) is not None:
            raise ConfigError(
                f"plan and {other} both say how factors are chosen.", remedy="Give one of them."
            )
    tuned = read_plan(plan)
    if phase is None:
        chosen = single_phase(tuned, "torch.compile")
    elif isinstance(phase, int) and 0 <= phase < len(tuned.phases):
        chosen = tuned.options[phase]
    else:
        raise ConfigError(
            f"The plan has no phase {phase!r}.", remedy=f"It has 0 to {len(tuned.phases) - 1}."
        )
    masks = given.get("masks")
    return tuned, chosen if masks is None else replace(chosen, masks=masks)


def _of_mode(mode: str | None) -> dict[str, Any]:
    """Inductor's options for a mode.

    Raises:
        ConfigError: there is none of that name.
    """
    if mode is None:
        return {}
    try:
        return inductor_mode(mode)
    except RuntimeError as error:
        raise ConfigError(
            f"Unknown mode {mode!r}.",
            remedy="torch._inductor.list_mode_options() shows all: default, reduce-overhead, "
            "max-autotune, ….",
        ) from error


def _text(given: Mapping[str, Any], name: str) -> str | None:
    """An option that is a name or a path."""
    value = given.get(name)
    if value is None:
        return None
    if not isinstance(value, str | os.PathLike):
        raise ConfigError(f"{name} must be text, not {value!r}.")
    return os.fspath(cast("str | os.PathLike[str]", value))


def _check_foreign(given: dict[str, Any], inner: str, mode: str | None) -> None:
    if inner != "inductor":
        if given or (mode and mode != "default"):
            what = ", ".join(given) or f"mode {mode!r}"
            raise ConfigError(
                f"{what} cannot be given to inner backend {inner!r}.",
                remedy=f"With another inner backend only ours work: {', '.join(OPTIONS)}.",
            )
        return
    known = inductor_options() if given else frozenset[str]()
    for name in given:
        if name.replace("-", "_") not in known:
            near = difflib.get_close_matches(name, [*OPTIONS, *known], 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"Unknown option {name!r} for todo_inductor.{hint}",
                remedy=f"Known: {', '.join(OPTIONS)}, and Inductor's own options.",
            )


def grids_at(res: str) -> dict[int, tuple[int, int]]:
    """Token grids of every level of a latent model at a resolution: N → (rows, columns).

    The latent has one cell for 8×8 pixels; each level halves it, rounding up as strided
    convolutions with padding do. Sizes that two levels would share are left out.
    """
    resolution = Resolution.parse(res)
    rows, columns = -(-resolution.height // _LATENT_SCALE), -(-resolution.width // _LATENT_SCALE)
    found: dict[int, tuple[int, int]] = {}
    for _ in range(_LEVELS):
        if rows * columns > 1:
            found[rows * columns] = (rows, columns)
        rows, columns = -(-rows // 2), -(-columns // 2)
    return found


def patch_grid_at(res: str, pixels: int = 2 * _LATENT_SCALE) -> tuple[int, int] | None:
    """(rows, columns) of patches of `pixels` × `pixels` at a resolution; None if there is but one.

    Models that take packed tokens (FLUX) make one of 2×2 latent cells; what is left over is cut.
    """
    resolution = Resolution.parse(res)
    grid = resolution.height // pixels, resolution.width // pixels
    return grid if grid[0] * grid[1] > 1 else None
