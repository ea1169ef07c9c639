"""The job for a module of the user's own, with example inputs.

What the module is decides whether an output is kept: its captured graph says all about its code,
its tensors all about its weights. So it is captured before the search for an equal output.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from todo_compile.batches import BatchRange, parse_batch
from todo_compile.build.factory import check_address, check_module, make_module
from todo_compile.build.job import (
    Job,
    builder,
    check_output,
    format_identity,
    need_packages,
    opset_of,
    plain_batch,
    versions,
)
from todo_compile.errors import ConfigError
from todo_compile.options import TokenGrid, check_token_grids
from todo_compile.progress import Progress, SilentProgress

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

    from todo_compile.build.request import BuildRequest
    from todo_compile.capture.given import GivenModule
    from todo_compile.capture.inputs import ExampleInputs

COMPONENT = "module"
"""What manifests of modules call the component."""


@dataclass(frozen=True)
class ModuleJob(Job):
    """The job for a module.

    Attributes:
        name: for people.
        class_name: of the module.
        given: what was captured; None if the job is for looking at only.
        tensors_hash: of its weights.
        again: captures it once more.
    """

    name: str
    class_name: str
    given: GivenModule | None = field(repr=False)
    tensors_hash: str
    native_tokens: int | None
    grids: Mapping[int, TokenGrid]
    again: Callable[[], GivenModule]
    _built: list[bool] = field(default_factory=list[bool], repr=False)

    def capture(self) -> tuple[ExportedProgram, ExampleInputs]:
        # The passes edit a graph in place, and a job may be built twice.
        given = self.again() if self._built or self.given is None else self.given
        self._built.append(True)
        return given.program, given.example

    def manifest_model(self) -> dict[str, Any]:
        assert self.given is not None
        return {
            "name": self.name,
            "class": self.class_name,
            "component": COMPONENT,
            "weights": "those of the module",
            "weights_hash": self.tensors_hash,
            "random_weights": False,
            "config": {},
            "batch": plain_batch(self.batch),
            "precision": self.precision,
            "parameters": self.given.parameters,
            "result": self.given.result,
        }

    @property
    def weight_bytes(self) -> float:
        if self.given is None:
            return float("inf")
        tensors = _tensors(self.given.program).values()
        return float(sum(t.numel() * t.element_size() for t in tensors))

    @property
    def native_kv_tokens(self) -> int | None:
        return self.native_tokens

    @property
    def token_grids(self) -> dict[int, TokenGrid]:
        return dict(self.grids)


def prepare_module(
    request: BuildRequest, progress: Progress | None = None, *, look: bool = False
) -> ModuleJob:
    """The job of a request for a module; see `BuildRequest.resolve`.

    With `look` code of the user's is not executed.
    """
    progress = progress or SilentProgress()
    path = check_output(request)
    batches = None if request.dynamic_batch is None else parse_batch(request.dynamic_batch)
    if batches is not None and not isinstance(batches, BatchRange):
        raise ConfigError(
            f"A dynamic batch of {batches} is no range.",
            remedy="Give one, 1..4; without, the batch is that of the example inputs.",
        )
    grids = check_token_grids(request.token_grids)
    need_packages(request)
    address = request.module if isinstance(request.module, str) else None
    if address is None:
        check_module(request.module, request.args, request.kwargs or {})
    elif request.args is not None or request.kwargs is not None:
        raise ConfigError(
            f"args and kwargs are for a torch module, and {address!r} is text.",
            remedy="Leave them out: a model by name has its own inputs, a factory returns them.",
        )
    else:
        check_address(address)
    options = request.downsampling

    def made() -> tuple[nn.Module, Sequence[Any], Mapping[str, Any]]:
        if address is not None:
            with progress.step("factory"):
                return make_module(address)
        module: Any = request.module
        return module, request.args or (), request.kwargs or {}

    def job(given: GivenModule | None, module: nn.Module | None) -> ModuleJob:
        kind = "" if module is None else f"{type(module).__module__}.{type(module).__qualname__}"
        name = address or kind
        weights = "" if given is None else _tensors_hash(given.program)
        batch = batches or (1 if given is None else _first_size(given.example))
        resolved: dict[str, Any] = {
            "module": kind.rpartition(".")[2],
            "weights": weights,
            "graph": "" if given is None else _graph_hash(given.program),
            "inputs": [] if given is None else _shapes(given),
            "signature": "" if given is None else _signature_hash(given),
            "batch": plain_batch(batch),
            "dynamic_batch": None if batches is None else plain_batch(batches),
            "plan": {**options.describe(), "native_kv_tokens": request.native_kv_tokens},
            "token_grids": {str(n): list(grid) for n, grid in grids.items()},
            "versions": versions(),
            **format_identity(request, library, targets),
        }
        return ModuleJob(
            request, path, batch, "fp32" if module is None else most_of_its_weights(module),
            opset_of(request), options, library, targets, progress, request.identity(resolved),
            name, kind.rpartition(".")[2], given, weights, request.native_kv_tokens, grids, again,
        )  # fmt: skip

    def again() -> GivenModule:
        return _capture(*made(), batches, progress)

    library, targets = builder(request, progress)
    if look:
        return job(None, None)
    module, args, kwargs = made()
    return job(_capture(module, args, kwargs, batches, progress), module)


def _capture(
    module: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    batches: BatchRange | None,
    progress: Progress,
) -> GivenModule:
    from todo_compile.capture.given import capture_module

    with progress.step("capture"):
        return capture_module(module, args, kwargs, batches=batches)


def _first_size(example: ExampleInputs) -> int:
    """What stands for the batch in a report: the first tensor's first size."""
    return next((int(spec.shape[0]) for spec in example.specs if len(spec.shape) > 1), 1)


def _shapes(given: GivenModule) -> list[str]:
    return [
        f"{spec.name} {str(spec.dtype).removeprefix('torch.')}{list(spec.shape)}"
        for spec in given.example.specs
    ]


def _signature_hash(given: GivenModule) -> str:
    text = json.dumps([given.parameters, given.result])
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def most_of_its_weights(module: nn.Module) -> str:
    """The precision of most of a module's weights; what has none counts as fp32."""
    import torch

    names = {torch.float16: "fp16", torch.bfloat16: "bf16"}
    sizes: Counter[str] = Counter()
    for parameter in module.parameters():
        sizes[names.get(parameter.dtype, "fp32")] += parameter.numel()
    return sizes.most_common(1)[0][0] if sizes else "fp32"


def _tensors(program: ExportedProgram) -> dict[str, Any]:
    """Weights, buffers and constants by name.

    Raises:
        ConfigError: one has no values, or is no tensor.
    """
    import torch

    from todo_compile._torch import fake_mode_of

    found: dict[str, Any] = {**program.state_dict, **program.constants}
    for name, value in found.items():
        if not isinstance(value, torch.Tensor):
            raise ConfigError(
                f"The module holds {name}, a {type(value).__name__}, which no file can hold.",
                remedy="Keep only tensors and plain values in it.",
            )
        if value.is_meta or fake_mode_of(value) is not None:
            raise ConfigError(
                f"The tensor {name} of the module has no values.",
                remedy="Load its weights before it is compiled.",
            )
    return found


def _tensors_hash(program: ExportedProgram) -> str:
    import torch

    digest = hashlib.sha256()
    for name, value in sorted(_tensors(program).items()):
        plain = value.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)} ".encode())
        digest.update(memoryview(plain.reshape(-1).view(torch.uint8).numpy()))
    return f"sha256:{digest.hexdigest()}"


def _graph_hash(program: ExportedProgram) -> str:
    from torch.fx import GraphModule

    digest = hashlib.sha256()
    for name, module in program.graph_module.named_modules():
        if isinstance(module, GraphModule):
            digest.update(f"{name}\n{module.graph}\n".encode())
    return f"sha256:{digest.hexdigest()}"
