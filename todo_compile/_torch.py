"""The only file that imports private parts of torch (ruff's TID251 enforces it).

All of ``torch._*`` comes through here: a release that moves a name is mended in one place.
Run with torch 2.13; the names were looked up in the sources of 2.11.0 and 2.12.0.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.utils._pytree as pytree
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from todo_compile.errors import first_line


def fake_mode(*, allow_non_fake_inputs: bool = False) -> FakeTensorMode:
    """A fresh mode under which tensors have shapes and dtypes but no data."""
    return FakeTensorMode(allow_non_fake_inputs=allow_non_fake_inputs)


@contextmanager
def quick_tracing() -> Generator[None]:
    """While open, graphs are traced without what nobody reads here: a stack trace a node, and
    Python code written anew after every pass of an export (a graph has it once it is asked for it).
    """
    name = "do_not_emit_stack_traces"  # torch 2.11 cannot do without them
    fx: Any = torch.fx
    traces = mock.patch.object(fx.config, name, True) if hasattr(fx.config, name) else nullcontext()
    with traces, fx._lazy_graph_module._use_lazy_graph_module(True):
        yield


def fake_mode_of(value: object) -> FakeTensorMode | None:
    """The fake mode that `value` belongs to, or None for a real tensor."""
    return value.fake_mode if isinstance(value, FakeTensor) else None


def symbolic_rules() -> AbstractContextManager[Any]:
    """While open, operations on fake tensors know symbolic sizes, as they did in the capture."""
    from torch._dispatch.python import enable_python_dispatcher

    return enable_python_dispatcher()


def overload_name(target: object) -> tuple[str, str] | None:
    """(namespace, operator) of an ATen-style overload such as ``aten.add.Tensor``, or of all
    overloads together (``torch.ops.library.name``), else None."""
    if isinstance(target, OpOverload):
        schema = target._schema  # pyright: ignore[reportPrivateUsage]
        return target.namespace, schema.name.split("::", 1)[1]
    if isinstance(target, OpOverloadPacket):
        namespace, _, name = target._qualified_op_name.partition("::")  # pyright: ignore[reportPrivateUsage]
        return namespace, name
    return None


def size_expression(size: Any) -> Any:
    """The sympy expression behind a symbolic size; adds no guard (comparing SymInts would)."""
    return size.node.expr


def is_symbolic(size: object) -> bool:
    """Whether `size` is a symbolic integer rather than a number."""
    return isinstance(size, torch.SymInt)


def inductor(
    module: torch.fx.GraphModule, inputs: Sequence[Any], patches: dict[str, Any]
) -> Callable[..., Any]:
    """Compile Dynamo's graph with Inductor under `patches` of its configuration."""
    from torch._inductor.compile_fx import compile_fx

    return compile_fx(module, list(inputs), config_patches=patches)  # pyright: ignore[reportReturnType]


def inductor_mode(mode: str) -> dict[str, Any]:
    """Inductor's options for ``mode=`` of `torch.compile`."""
    from torch._inductor import list_mode_options

    return dict(list_mode_options(mode))


def inductor_options() -> frozenset[str]:
    """Names of all of Inductor's options."""
    from torch._inductor import config

    return frozenset(config.get_config_copy())


def compiled_ahead(
    program: torch.export.ExportedProgram, folder: str, settings: dict[str, Any]
) -> list[str]:
    """Compile a program for the CPU with AOTInductor into `folder`; the files that a package needs.

    Raises:
        Exception: whatever Inductor, or the C++ compiler, has to say.
    """
    from torch._inductor import aot_compile

    args, kwargs = program.example_inputs or ((), {})
    own = {"aot_inductor.package": True, "aot_inductor.output_path": f"{folder}/"}
    module: Any = program.module()
    found: Any = aot_compile(module, args, kwargs, options={**settings, **own})
    return [str(one) for one in found]


def package_ahead(files: Sequence[str], path: str) -> None:
    """Put what `compiled_ahead` gave into one ``.pt2`` file."""
    from torch._inductor.package.package import package_aoti

    package_aoti(path, list(files))


def load_ahead(path: str) -> Callable[..., Any]:
    """What a ``.pt2`` file holds, to be called as the program was.

    Raises:
        RuntimeError: it cannot be loaded.
    """
    from torch._inductor import aoti_load_package

    return aoti_load_package(path)


def vector_flags() -> list[str]:
    """The compiler's switches for the widest vectors that Inductor writes code for here.

    Raises:
        RuntimeError: there is no C++ compiler.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    get_cpp_compiler()  # without one, no vectors would be found either
    return pick_vec_isa().build_arch_flags().split()


def dynamo_backend(name: str) -> Callable[..., Any]:
    """A registered backend.

    Raises:
        LookupError: there is none of this name.
    """
    from torch._dynamo.backends.registry import lookup_backend
    from torch._dynamo.exc import InvalidBackend

    try:
        return lookup_backend(name)
    except InvalidBackend as error:
        raise LookupError(name) from error


def graph_break(module: torch.fx.GraphModule) -> tuple[str, int, str] | None:
    """(file, line, reason) of what Dynamo cannot trace and ends its graph at; None if it does not.

    Without a known place the file is "" and the line 0.
    """
    why: Any = getattr(module, "compile_subgraph_reason", None)
    if not getattr(why, "graph_break", False):
        return None
    place: Any = next(reversed(list(getattr(why, "user_stack", None) or ())), None)
    reason = first_line(getattr(why, "reason", "") or "no reason given")
    return (place.filename, int(place.lineno or 0), reason) if place else ("", 0, reason)


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A function that Dynamo does not compile, so that it runs eagerly.

    Args:
        function, file, first_line: which.
        at_file, at_line: what it cannot trace, there or in what it calls; "" and 0 if unknown.
        reason: the first line of why.
    """

    function: str
    file: str
    first_line: int
    at_file: str
    at_line: int
    reason: str


def given_up(since: float) -> list[GivenUp]:
    """Functions that Dynamo gave up since a moment (`time.time`), of its last 64 compilations."""
    from torch._dynamo.utils import get_compilation_metrics

    return [
        GivenUp(
            *(one.co_name or "", one.co_filename or "", one.co_firstlineno or 0),
            *(one.fail_user_frame_filename or "", one.fail_user_frame_lineno or 0),
            first_line(one.fail_reason or "no reason given"),
        )
        for one in get_compilation_metrics()
        if one.fail_type and (one.start_time_us or 0) >= since * 1e6
    ]


def size_hint(size: torch.SymInt) -> int | None:
    """The size at hand behind a symbolic one; adds no guard."""
    return hint if isinstance(hint := size.node.hint, int) else None


def compile_number() -> int | None:
    """Which graph of one function Dynamo is compiling, from 1; None outside of it."""
    return None if (number := _of_compile("frame_compile_id")) is None else number + 1


def compile_frame() -> int | None:
    """Which function Dynamo is compiling (or rest of one, after a graph break); None outside."""
    return _of_compile("frame_id")


def _of_compile(name: str) -> int | None:
    from torch._guards import CompileContext

    number = getattr(CompileContext.current_compile_id(), name, None)
    return None if number is None else int(number)


def recompile_limit() -> int:
    """Graphs of one function beyond which Dynamo runs it eagerly."""
    from torch._dynamo import config

    return int(config.recompile_limit)


def static_inputs(module: torch.fx.GraphModule, inputs: Sequence[Any]) -> dict[str, torch.Tensor]:
    """Input node → tensor, for the weights and buffers among the inputs of Dynamo's graph."""
    nodes = (n for n in module.graph.nodes if n.op == "placeholder")
    return {
        node.name: given
        for node, given in zip(nodes, inputs, strict=False)
        if isinstance(given, torch.Tensor)
        and fake_mode_of(given) is None
        and (isinstance(given, torch.nn.Parameter) or hasattr(given, "_dynamo_static_input_type"))
    }


def marked_dynamic() -> frozenset[Any]:
    """Symbols of the sizes that the user forbids to specialise (`torch._dynamo.mark_dynamic`).

    Of the graph that Dynamo is compiling; a guard on one of them is an error at the very end.
    """
    from torch._guards import TracingContext

    mode = getattr(TracingContext.try_get(), "fake_mode", None)
    found: set[Any] = set()
    for tracked in getattr(getattr(mode, "shape_env", None), "tracked_fakes", None) or ():
        constraints = getattr(tracked.symbolic_context, "constraint_sizes", None) or ()
        sizes: Any = getattr(tracked.fake, "shape", ())
        for size, constraint in zip(sizes, constraints, strict=False):
            if constraint is not None and not constraint.warn_only and is_symbolic(size):
                found |= size_expression(size).free_symbols
    return frozenset(found)


def is_models_own(node: torch.fx.Node) -> bool:
    """Whether an input of a graph is a parameter, buffer or constant of the module, no argument.

    Dynamo says so of the tensor; the inputs that `torch.export` makes of them are named so.
    """
    if "val" in node.meta:
        return str(node.target).startswith(("p_", "b_", "c_"))
    return "_dynamo_static_input_type" in node.meta.get("tensor_dict", ())


def onnx_decomposed(
    program: torch.export.ExportedProgram, opset: int
) -> torch.export.ExportedProgram:
    """`program` in operators that torch's ONNX exporter translates, as the exporter would make it.

    Done apart, so that what it does next can be mended before.
    """
    from torch.onnx._internal.exporter import _fx_passes, _registration

    registry = _registration.ONNXRegistry.from_torchlib(opset_version=opset)
    return _fx_passes.decompose_with_registry(program, registry)


def compiled_call(module: torch.nn.Module) -> Callable[..., Any] | None:
    """What ``module.compile()`` made a call of `module` run, if it was compiled."""
    return module._compiled_call_impl  # pyright: ignore[reportPrivateUsage]


def set_compiled_call(module: torch.nn.Module, call: Callable[..., Any] | None) -> None:
    """Put back what `compiled_call` gave; None undoes ``module.compile()``."""
    module._compiled_call_impl = call  # pyright: ignore[reportPrivateUsage]


def on_deepcopy(module: torch.fx.GraphModule, call: Callable[[torch.fx.GraphModule], None]) -> None:
    """Let `call` have every deep copy of `module`: they lose attributes of the instance."""
    module._register_deepcopy_hook(call)  # pyright: ignore[reportPrivateUsage]


def storage_of(tensor: torch.Tensor) -> int | None:
    """Which memory `tensor` lies in; equal for views of each other. None where it has none."""
    try:
        return int(tensor.untyped_storage()._cdata)  # pyright: ignore[reportPrivateUsage]
    except (NotImplementedError, RuntimeError):  # sparse and other tensors without a storage
        return None


def version_of(tensor: torch.Tensor) -> int | None:
    """How often the memory of `tensor` was written, for views alike; None where that is unknown."""
    return None if tensor.is_inference() else tensor._version


def declares_writing(target: object) -> bool:
    """Whether `target` is an operator whose schema says that it writes into an argument."""
    if isinstance(target, OpOverloadPacket):
        return any(declares_writing(getattr(target, name)) for name in target.overloads())
    return isinstance(target, OpOverload) and bool(target._schema.is_mutable)  # pyright: ignore[reportPrivateUsage]


class Writes(TorchDispatchMode):
    """Notes the memory that operators write into by their schemas, as long as it is entered.

    Version counters tell of nearly all of it, but not of what an operator on a list of tensors
    writes (``_foreach_add_``) where the tensors are fake.
    """

    def __init__(self) -> None:
        super().__init__()
        self.storages: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = kwargs or {}
        if func._schema.is_mutable:
            for i, argument in enumerate(func._schema.arguments):
                if argument.alias_info is None or not argument.alias_info.is_write:
                    continue
                value = args[i] if i < len(args) else given.get(argument.name)
                for one in value if isinstance(value, (list, tuple)) else [value]:
                    if isinstance(one, torch.Tensor) and (found := storage_of(one)) is not None:
                        self.storages.add(found)
        return func(*args, **given)


def declares_aliases(target: object) -> bool:
    """Whether the schema of `target` says truly which arguments its results share memory with.

    An operator that is made of others only says nothing: ``aten.dropout`` hands on its input in
    eval mode, which its schema does not tell.
    """
    if not isinstance(target, OpOverload):
        return False
    composite = torch._C.DispatchKey.CompositeImplicitAutograd  # pyright: ignore[reportPrivateUsage]
    return not target.has_kernel_for_dispatch_key(composite)


def is_higher_order(target: object) -> bool:
    """Whether `target` is an operator that calls graphs, such as ``cond`` or a checkpoint."""
    return isinstance(target, HigherOrderOperator)


def is_same_view(one: object, other: object) -> bool:
    """Whether two values are the same elements of the same memory in the same order."""
    if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
        return False
    if (storage := storage_of(one)) is None or storage != storage_of(other):
        return False
    return one.dtype == other.dtype and _geometry(one) == _geometry(other)


def _geometry(tensor: torch.Tensor) -> tuple[Any, ...]:
    numbers = (*tensor.shape, *tensor.stride(), tensor.storage_offset())
    return tuple(size_expression(n) if is_symbolic(n) else int(n) for n in numbers)


def map_tensors(change: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """The same containers, libraries' output classes among them, with every tensor changed."""
    return pytree.tree_map_only(torch.Tensor, change, value)


def flattened(value: Any) -> tuple[list[tuple[tuple[str, ...], Any]], Any]:
    """Leaves of nested containers with the keys that lead to each, and what `unflattened` needs."""
    pairs, tree = pytree.tree_flatten_with_path(value)
    return [(tuple(_key(key) for key in path), leaf) for path, leaf in pairs], tree


def unflattened(leaves: Sequence[Any], tree: Any) -> Any:
    """The inverse of `flattened`."""
    return pytree.tree_unflatten(leaves, tree)


def _key(key: Any) -> str:
    if isinstance(key, pytree.SequenceKey):
        return str(key.idx)
    return str(key.key if isinstance(key, pytree.MappingKey) else getattr(key, "name", key))
