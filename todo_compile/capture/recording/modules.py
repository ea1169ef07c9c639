"""Stand-ins for a pipeline's networks: the real classes, without weights.

They are made on the meta device, where a forward pass computes shapes alone. What comes out is
filled with seeded numbers on the CPU, so that the pipeline's own code has real tensors to work on.
Equal calls give equal tensors, from a memory: a pipeline is run several times.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from todo_compile._torch import flattened, map_tensors
from todo_compile.errors import ModelError, first_line
from todo_compile.models.build import making
from todo_compile.models.parts import Part
from todo_compile.models.trust import pipeline_module

_MOST = 2**26
"""Elements that are worth filling: what is larger (logits of every word) no denoiser takes."""


class Recorded(BaseException):
    """The denoiser was called: no error, but the end of a run.

    Attributes:
        arguments: by the names of the denoiser's own parameters.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        super().__init__("the denoiser was called")
        self.arguments = arguments


class Result(tuple[Any, ...]):
    """What a denoiser returns, with or without ``return_dict``."""

    @property
    def sample(self) -> Any:
        """The first."""
        return self[0]


@dataclass
class Stage:
    """What all stand-ins of one pipeline share.

    Attributes:
        dtype: of the tensors that they give, and that they say they have.
        memory: results of earlier calls.
        answer: what the denoiser does with the arguments of a call; None ends the run with it.
        shapes: what the denoiser gives for them by its shapes alone: seeded numbers.
        encoded: (how many pictures were encoded before, latent picture) → what an autoencoder
            gives instead; None leaves what it is.
    """

    dtype: torch.dtype = torch.float32
    memory: dict[str, Any] = field(default_factory=dict[str, Any], repr=False)
    answer: Callable[[Mapping[str, Any]], Any] | None = field(default=None, repr=False)
    shapes: Callable[[Mapping[str, Any]], Any] = field(default=dict, repr=False)
    inside: bool = False
    encoded: Callable[[int, torch.Tensor], torch.Tensor] | None = field(default=None, repr=False)
    encodings: int = 0


def stand_in(name: str, part: Part, stage: Stage, *, denoiser: bool = False) -> nn.Module:
    """The network that `part` describes, without weights.

    Args:
        name: of the part in its pipeline.
        part: of diffusers or transformers.
        stage: shared by the pipeline's stand-ins.
        denoiser: raise `Recorded` when it is called.

    Raises:
        ModelError: its library cannot make it.
    """
    cls = class_of(part)
    try:
        with torch.device("meta"), making(torch.float32):
            module = _made(cls, part)
    except ModelError:
        raise
    except Exception as error:  # a configuration can raise anything in a library
        raise ModelError(
            f"{part.library} cannot make a {part.name} from its configuration: {first_line(error)}",
            remedy="Compare the folder with the model's origin, or update the library.",
        ) from error
    module.to("meta").eval().requires_grad_(False)  # tables made by numpy too
    # It says that it is on the CPU, since the pipeline puts its tensors there.
    body: dict[str, Any] = {
        "__module__": cls.__module__,
        "device": property(lambda _: torch.device("cpu")),
        "dtype": property(lambda _: stage.dtype),
    }
    if denoiser:
        body["forward"] = _recorder(cls.forward, stage)
    else:
        own = {key: value for key, value in vars(cls).items() if inspect.isfunction(value)}
        public = [key for key in own if not key.startswith("_")]
        body |= {method: _on_meta(own[method], name, stage) for method in public}
    module.__class__ = type(cls.__name__, (cls,), body)
    if denoiser:
        computed = _on_meta(cls.forward, name, stage)
        stage.shapes = lambda arguments: computed(module, **arguments)
    return module


def class_of(part: Part) -> Any:
    """The class that `part` names, in its library.

    Raises:
        ModelError: the library is absent or has no such class.
    """
    try:
        if part.library == "transformers":
            import transformers

            return getattr(transformers, part.name)
        import diffusers

        if part.library == "diffusers":
            return getattr(diffusers, part.name)
        return getattr(pipeline_module(part.library), part.name)
    except (ImportError, AttributeError) as error:
        raise ModelError(
            f"{part.library} has no {part.name}: {first_line(error)}.",
            remedy='Install or update it: pip install -U "todo-compile[generate]".',
        ) from error


def _made(cls: Any, part: Part) -> nn.Module:
    config = dict(part.config)
    if hasattr(cls, "from_config"):  # diffusers'; Kolors' text encoder, in it, is of the other kind
        return cast("nn.Module", cls.from_config(config))
    kept = {k: v for k, v in config.items() if k not in ("torch_dtype", "dtype")}
    if part.name.startswith("CLIPText"):  # longer texts are encoded in pieces
        kept["max_position_embeddings"] = 2**15
    # Attention that is not fused never looks at the values of a mask.
    return cast("nn.Module", cls(cls.config_class.from_dict(kept, attn_implementation="eager")))


def _recorder(forward: Callable[..., Any], stage: Stage) -> Callable[..., Any]:
    signature = inspect.signature(forward)

    def record(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        found = dict(signature.bind(self, *args, **kwargs).arguments)
        del found[next(iter(signature.parameters))]
        if stage.answer is None:
            raise Recorded(found)
        return stage.answer(found)

    return record


def _on_meta(method: Callable[..., Any], name: str, stage: Stage) -> Callable[..., Any]:
    """`method` with shapes alone computed, and real numbers given back."""

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if stage.inside:  # one method calls another
            return method(self, *args, **kwargs)
        key = f"{name}.{method.__name__} {_described((args, kwargs))} {stage.dtype}"
        if key not in stage.memory:
            given = map_tensors(_to_meta, (args, kwargs))
            stage.inside = True
            try:
                with torch.device("meta"), torch.no_grad(), _NoValues():
                    found = method(self, *given[0], **given[1])
            finally:
                stage.inside = False
            seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")
            generator = torch.Generator().manual_seed(seed)
            stage.memory[key] = _filled(found, generator, stage.dtype)
        given_back = _copied(stage.memory[key])
        if method.__name__ == "encode" and stage.encoded is not None:
            given_back = _encoded(given_back, stage)
        return given_back

    call.__name__ = method.__name__
    call.__signature__ = inspect.signature(method)  # pyright: ignore[reportFunctionMemberAccess]
    return call


def _to_meta(tensor: torch.Tensor) -> torch.Tensor:
    # The weights there are of one type, whatever the pipeline's is.
    kind = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return torch.empty_like(tensor, dtype=kind, device="meta")


def _filled(value: Any, generator: torch.Generator, dtype: torch.dtype) -> Any:
    """The same with real tensors: normal numbers; ones where they are whole (masks)."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    made: dict[Any, torch.Tensor] = {}  # states of all layers are of one shape: one is enough

    def fill(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_meta:
            return tensor
        if not tensor.is_floating_point():
            return torch.ones(tensor.shape, dtype=tensor.dtype)
        if tensor.numel() > _MOST:
            return torch.zeros((), dtype=dtype).expand(tensor.shape)
        if tensor.shape not in made:
            made[tensor.shape] = torch.empty(tensor.shape).normal_(generator=generator).to(dtype)
        return made[tensor.shape]

    if isinstance(value, DiagonalGaussianDistribution):
        return DiagonalGaussianDistribution(fill(value.parameters))
    if hasattr(value, "latent_dist"):
        return type(value)(latent_dist=_filled(value.latent_dist, generator, dtype))
    if type(value) is tuple:
        return tuple(_filled(one, generator, dtype) for one in cast("tuple[Any, ...]", value))
    return map_tensors(fill, value)


def _encoded(value: Any, stage: Stage) -> Any:
    """What an autoencoder gives, with another latent picture in it, of no variance."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    number, stage.encodings = stage.encodings, stage.encodings + 1
    change = stage.encoded
    assert change is not None
    for name in ("latent_dist", "latents", "latent"):
        found: Any = getattr(value, name, None)
        if isinstance(found, torch.Tensor) and found.dim() >= 4:
            return type(value)(**{name: change(number, found)})
        if isinstance(found, DiagonalGaussianDistribution):
            mean = change(number, found.mean)
            parameters = torch.cat([mean, torch.full_like(mean, -30.0)], 1)
            return type(value)(**{name: DiagonalGaussianDistribution(parameters)})
    return value


def _copied(value: Any) -> Any:
    """The same with tensors of its own, in case they are written to."""
    copies: dict[int, torch.Tensor] = {}

    def copy(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.numel() > _MOST:
            return tensor
        return (
            copies[id(tensor)]
            if id(tensor) in copies
            else copies.setdefault(id(tensor), tensor.clone())
        )

    return map_tensors(copy, value)


def _described(value: Any) -> str:
    leaves, tree = flattened(value)
    parts = [
        f"{leaf.dtype}{tuple(leaf.shape)}" if isinstance(leaf, torch.Tensor) else repr(leaf)
        for _, leaf in leaves
    ]
    return f"{tree} {parts}"


class _NoValues(TorchFunctionMode):
    """Answers "is this mask all true?" with no, where there are no values."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        del types
        if func is torch.Tensor.__bool__ and args[0].is_meta:
            return False
        return func(*args, **(kwargs or {}))
