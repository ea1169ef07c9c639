"""Constructing a component from its configuration, without useless initialisation."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from todo_compile.errors import ModelError
from todo_compile.models.architecture import TEXT_CLASSES, class_name

_RANDOM_FILLS = frozenset(
    {"uniform_", "normal_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_"}
    | {"xavier_uniform_", "xavier_normal_", "orthogonal_"}
)


def build(config: Mapping[str, Any], dtype: torch.dtype) -> nn.Module:
    """The module that `config` describes, in `dtype`, in eval mode, without gradients.

    Parameters hold whatever memory held: fill every one of them. The module is made in `dtype`
    (not converted afterwards), so that memory never holds it twice and so that it can be made
    under a fake mode, where ``Module.to`` fails.

    Raises:
        ModelError: diffusers is absent, or it does not accept the configuration.
    """
    name = class_name(config)
    text = name in TEXT_CLASSES
    make = _transformers_maker(name) if text else _diffusers_class(name).from_config
    try:
        with default_dtype(dtype), _SkipRandomFills():
            module = cast("nn.Module", make(dict(config)))
    except (TypeError, ValueError, KeyError, IndexError, NotImplementedError) as error:
        library = "transformers" if text else "diffusers"
        raise ModelError(
            f"{library} cannot make a {name} from the model's config.json: {error}",
            remedy=f"Compare config.json with the model's origin, or update {library}.",
        ) from error
    return module.eval().requires_grad_(False)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Generator[None]:
    """Make floating tensors in `dtype` unless told otherwise."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class _SkipRandomFills(TorchFunctionMode):
    """Leaves out random initialisation; constants (zeros, ones) and buffers are made as ever."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        del types
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _RANDOM_FILLS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _diffusers_class(name: str) -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise ModelError(
            f"Models in diffusers' format need diffusers, which cannot be imported: {error}.",
            remedy='Install it: pip install "todo-compile[models]".',
        ) from error
    return getattr(diffusers, name)


def _transformers_maker(name: str) -> Callable[[dict[str, Any]], Any]:
    try:
        import transformers
    except ImportError as error:
        raise ModelError(
            f"Text encoders need transformers, which cannot be imported: {error}.",
            remedy='Install it: pip install "todo-compile[models]".',
        ) from error
    library: Any = transformers

    def make(config: dict[str, Any]) -> Any:
        # The precision is ours to choose; attention stays one operator, as in the UNet.
        kept = {k: v for k, v in config.items() if k not in ("torch_dtype", "dtype")}
        return getattr(library, name)(
            library.CLIPTextConfig.from_dict(kept, attn_implementation="sdpa")
        )

    return make
