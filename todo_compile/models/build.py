"""Constructing a component from its configuration, without useless initialisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from todo_compile import packages
from todo_compile.errors import ModelError, TodoError, first_line
from todo_compile.models.architecture import TEXT_CLASSES, class_name
from todo_compile.models.bounds import Account, check_config

_RANDOM_FILLS = frozenset(
    {"uniform_", "normal_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_"}
    | {"xavier_uniform_", "xavier_normal_", "orthogonal_"}
)
_OF_A_SIZE = frozenset({"empty", "zeros", "ones", "rand", "randn", "full"})


def build(config: Mapping[str, Any], dtype: torch.dtype) -> nn.Module:
    """The module that `config` describes, in `dtype`, in eval mode, without gradients.

    Parameters hold whatever memory held: fill every one of them. The module is made in `dtype`
    (not converted afterwards), so that memory never holds it twice and so that it can be made
    under a fake mode, where ``Module.to`` fails.

    Raises:
        ModelError: diffusers is absent, or it does not accept the configuration, or what that
            describes is larger than any model (`bounds`).
    """
    name = class_name(config)
    check_config(config)
    text = name in TEXT_CLASSES
    make = _transformers_maker(name) if text else network_class(name).from_config
    try:
        with making(dtype):
            module = cast("nn.Module", make(dict(config)))
    except TodoError:
        raise
    except Exception as error:  # whatever a configuration from elsewhere sets off in a library
        library = "transformers" if text else "diffusers"
        raise ModelError(
            f"{library} cannot make a {name} from the model's config.json: {first_line(error)}",
            remedy=f"Compare config.json with the model's origin, or update {library}.",
        ) from error
    return module.eval().requires_grad_(False)


@contextmanager
def making(dtype: torch.dtype) -> Generator[None]:
    """Make modules in `dtype` without random initialisation, and count what they take.

    Raises:
        ModelError: more than any model has.
    """
    with default_dtype(dtype), _Making():
        yield


@contextmanager
def default_dtype(dtype: torch.dtype) -> Generator[None]:
    """Make floating tensors in `dtype` unless told otherwise."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class _Making(TorchFunctionMode):
    """Leaves out random initialisation; constants (zeros, ones) and buffers are made as ever.

    What is made is counted before it takes memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self._account = Account()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        del types
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _RANDOM_FILLS:
            return args[0] if args else kwargs["tensor"]
        if name in _OF_A_SIZE:
            self._account.add(_elements(args, kwargs))
        elif name == "arange":
            self._account.add(max((abs(n) for n in args if isinstance(n, int)), default=0))
        return func(*args, **kwargs)


def _elements(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Of ``torch.empty(2, 3)``, ``torch.empty((2, 3))`` or ``torch.empty(size=(2, 3))``."""
    size = kwargs.get("size", args[0] if args and not isinstance(args[0], int) else args)
    return math.prod(side for side in size if isinstance(side, int))


def network_class(name: str) -> Any:
    """diffusers' network of that name.

    Raises:
        ModelError: diffusers is absent, or has none.
    """
    library = packages.load("diffusers", "A model in diffusers' format")
    found = getattr(library, name, None)
    # An index or configuration may name anything: networks alone are made.
    if not (isinstance(found, type) and issubclass(found, library.ModelMixin)):
        raise ModelError(
            f"Model class {name} is not supported: diffusers has no network of that name.",
            remedy="Load the module yourself and hand it to the Python API with example inputs: "
            "todo_compile.rewrite(module, example_inputs).",
        )
    return found


def _transformers_maker(name: str) -> Callable[[dict[str, Any]], Any]:
    library = packages.load("transformers", "A text encoder")

    def make(config: dict[str, Any]) -> Any:
        # The precision is ours to choose; attention stays one operator, as in the UNet.
        kept = {k: v for k, v in config.items() if k not in ("torch_dtype", "dtype")}
        return getattr(library, name)(
            library.CLIPTextConfig.from_dict(kept, attn_implementation="sdpa")
        )

    return make
