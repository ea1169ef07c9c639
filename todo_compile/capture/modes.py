"""``train()`` and ``eval()`` of a module that was captured as a graph.

torch's own exported modules refuse both, since a graph does one thing only. But few denoisers hold
anything that differs between the two: those may be switched as any other module is, and the others
refuse the mode that they were not captured in.
"""

from __future__ import annotations

import types

from torch import nn
from torch.fx import Graph, GraphModule, Node

from todo_compile._torch import on_deepcopy
from todo_compile.errors import CaptureError


def depends_on_mode(graph: Graph) -> bool:
    """Whether the graph has a dropout or a batch normalisation, which training changes.

    A functional dropout that its module left out in eval mode (as `scaled_dot_product_attention`
    with ``dropout_p=0``) cannot be seen.
    """
    return any(_depends(node) for node in graph.nodes if node.op == "call_function")


def _depends(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    arguments = [argument.name for argument in schema.arguments] if schema is not None else []
    given: dict[str, object] = {**dict(zip(arguments, node.args, strict=False)), **node.kwargs}
    if given.get("dropout_p", 0.0) != 0.0:
        return True
    return not {"train", "training"}.isdisjoint(arguments) and given.get("p") != 0.0


def allow_modes(module: GraphModule, *, training: bool, dependent: bool) -> nn.Module:
    """Give an exported module its ``train`` and ``eval`` back.

    Args:
        module: what ``ExportedProgram.module()`` gave; changed in place.
        training: the mode that it was captured in.
        dependent: it was captured from a graph that does something else in the other one.

    Returns:
        `module`, in the mode that it was captured in. Where it is `dependent`, the other mode
        raises a CaptureError.
    """
    for name in ("train", "eval"):
        module.__dict__.pop(name, None)
    module.train(training)
    if dependent:
        _restrict(module)
        on_deepcopy(module, _restrict)  # a copy would lose it
    return module


def _restrict(module: GraphModule) -> None:
    module.train = types.MethodType(_stay, module)  # which eval() calls, too


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    if mode != module.training:
        raise _other_mode("train" if module.training else "eval")
    return module


def _other_mode(mode: str) -> CaptureError:
    return CaptureError(
        f"This graph was captured in {mode} mode, and its dropout or batch normalisation cannot "
        "change any more.",
        remedy="Rewrite the original again, after switching it to the mode that you need.",
    )
