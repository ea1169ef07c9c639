"""Complex numbers as real ones: rotary embeddings of Qwen-Image and its like, for ONNX and grids.

    view_as_complex(x) · freqs → view_as_real        (…, 2) real numbers all the way

A complex tensor is a real one with a last axis of two, real and imaginary part. Neither ONNX nor
TensorRT has complex numbers, and rows and columns are followed through real operators alone. A
graph with anything complex that is not listed here stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from todo_compile._torch import fake_mode_of

_aten = torch.ops.aten
_SAME = frozenset((_aten.clone.default, _aten.alias.default, _aten.contiguous.default,
                   _aten.detach.default, _aten.to.dtype, _aten.to.dtype_layout,
                   _aten.lift_fresh_copy.default))  # fmt: skip
_COPIES = frozenset((_aten.clone.default, _aten.contiguous.default))
_SIZED = frozenset((_aten.view.default, _aten.reshape.default, _aten.expand.default))
# Operator → where its axis stands among the arguments, its default, and whether it makes one more.
_AXIS: dict[Any, tuple[int, int, bool]] = {
    _aten.split_with_sizes.default: (2, 0, False),
    _aten.split.Tensor: (2, 0, False),
    _aten.chunk.default: (2, 0, False),
    _aten.slice.Tensor: (1, 0, False),
    _aten.select.int: (1, 0, False),
    _aten.unsqueeze.default: (1, 0, True),
    _aten.squeeze.dim: (1, 0, False),
    _aten.flatten.using_ints: (2, -1, False),
    _aten.cat.default: (1, 0, False),
    _aten.stack.default: (1, 0, True),
}
_AXES = frozenset((_aten.transpose.int, _aten.permute.default))
_GETITEM = "getitem"


def write_real(program: ExportedProgram) -> bool:
    """Write all complex arithmetic of a captured program with real numbers, in place.

    Returns:
        Whether anything was changed: False too where something complex is not understood.
    """
    touched = [n for n in program.graph.nodes if _is_complex(n) or any(map(_is_complex, _of(n)))]
    if not touched or not all(_understood(program, node) for node in touched):
        return False
    real: dict[Node, Node] = {}
    for node in touched:
        _rewrite(program, node, real)
    for node in reversed(touched):
        if node.op != "placeholder" and not node.users:
            program.graph.erase_node(node)
    program.graph.lint()
    program.graph_module.recompile()
    program.validate()
    return True


def _of(node: Node) -> list[Node]:
    return node.all_input_nodes


def _is_complex(node: Node) -> bool:
    def complex_value(value: Any) -> bool:
        if isinstance(value, (list, tuple)):
            return any(map(complex_value, value))  # pyright: ignore[reportUnknownArgumentType]
        return isinstance(value, Tensor) and value.is_complex()

    return complex_value(node.meta.get("val"))


def _is_tensor(value: object) -> bool:
    return isinstance(value, Node) and isinstance(value.meta.get("val"), Tensor)


def _constant(program: ExportedProgram, node: Node) -> tuple[dict[str, Any], str] | None:
    """(where it is held, its name there) of a complex constant or buffer."""
    for spec in program.graph_signature.input_specs:
        if spec.target and getattr(spec.arg, "name", None) == node.name:
            for held in (program.constants, program.state_dict):
                found: Any = held.get(spec.target)
                if isinstance(found, Tensor) and not isinstance(found, torch.nn.Parameter):
                    return held, spec.target
    return None


def _understood(program: ExportedProgram, node: Node) -> bool:
    if node.op == "placeholder":
        return _constant(program, node) is not None
    target: Any = node.target
    if node.op != "call_function":
        return False
    if target in (_aten.view_as_real.default, _aten._assert_tensor_metadata.default):
        return True
    if not _is_complex(node):
        return False  # real, imag, abs, angle, outputs, …
    if target in _SAME:  # a cast to a wider type is another number
        return _of(node)[0].meta["val"].dtype == node.meta["val"].dtype
    if target is _aten.mul.Tensor:
        return all(_is_tensor(a) or isinstance(a, (int, float)) for a in node.args)
    if target in (_aten.cat.default, _aten.stack.default):
        return all(map(_is_complex, _of(node)))
    if target is _aten.index.Tensor:
        return _is_complex(_of(node)[0])
    if target is _aten.t.default:
        return node.meta["val"].dim() == 2
    known = (*_SIZED, *_AXIS, *_AXES, _aten.view_as_complex.default, _aten.polar.default)
    return target in known or getattr(target, "__name__", "") == _GETITEM


def _rewrite(program: ExportedProgram, node: Node, real: dict[Node, Node]) -> None:
    """Make the real form of one node, or hand its users theirs."""
    target: Any = node.target
    if node.op == "placeholder":
        held, name = _constant(program, node) or ({}, "")
        if held[name].is_complex():  # once, where two inputs are one constant
            held[name] = torch.view_as_real(held[name]).contiguous()
        with _mode(node):
            node.meta["val"] = torch.view_as_real(node.meta["val"]).contiguous()
        real[node] = node
        return
    if target is _aten._assert_tensor_metadata.default:
        return
    if target is _aten.view_as_real.default:
        if any(user.op == "output" for user in node.users):  # results are known by their names
            node.target, node.args = _aten.alias.default, (real[_of(node)[0]],)
        else:
            node.replace_all_uses_with(real[_of(node)[0]])
        return
    emit = _emitter(program, node)
    args = list(node.args)
    if target is _aten.view_as_complex.default:
        real[node] = _of(node)[0]
    elif target in _COPIES:  # what is written to later must be as much its own as it was
        real[node] = emit(target, real[_of(node)[0]])
    elif target in _SAME:
        real[node] = real[_of(node)[0]]
    elif target is _aten.polar.default:
        length, angle = args
        parts = [emit(_aten.mul.Tensor, length, emit(f, angle)) for f in _CIRCLE]
        real[node] = emit(_aten.stack.default, parts, -1)
    elif target is _aten.t.default:
        real[node] = emit(_aten.transpose.int, real[_of(node)[0]], 0, 1)
    elif target is _aten.mul.Tensor:
        real[node] = _product(emit, args, real)
    else:
        real[node] = emit(target, *_with_parts(node, target, args, real))


_CIRCLE = (_aten.cos.default, _aten.sin.default)


def _product(emit: Callable[..., Node], args: Sequence[Any], real: dict[Node, Node]) -> Node:
    """(a + bi)(c + di), or a real number times a complex one."""
    factors = [a for a in args if isinstance(a, Node) and a in real]
    if len(factors) == 1:
        other = next((a for a in args if a is not factors[0]), factors[0])
        if isinstance(other, Node):
            other = emit(_aten.unsqueeze.default, other, -1)
        return emit(_aten.mul.Tensor, real[factors[0]], other)
    first, second = ([emit(_aten.select.int, real[f], -1, i) for i in (0, 1)] for f in args)
    (a, b), (c, d) = first, second
    mul, sub, add = _aten.mul.Tensor, _aten.sub.Tensor, _aten.add.Tensor
    parts = [
        emit(sub, emit(mul, a, c), emit(mul, b, d)),
        emit(add, emit(mul, a, d), emit(mul, b, c)),
    ]
    return emit(_aten.stack.default, parts, -1)


def _with_parts(node: Node, target: Any, args: list[Any], real: dict[Node, Node]) -> list[Any]:
    """Arguments of an operator for a tensor that has one more axis, the last."""
    first = args[0]
    some = first[0] if isinstance(first, (list, tuple)) else first
    value: Any = some.meta["val"]
    rank = value.dim() if isinstance(value, Tensor) else 0
    args[0] = [real[a] for a in first] if isinstance(first, (list, tuple)) else real[first]
    if target in _SIZED:
        args[1] = [*args[1], 2]
    elif target is _aten.permute.default:
        args[1] = [*(d % rank for d in args[1]), rank]
    elif target is _aten.transpose.int:
        args[1:] = [d % rank for d in args[1:]]
    elif target in _AXIS:
        place, default, more = _AXIS[target]
        if target is _aten.flatten.using_ints:
            args += [0, -1][len(args) - 1 :]
            args[1] %= rank
        while len(args) <= place:
            args.append(default)
        args[place] %= rank + more
    del node
    return args


def _mode(node: Node) -> Any:
    value: Any = node.meta.get("val")
    while isinstance(value, (list, tuple)):
        value = value[0]
    return fake_mode_of(value)


def _emitter(program: ExportedProgram, node: Node) -> Callable[..., Node]:
    """Makes nodes before `node`, as parts of the same module, with their fake values."""
    mode = _mode(node)

    def emit(target: Any, *args: Any) -> Node:
        with program.graph.inserting_before(node):
            made = program.graph.call_function(target, args)
        made.meta = {key: value for key, value in node.meta.items() if key != "val"}
        values = torch.fx.map_arg(args, lambda one: one.meta["val"])
        with mode:
            made.meta["val"] = target(*values)
        return made

    return emit
