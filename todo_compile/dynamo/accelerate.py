"""Compile the right components of a diffusers pipeline, and take it back."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from todo_compile._torch import compiled_call, set_compiled_call
from todo_compile.bundle.plan import read_plan, single_phase
from todo_compile.capture.recording.arguments import frames_name
from todo_compile.dynamo.backend_options import BackendOptions, patch_grid_at
from todo_compile.dynamo.tuned import compile_phases
from todo_compile.errors import ConfigError, ModelError
from todo_compile.models import Resolution, native
from todo_compile.options import check_token_grids, parse_factors

if TYPE_CHECKING:
    from todo_compile.bundle.plan import TunedPlan

Pipeline = TypeVar("Pipeline")
_DENOISERS = ("unet", "transformer", "transformer_2")

_before: weakref.WeakKeyDictionary[nn.Module, Callable[..., Any] | None] = (
    weakref.WeakKeyDictionary()
)
"""What calls of the components ran before `accelerate`."""


@dataclass(frozen=True, slots=True)
class _Part:
    """A component to compile, with the bound on its key/value tokens where one is known.

    Args:
        module: the component.
        native: most key/value tokens that it saw in training, where that is known.
        one_level: it follows one factor only.
        denoises: image tokens go in as the pipeline packs them.
    """

    module: nn.Module
    native: int | None
    one_level: bool = False
    denoises: bool = False


def accelerate(
    pipe: Pipeline,
    *,
    vae: bool = True,
    mode: str | None = None,
    fullgraph: bool = False,
    dynamic: bool | None = None,
    **options: Any,
) -> Pipeline:
    """Compile a pipeline's costly components with downsampled keys and values.

    These are the denoiser (both, where there are two), its ControlNets, and the VAE's decoder. They
    are compiled in place at their first call; `restore` undoes it.

    Args:
        pipe: a diffusers pipeline, or one of its components: a denoiser, a ControlNet, a VAE.
        vae: also compile the VAE's decoder, whose attention runs over every latent position.
        mode, fullgraph, dynamic: as for `torch.compile`.
        options: of the backend: ``kv_tokens``, ``factors`` (the decoder takes the first),
            ``sampling``, ``res``, ``inner``, …; without ``kv_tokens`` and ``factors`` the bound is
            what each component saw in training. A pipeline that packs its latents (FLUX) needs the
            ``res`` that it is called with: its patches then give the denoiser's tokens their grid.
            ``plan``, a `TunedPlan` or its file, is for the denoiser; its phases follow the
            pipeline's scheduler. Its sites are held to the plan, the weights are not.

    Returns:
        What was given.

    Raises:
        ModelError: it is a pipeline without a denoiser.
        ConfigError: an option is unknown.
    """
    tuned = _tuned(pipe, options)
    BackendOptions.parse({**options, **({} if tuned is None else {"phase": 0})}, mode)
    packed = _packed_grid(pipe, options.get("res"))
    for part in _parts(pipe, vae):
        chosen = dict(options)
        if tuned is not None and not part.denoises:
            del chosen["plan"]
        if part.denoises and packed is not None:
            named = check_token_grids(chosen.get("token_grids"))
            chosen["token_grids"] = {packed[0] * packed[1]: packed, **named}
        if part.one_level and (factors := parse_factors(chosen.get("factors"))):
            chosen["factors"] = factors[:1]
        if (
            part.native is not None
            and not {"kv_tokens", "factors", "preset", "plan"} & chosen.keys()
        ):
            chosen["kv_tokens"] = part.native
        _before.setdefault(part.module, compiled_call(part.module))
        if tuned is not None and part.denoises and len(tuned.phases) > 1:
            rest = {name: value for name, value in chosen.items() if name != "plan"}
            rest |= {"mode": mode} if mode is not None else {}
            compile_phases(part.module, pipe, tuned, rest, fullgraph=fullgraph, dynamic=dynamic)
            continue
        part.module.compile(
            backend="todo_inductor",
            fullgraph=fullgraph,
            dynamic=dynamic,
            options={**chosen, **({"mode": mode} if mode is not None else {})},
        )
    return pipe


def _tuned(pipe: object, options: dict[str, Any]) -> TunedPlan | None:
    """The plan that was given, if it is for this pipeline's denoiser and for `res`.

    Raises:
        ConfigError: it is for another.
    """
    if options.get("plan") is None:
        return None

    plan = read_plan(options["plan"])
    present = [name for name in _DENOISERS if getattr(pipe, name, None) is not None]
    if len(plan.phases) > 1 and getattr(pipe, "scheduler", None) is None:
        single_phase(plan, "a module without a scheduler")
    res = options.get("res")
    for name in present:
        size = None if res is None else str(Resolution.parse(res))
        plan.check(component=name, resolution=size)
    return plan


def restore(pipe: Pipeline) -> Pipeline:
    """Undo `accelerate`: the components run as they did before, compiled otherwise or eagerly."""
    for part in _parts(pipe, vae=True):
        if part.module in _before:
            set_compiled_call(part.module, _before.pop(part.module))
    return pipe


def _packed_grid(pipe: object, res: object) -> tuple[int, int] | None:
    """(rows, columns) of the tokens that the pipeline packs a picture of `res` pixels into.

    None without `res`, for a pipeline that packs nothing, and for one of videos: the tokens of
    several frames are no grid of two axes.
    """
    if res is None or not callable(pipe) or not hasattr(pipe, "_pack_latents"):
        return None
    if hasattr(pipe, "_pack_latents_no_patch") or frames_name(type(pipe)) is not None:
        return None
    # A latent cell is `vae_scale_factor` pixels wide, and 2×2 of them are one token.
    return patch_grid_at(str(res), 2 * int(getattr(pipe, "vae_scale_factor", 8)))


def _parts(pipe: object, vae: bool) -> list[_Part]:
    found = [
        _Part(module, _native(module), denoises=True)
        for name in _DENOISERS
        if (module := getattr(pipe, name, None)) is not None
    ]
    if not found and isinstance(pipe, nn.Module):
        return _alone(pipe)
    if not found:
        raise ModelError(
            f"{type(pipe).__name__} has no {' or '.join(_DENOISERS)} to compile.",
            remedy='Compile its modules yourself: torch.compile(module, backend="todo_inductor").',
        )
    # A ControlNet is a copy of its denoiser's first half, whatever its own configuration says.
    found += [_Part(net, found[0].native) for net in _controlnets(pipe)]
    autoencoder: Any = getattr(pipe, "vae", None)
    decoder: Any = getattr(autoencoder, "decoder", None)
    if vae and decoder is not None:
        found.append(_Part(decoder, _native(autoencoder) or found[0].native, one_level=True))
    return found


def _alone(module: nn.Module) -> list[_Part]:
    """What to compile of a component that was given without its pipeline."""
    decoder: Any = getattr(module, "decoder", None)
    if decoder is not None and hasattr(module, "encoder") and hasattr(module, "decode"):
        return [_Part(decoder, _native(module), one_level=True)]
    return [_Part(module, _native(module), denoises=True)]


def _controlnets(pipe: object) -> Iterator[nn.Module]:
    given: Any = getattr(pipe, "controlnet", None)
    if given is not None:
        # Several are one module without a forward pass of its own worth compiling.
        yield from getattr(given, "nets", (given,))


def _native(module: Any) -> int | None:
    """Tokens at the highest attention level in training, where the configuration tells."""
    config = dict(getattr(module, "config", {}) or {})
    config.setdefault("_class_name", type(module).__name__)
    try:
        return native(config).kv_tokens
    except (ModelError, ConfigError):
        return None  # an architecture that the registry does not know: the general default
