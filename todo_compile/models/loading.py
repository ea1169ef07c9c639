"""A model ready for capture: made, filled, described."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from todo_compile._torch import fake_mode, fake_mode_of
from todo_compile.models.build import build
from todo_compile.models.checkpoint import fill_from, open_checkpoint
from todo_compile.models.ip_adapter import attach
from todo_compile.models.lora import Lora, fuser
from todo_compile.models.randomise import randomiser
from todo_compile.models.source import Source
from todo_compile.models.weights import Weights, weights_hash

if TYPE_CHECKING:
    from contextlib import AbstractContextManager


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A module and what is known about it.

    Attributes:
        module: in eval mode, no parameter requires a gradient.
        source: where it came from; has the configuration and the training grid.
        dtype: of its parameters.
        weights: what it was filled with; None for a fake model.
        weights_hash: identity of those weights; None for a fake model or if not asked for.
        parameters: number of parameters.
        fake: the fake mode that the module's tensors belong to; None for a real model.
        filling: fills the weights in the background, see `start_load`; None when they are there.
    """

    module: nn.Module = field(repr=False)
    source: Source
    dtype: torch.dtype
    weights: Weights | None
    weights_hash: str | None
    parameters: int
    fake: AbstractContextManager[object] | None = field(default=None, repr=False)
    filling: Future[None] | None = field(default=None, repr=False)

    def finish(self) -> None:
        """Wait for the weights.

        Raises:
            ModelError: they do not work.
        """
        if self.filling is not None:
            self.filling.result()

    @property
    def class_name(self) -> str:
        """The diffusers class of the module."""
        return self.source.class_name


def load(
    source: Source,
    weights: Weights | None = None,
    *,
    dtype: torch.dtype,
    fake: bool = False,
    hashed: bool = True,
    loras: Sequence[Lora] = (),
    report: Callable[[int, int], None] | None = None,
) -> LoadedModel:
    """Make the module of `source` in `dtype` and fill it.

    Peak memory is the model's size in `dtype` (plus 64 MB where the files have another dtype).

    Args:
        source: from `resolve`.
        weights: from `find_weights`; needed unless `fake`.
        dtype: a floating dtype.
        fake: make shapes only, under a fake mode of its own (`LoadedModel.fake`); `weights` are
            not looked at. Takes about a second for SDXL.
        hashed: compute the hash of the weights (reads the files once more, from the page cache).
        loras: fused into the weights, in order; ignored if `fake`.
        report: called with (bytes done, bytes in all) while files are read.

    Raises:
        ModelError: the configuration or the weights do not work.
        ValueError: neither `weights` nor `fake`.
    """
    if fake:
        mode = fake_mode()
        with mode:
            module = build(source.config, dtype)
            _attach(module, source, dtype, fill=False)
        _adopt_tables(module)
        return LoadedModel(module, source, dtype, None, None, _count(module), mode)
    if weights is None:
        raise ValueError("load needs weights unless fake=True")
    module = build(source.config, dtype)
    _filling(module, source, weights, loras, report)()
    _attach(module, source, dtype)
    identity = weights_hash(weights) if hashed else None
    return LoadedModel(module, source, dtype, weights, identity, _count(module))


def start_load(
    source: Source,
    weights: Weights,
    *,
    dtype: torch.dtype,
    loras: Sequence[Lora] = (),
    report: Callable[[int, int], None] | None = None,
) -> LoadedModel:
    """As `load`, but the weights are filled in the background; `LoadedModel.finish` waits for them.

    Tracing looks at shapes alone, so it can go on meanwhile: it keeps one core busy for as long as
    filling keeps the disk or another core. Whoever reads values must call `finish` first.

    Args and errors as `load`. What is wrong with names and shapes in the files is raised at once,
    what is wrong with their content by `finish`.
    """
    module = build(source.config, dtype)
    pool = ThreadPoolExecutor(1, "weights")
    filling = pool.submit(_filling(module, source, weights, loras, report))
    _attach(module, source, dtype)  # after the names of the checkpoint were looked up
    pool.shutdown(wait=False)
    return LoadedModel(module, source, dtype, weights, None, _count(module), filling=filling)


def check_loras(source: Source, loras: Sequence[Lora]) -> None:
    """Compare LoRAs with the shapes of a component, before anything is loaded.

    Raises:
        ModelError: a layer is not in the component, or has another shape.
    """
    if loras:
        _check_loras(json.dumps(dict(source.config)), source.component, tuple(loras))


@functools.lru_cache(maxsize=64)  # a file of builds asks for many sizes of one model
def _check_loras(config: str, component: str, loras: tuple[Lora, ...]) -> None:
    with fake_mode():
        module = build(json.loads(config), torch.float32)
    fuser(module, loras, component)  # outside: a LoRA's alpha is a number that is read


def _filling(
    module: nn.Module,
    source: Source,
    weights: Weights,
    loras: Sequence[Lora],
    report: Callable[[int, int], None] | None,
) -> Callable[[], None]:
    """What fills `module` in place, with all checked that can be without reading weights.

    The tensors to fill are looked up here, never in what is returned: while a module is being
    traced, its parameters are replaced by fake ones, and filling those would be silently wrong.
    """
    add_loras = fuser(module, loras, source.component)
    if weights.kind == "random":
        fill = randomiser(module, weights.seed)
    else:
        wanted = module.state_dict()
        entries = open_checkpoint(wanted, weights.files, source.component, source.config)
        fill = functools.partial(fill_from, wanted, entries, report)

    def fill_and_fuse() -> None:
        fill()
        add_loras()

    return fill_and_fuse


def _attach(module: nn.Module, source: Source, dtype: torch.dtype, *, fill: bool = True) -> None:
    """Add the layers of an IP-Adapter, if the source has one."""
    if source.ip_adapter is not None:
        attach(module, source.ip_adapter, dtype, fill=fill)


def _adopt_tables(module: nn.Module) -> None:
    """Make buffers of tensors that are plain attributes (tables of positions).

    Export takes parameters and buffers into a fake mode of its own, and no other fake tensor.
    """
    for each in module.modules():
        tables = [n for n, v in vars(each).items() if fake_mode_of(v) is not None]
        for name in tables:
            each.register_buffer(name, each.__dict__.pop(name), persistent=False)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
