"""The one table of operator spellings: what a node of either dialect means.

Two dialects reach the passes. ``torch.export`` gives ATen overloads (``aten.view.default``) with
fake values in ``meta["val"]``; a ``torch.compile`` backend receives torch-level calls
(``F.scaled_dot_product_attention``, ``operator.add``, the method ``view``) with fake values in
``meta["example_value"]``. No other file looks at ``node.target``: passes ask for `op` (a canonical
name) and `arg` (an argument by position or name), and emit ATen calls, which both dialects run.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch.fx import Node

from todo_compile._torch import overload_name
from todo_compile.passes.families import BINARY, IDENTITY, UNARY

# Different names of one meaning. What is not listed keeps its own name.
_ALIASES = {
    "reshape": "view",
    "_unsafe_view": "view",
    "flatten": "view",
    "unflatten": "view",
    "view_as": "view",
    "reshape_as": "view",
    "swapaxes": "transpose",
    "swapdims": "transpose",
    "_softmax": "softmax",
    "special_softmax": "softmax",
    "truediv": "div",
    "divide": "div",
    "true_divide": "div",
    "multiply": "mul",
    "subtract": "sub",
    "concat": "cat",
    "concatenate": "cat",
    "native_layer_norm": "layer_norm",
    "native_group_norm": "group_norm",
    "negative": "neg",
    "dropout_": "dropout",
    "native_dropout": "dropout",
    "mm": "matmul",
    "linalg_matmul": "matmul",
    "imatmul": "matmul",
    "split_with_sizes": "split",
    "narrow_copy": "narrow",
}

_PLAIN_PREFIXES = ("torch", "_operator", "operator", "math")


def op(node: Node) -> str:
    """Canonical name of what `node` computes; "" for anything that is no known torch call."""
    if node.op == "call_method":
        name = str(node.target)
        return _ALIASES.get(name, name)
    if node.op != "call_function":
        return ""
    if node.target is getattr:  # Dynamo's spelling of x.mT, x.shape, x.dtype
        return str(node.args[1])
    return _function_name(node.target)


@lru_cache(maxsize=4096)
def _function_name(target: Any) -> str:
    """Canonical name of a function: it is asked for twenty times a node."""
    overload = overload_name(target)
    if overload is not None:
        namespace, name = overload
        return _ALIASES.get(name, name) if namespace in ("aten", "prims") else f"{namespace}.{name}"
    name = getattr(target, "__name__", "")
    module = getattr(target, "__module__", None)
    if module is None:  # builtins of torch, such as torch.bmm
        owner = getattr(target, "__self__", None)
        module = getattr(owner, "__module__", None) or type(owner).__module__
    if not str(module).startswith((*_PLAIN_PREFIXES, "todo_compile.passes")):
        return ""
    return _ALIASES.get(name, name)


def op_not_in_place(node: Node) -> str:
    """Canonical name, ``add`` for ``add_`` too: in place or not, positions are the same."""
    name = op(node)
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def raw_name(node: Node) -> str:
    """The spelling before aliases, to tell ``flatten`` from ``view``."""
    if node.op == "call_method":
        return str(node.target)
    overload = overload_name(node.target)
    return overload[1] if overload is not None else str(getattr(node.target, "__name__", ""))


_MISSING = object()


def arg(node: Node, position: int, *names: str, default: Any = None) -> Any:
    """Argument at `position`, or under one of `names`, or `default`."""
    if position < len(node.args):
        return node.args[position]
    for name in names:
        found: Any = node.kwargs.get(name, _MISSING)
        if found is not _MISSING:
            return found
    return default


def set_arg(node: Node, position: int, name: str, value: Any) -> None:
    """Replace an argument where the node has it: by position, or under `name`."""
    if position < len(node.args):
        args = list(node.args)
        args[position] = value
        node.args = tuple(args)
    else:
        node.kwargs = {**node.kwargs, name: value}


def given_name(node: Node, names: tuple[str, ...]) -> str:
    """Which of several names of one parameter `node` uses."""
    return next((n for n in names if n in node.kwargs), names[0])


def tensor_arg(node: Node, position: int, *names: str) -> Node | None:
    """Like `arg`, for an argument that must be a node."""
    found = arg(node, position, *names)
    return found if isinstance(found, Node) else None


def int_list(node: Node, position: int, *names: str) -> list[Any]:
    """A size-like argument: ``permute(x, [0, 2, 1])`` and ``x.permute(0, 2, 1)`` alike."""
    first = arg(node, position, *names)
    if isinstance(first, (list, tuple)):
        return list(first)
    if first is None:
        return []
    return list(node.args[position:])


def set_int_list(node: Node, position: int, name: str, values: list[Any]) -> None:
    """Replace a size-like argument in whichever spelling the node uses."""
    args = list(node.args)
    if position < len(args):
        if isinstance(args[position], (list, tuple)):
            args[position] = list(values)
        else:
            args[position:] = values
        node.args = tuple(args)
    else:
        node.kwargs = {**node.kwargs, name: list(values)}


def normal_dim(dim: Any, rank: int) -> int:
    """`dim` counted from the front."""
    number = int(dim)
    return number + rank if number < 0 else number


def permutation(node: Node, rank: int) -> list[int] | None:
    """Output axis → input axis of a permute-like node, or None if it is none."""
    name = op(node)
    if name == "permute":
        return [normal_dim(d, rank) for d in int_list(node, 1, "dims")]
    if (name in ("t", "T") and rank <= 2) or (name in ("mT", "adjoint") and rank >= 2):
        order = list(range(rank))
        if rank >= 2:
            order[-1], order[-2] = order[-2], order[-1]
        return order
    if name == "transpose":
        order = list(range(rank))
        first = normal_dim(arg(node, 1, "dim0", "axis0"), rank)
        second = normal_dim(arg(node, 2, "dim1", "axis1"), rank)
        order[first], order[second] = order[second], order[first]
        return order
    if name in ("movedim", "moveaxis"):
        source, destination = arg(node, 1, "source"), arg(node, 2, "destination")
        if isinstance(source, int) and isinstance(destination, int):
            order = [d for d in range(rank) if d != normal_dim(source, rank)]
            order.insert(normal_dim(destination, rank), normal_dim(source, rank))
            return order
    return None


_ASSIGNMENTS = {"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "div"}


def elementwise(node: Node) -> str:
    """Name of the function that `node` applies to every element alone; "" if it does anything else.

    Written in place or not: ``add_``, ``+=`` and ``add`` are all "add".
    """
    name = op(node)
    plain = _ASSIGNMENTS.get(name, name.removesuffix("_"))
    plain = _ALIASES.get(plain, plain)
    return plain if plain in IDENTITY or plain in UNARY or plain in BINARY else ""


def destination(node: Node) -> Node | None:
    """The operand that an elementwise function or a product is written into, by its name."""
    name = op(node)
    if name in _ASSIGNMENTS or name.endswith("_"):
        return tensor_arg(node, 0, "input", "self")
    return tensor_arg(node, len(node.args), "out")


def makes_constants(node: Node) -> bool:
    """Whether the values of `node` do not depend on those of any tensor: ``zeros_like(x)``."""
    name = op(node)
    return name in EMPTY_OPS or name.endswith("_like") or name.startswith("new_")


def is_weight(node: Node, value: object) -> bool:
    """Whether an input or attribute of the graph is a parameter, buffer or constant of the model.

    ``torch.export`` names such inputs ``p_…``, ``b_…``, ``c_…`` and puts them first; Dynamo says so
    in ``meta["tensor_dict"]``.
    """
    if node.op == "get_attr":
        return True
    if node.op != "placeholder":
        return False
    if isinstance(value, torch.nn.Parameter) or "val" in node.meta:
        return isinstance(value, torch.nn.Parameter) or str(node.target).startswith(_LIFTED)
    return _DYNAMO_STATIC in node.meta.get("tensor_dict", {})


_LIFTED = ("p_", "b_", "c_")
_DYNAMO_STATIC = "_dynamo_static_input_type"


def is_dropout_active(node: Node) -> bool:
    """Whether a dropout node really drops: then it is no identity."""
    if op(node) != "dropout":
        return False
    probability = arg(node, 1, "p", default=0.5)
    training = arg(node, 2, "training", "train", default=True)
    return bool(training) and probability != 0


_SIZE_QUERIES = frozenset(
    ("sym_size", "size", "shape", "sym_numel", "numel", "sym_stride", "stride")
)
_DESCRIPTION_QUERIES = frozenset(
    [
        "dim",
        "ndim",
        "ndimension",
        "is_contiguous",
        "is_floating_point",
        "get_device",
        "dtype",
        "device",
        "layout",
        "requires_grad",
        "is_cuda",
        "is_sparse",
        "itemsize",
        "element_size",
    ]
)


def is_size_query(node: Node) -> bool:
    """Whether `node` reads a tensor's sizes or strides, so that it sees a change of shape."""
    name = op(node)
    if name == "_assert_tensor_metadata":
        return any(arg(node, i, n) is not None for i, n in ((1, "size"), (2, "stride")))
    return name in _SIZE_QUERIES


def is_description_query(node: Node) -> bool:
    """Whether `node` reads dtype, device or rank only: it computes nothing and minds no shape."""
    name = op(node)
    if name == "_assert_tensor_metadata":
        return not is_size_query(node)
    return name in _DESCRIPTION_QUERIES


def operands(node: Node) -> list[Node]:
    """Tensor operands among the leading arguments, in order, lists opened."""
    found: list[Node] = []
    for argument in [*node.args, *node.kwargs.values()]:
        if isinstance(argument, Node):
            found.append(argument)
        elif isinstance(argument, (list, tuple)):
            found.extend(a for a in argument if isinstance(a, Node))
    return found


_aten = torch.ops.aten
RESHAPE: Callable[..., Any] = _aten.reshape.default
EXPAND: Callable[..., Any] = _aten.expand.default
SLICE: Callable[..., Any] = _aten.slice.Tensor
MEAN: Callable[..., Any] = _aten.mean.dim
CAT: Callable[..., Any] = _aten.cat.default
ADD: Callable[..., Any] = _aten.add.Tensor
WHERE_ELSE: Callable[..., Any] = _aten.where.ScalarOther
NEW_FULL: Callable[..., Any] = _aten.new_full.default
MUL: Callable[..., Any] = _aten.mul.Tensor
CAST: Callable[..., Any] = _aten.to.dtype
EMPTY_OPS = frozenset(("empty", "zeros", "full", "new_empty", "new_zeros"))
END = 2**63 - 1
"""Slice end that means "to the end" in ATen."""
