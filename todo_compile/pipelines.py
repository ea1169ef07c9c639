"""Compile the right components of a diffusers pipeline, and take it back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from todo_compile._torch_private import forget_compiled
from todo_compile.config import parse_factors
from todo_compile.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from torch import nn

Pipeline = TypeVar("Pipeline")
_DENOISERS = ("unet", "transformer")


def accelerate(
    pipe: Pipeline,
    *,
    vae: bool = True,
    mode: str | None = None,
    fullgraph: bool = False,
    dynamic: bool | None = None,
    **options: Any,
) -> Pipeline:
    """Compile a pipeline's denoiser (and VAE decoder) with downsampled keys and values.

    The components are compiled in place at their first call; `restore` undoes it.

    Args:
        pipe: a diffusers pipeline.
        vae: also compile the VAE's decoder, whose attention runs over every latent position.
        mode, fullgraph, dynamic: as for `torch.compile`.
        options: of the backend: ``kv_tokens``, ``factors`` (the decoder takes the first),
            ``sampling``, ``res``, ``inner``, …; without ``kv_tokens`` and ``factors`` the bound is
            what the denoiser saw in training.

    Returns:
        The same pipeline.

    Raises:
        ModelError: it has neither ``unet`` nor ``transformer``.
        ConfigError: an option is unknown.
    """
    from todo_compile.backend import BackendOptions

    BackendOptions.parse(options, mode)
    parts = _parts(pipe, vae)
    decoder: Any = getattr(getattr(pipe, "vae", None), "decoder", None)
    for module, native in parts:
        chosen = dict(options)
        if module is decoder and (factors := parse_factors(chosen.get("factors"))):
            chosen["factors"] = factors[:1]  # a decoder has one level of attention
        if native is not None and not {"kv_tokens", "factors", "preset"} & chosen.keys():
            chosen["kv_tokens"] = native
        module.compile(
            backend="todo_inductor",
            fullgraph=fullgraph,
            dynamic=dynamic,
            # torch takes a mode or options, not both: ours carries the mode's options itself.
            options={**_mode_options(mode), **chosen},
        )
    return pipe


def restore(pipe: Pipeline) -> Pipeline:
    """Undo `accelerate`: the components run eagerly again."""
    for module, _ in _parts(pipe, vae=True):
        forget_compiled(module)
    return pipe


def _mode_options(mode: str | None) -> dict[str, Any]:
    from todo_compile._torch_private import inductor_mode

    return inductor_mode(mode) if mode else {}


def _parts(pipe: object, vae: bool) -> list[tuple[nn.Module, int | None]]:
    found: list[tuple[nn.Module, int | None]] = []
    for name in _DENOISERS:
        module: Any = getattr(pipe, name, None)
        if module is not None:
            found.append((module, _native(module)))
    if not found:
        raise ModelError(
            f"{type(pipe).__name__} has no {' or '.join(_DENOISERS)} to compile.",
            remedy='Compile its modules yourself: torch.compile(module, backend="todo_inductor").',
        )
    decoder: Any = getattr(getattr(pipe, "vae", None), "decoder", None)
    if vae and decoder is not None:
        found.append((decoder, found[0][1]))
    return found


def _native(module: Any) -> int | None:
    """Tokens at the highest attention level in training, where the configuration tells."""
    from todo_compile.models import native

    config = dict(getattr(module, "config", {}) or {})
    config.setdefault("_class_name", type(module).__name__)
    try:
        return native(config).kv_tokens
    except (ModelError, ConfigError):
        return None  # an architecture that the registry does not know: the general default
