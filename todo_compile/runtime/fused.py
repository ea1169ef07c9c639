"""Attention that onnxruntime's CPU provider computes without ever holding its scores.

The provider's ``Attention`` of opset 23 is two products with all scores in memory between them; its
own ``MultiHeadAttention`` (domain com.microsoft) works through them in blocks that fit the cache,
where there is no mask and numbers are fp32 (flash attention, Dao et al., arXiv 2205.14135). So the
model is changed as it is loaded: files stay portable, and TensorRT and GPUs see what they saw.

``Attention`` takes (B, heads, N, D), ``MultiHeadAttention`` (B, N, heads·D). The transposes between
them are what the exported graph begins with and ends in, and fall away.
"""

from __future__ import annotations

from typing import Any

_DOMAIN = "com.microsoft"
_SWAP = [0, 2, 1, 3]
_NEUTRAL = {"is_causal": 0, "softcap": 0.0, "qk_matmul_output_mode": 0}
"""Attributes and the values at which they do nothing."""
_KNOWN = {*_NEUTRAL, "scale"}


def fuse_attention(model: Any) -> int:
    """Replace attention in an ONNX model, in place.

    Left alone is whatever ``MultiHeadAttention`` does otherwise or elsewhere more slowly: masks,
    caches, causal or capped scores, types other than fp32, and numbers of heads that the model does
    not state.

    Args:
        model: a ``ModelProto``; tensors in files of their own may be absent.

    Returns:
        How many nodes were replaced.
    """
    from onnx import TensorProto

    graph = model.graph
    nodes = list(graph.node)
    producers = {name: node for node in nodes for name in node.output}
    users: dict[str, list[int]] = {one.name: [-1] for one in graph.output}
    for index, node in enumerate(nodes):
        for name in node.input:
            users.setdefault(name, []).append(index)
    stated = {
        one.name: (one.type.tensor_type.elem_type, _sizes(one))
        for one in (*graph.value_info, *graph.input, *graph.output)
    }
    instead: dict[int, list[Any]] = {}
    count = 0
    for index, node in enumerate(nodes):
        kind, shape = stated.get(node.input[0], (0, [])) if _plain(node) else (0, [])
        if kind != TensorProto.FLOAT or len(shape) != 4 or not shape[1]:
            continue
        # The only reader of the result, if it turns the heads back.
        after = users.get(node.output[0], [])
        swap = after[0] if len(after) == 1 and after[0] >= 0 and _is_swap(nodes[after[0]]) else None
        instead[index] = _fused(node, producers, shape[1], None if swap is None else nodes[swap])
        if swap is not None:
            instead[swap] = []
        count += 1
    if count:
        _rebuild(model, nodes, instead)
    return count


def _fused(node: Any, producers: dict[str, Any], heads: int, swap: Any) -> list[Any]:
    """The nodes that take the place of `node`, and of the `swap` behind it."""
    from onnx import helper

    prefix = f"{node.output[0]}/heads"
    made: list[Any] = []
    inputs: list[str] = []
    for index, name in enumerate(node.input[:3]):
        before, flat = _flattened(name, producers.get(name), f"{prefix}/{index}")
        made += before
        inputs.append(flat)
    scale = {one.name: one.f for one in node.attribute if one.name == "scale"}
    flat, shape = f"{prefix}/out", f"{prefix}/shape"
    tokens = f"{prefix}/tokens" if swap is None else swap.output[0]
    made += [
        helper.make_node(
            "MultiHeadAttention",
            inputs,
            [flat],
            name=node.name,
            domain=_DOMAIN,
            num_heads=heads,
            **scale,
        ),
        helper.make_node("Constant", [], [shape], value_ints=[0, 0, heads, -1]),
        helper.make_node("Reshape", [flat, shape], [tokens]),
    ]
    if swap is None:
        made.append(helper.make_node("Transpose", [tokens], [node.output[0]], perm=_SWAP))
    return made


def _plain(node: Any) -> bool:
    """Attention over queries, keys and values alone, at its defaults but for the scale."""
    if node.op_type != "Attention" or node.domain not in ("", "ai.onnx"):
        return False
    given = {one.name: one.f if one.type == one.FLOAT else one.i for one in node.attribute}
    return (
        len(node.input) >= 3
        and all(node.input[:3])
        and not any(node.input[3:])
        and not any(node.output[1:])
        and set(given) <= _KNOWN
        and all(given.get(name, value) == value for name, value in _NEUTRAL.items())
    )


def _is_swap(node: Any) -> bool:
    return node.op_type == "Transpose" and [list(a.ints) for a in node.attribute] == [_SWAP]


def _sizes(value: Any) -> list[int]:
    """Sizes of a value; 0 where it has none."""
    return [one.dim_value for one in value.type.tensor_type.shape.dim]


def _flattened(name: str, producer: Any, prefix: str) -> tuple[list[Any], str]:
    """(B, heads, N, D) as (B, N, heads·D): nodes, and the name of the result."""
    from onnx import helper

    nodes: list[Any] = []
    if producer is not None and _is_swap(producer):
        source = producer.input[0]
    else:  # rotated queries and keys arrive with their heads in front
        source = f"{prefix}/swapped"
        nodes.append(helper.make_node("Transpose", [name], [source], perm=_SWAP))
    nodes += [
        helper.make_node("Constant", [], [f"{prefix}/shape"], value_ints=[0, 0, -1]),
        helper.make_node("Reshape", [source, f"{prefix}/shape"], [f"{prefix}/flat"]),
    ]
    return nodes, f"{prefix}/flat"


def _rebuild(model: Any, nodes: list[Any], instead: dict[int, list[Any]]) -> None:
    """Write the nodes anew, in order; swaps that nobody reads any more onnxruntime drops."""
    from onnx import helper

    kept = [one for index, node in enumerate(nodes) for one in instead.get(index, [node])]
    copies = [type(node).FromString(node.SerializeToString()) for node in kept]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    if all(one.domain != _DOMAIN for one in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
