"""A graph under rewriting: values, shapes, provenance, and how nodes are added and refreshed.

`GraphContext` is what every pass receives. It hides which dialect the graph speaks (see `ops`) and
keeps fake values right: a pass that changes a shape says so with `set_shape`, and `refresh`
recomputes the changed nodes under fake tensors, once, at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from todo_compile._torch import (
    fake_mode_of,
    is_symbolic,
    size_expression,
    size_hint,
    symbolic_rules,
)
from todo_compile.errors import PassError
from todo_compile.options import TokenGrid
from todo_compile.passes import ops
from todo_compile.passes.autocast import autocast_regions
from todo_compile.passes.grid.axes import Size, plain_size, same
from todo_compile.passes.memory import Memory

BUG = "This is a bug in todo-compile; run again with --dump and report it."

Snapshot = dict[Node, tuple[Any, ...]]
"""Node → operation, target, arguments and values."""


class NodeError(PassError):
    """A check failed at a node: a bug of ours, which costs the sites behind it their rewrite."""

    def __init__(self, node: Node, message: str) -> None:
        super().__init__(message, remedy=BUG)
        self.node = node


_PROVENANCE = ("nn_module_stack", "stack_trace", "source_fn_stack", "torch_fn", "custom")


class GraphContext:
    """One FX graph and what passes need to know about it.

    Args:
        module: the graph module; edited in place.
        token_grids: number of tokens → (rows, columns) or (frames, rows, columns), for graphs whose
            image tokens arrive already packed, so that no 4-D tensor in the graph proves the grid.
        patch_grid: (rows, columns) of the packed tokens that a whole denoiser would work on; only a
            hint, which dataflow must confirm.
        image_axes: input by name → its (row, column) axes, where the caller knows them.
        batch: what a dynamic size counts as in `number`; None for one item.
        keep_dynamic: symbols that must not be specialised.
        constants: values of the weights and buffers among the inputs, by node name.
    """

    def __init__(
        self,
        module: GraphModule,
        *,
        token_grids: Mapping[int, TokenGrid] | None = None,
        patch_grid: tuple[int, int] | None = None,
        image_axes: Mapping[str, tuple[int, int]] | None = None,
        batch: int | None = None,
        keep_dynamic: frozenset[Any] = frozenset(),
        constants: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self.module = module
        self.keep_dynamic = keep_dynamic
        self.graph = module.graph
        self.token_grids = token_grids or {}
        self.patch_grid = patch_grid
        self.image_axes = image_axes or {}
        self.batch = batch
        self.sites: tuple[str, ...] = ()
        """Sites on whose behalf nodes are made; stamped into ``meta["todo_sites"]``."""
        self._constants = constants or {}
        nodes = list(self.graph.nodes)
        self.value_key = "val" if any("val" in n.meta for n in nodes) else "example_value"
        self._shapes: dict[Node, tuple[Size, ...]] = {}
        self._dirty: dict[Node, None] = {}
        self._doomed: dict[Node, None] = {}
        self._raw_cache: dict[Node, tuple[Size, ...]] = {}
        self._mode = next(
            (m for n in nodes if (m := fake_mode_of(self.value(n))) is not None), None
        )

    # What is known of a node -----------------------------------------------------------------
    def value(self, node: Node) -> Any:
        """Fake value of a node, or None."""
        return node.meta.get(self.value_key)

    def shape(self, node: Node) -> tuple[Size, ...] | None:
        """Shape of a tensor node (rewrites in progress included); None for anything else."""
        if (changed := self._shapes.get(node)) is not None:
            return changed
        if (cached := self._raw_cache.get(node)) is not None:
            return cached
        value = self.value(node)
        if not isinstance(value, torch.Tensor):
            return None
        shape = tuple(plain_size(s) for s in value.shape)
        self._raw_cache[node] = shape
        return shape

    def dtype(self, node: Node) -> torch.dtype | None:
        """dtype of a tensor node, else None."""
        value = self.value(node)
        return value.dtype if isinstance(value, torch.Tensor) else None

    def specialise(self, expression: Any) -> None:
        """Fix the symbols of `expression` to the sizes at hand; the compiler guards on them.

        Every later call with other sizes compiles anew, with a plan of its own. `keep_dynamic` stay
        as they are.
        """
        wanted = set(expression.free_symbols)
        if wanted & self.keep_dynamic:
            return
        sizes: list[Any] = []
        for node in self.graph.nodes:
            value = self.value(node) if node.op == "placeholder" else None
            sizes += value.shape if isinstance(value, torch.Tensor) else (value,)
        sizes = [size for size in sizes if is_symbolic(size)]
        # Symbols by themselves first: that a product is known does not fix its factors.
        for size in sorted(sizes, key=lambda one: not size_expression(one).is_Symbol):
            if found := wanted & set(size_expression(size).free_symbols):
                int(size)
                wanted -= found
        self._raw_cache.clear()

    def module_path(self, node: Node) -> str:
        """Dotted path of the innermost module that made `node`; "" at top level."""
        stack = node.meta.get("nn_module_stack")
        if not stack:
            return ""
        path = str(next(reversed(stack.values()))[0])
        path = path.replace("L['self']", "").replace("['", ".").replace("']", "")
        path = path.replace("[", ".").replace("]", "").replace("_modules.", "")
        path = path.replace("__dict__.", "")
        return path.strip(".")

    def sizes(self, shape: Sequence[Size]) -> list[Any]:
        """`shape` as argument of a reshape: its one symbolic size, if any, becomes -1.

        The plan refuses sites with more than one, see `plan.classify`.
        """
        return [s if isinstance(s, int) else -1 for s in shape]

    def users(self, node: Node) -> list[Node]:
        """Users that a change of the node's shape or values would reach.

        Queries of dtype or rank are left out, and assertions about sizes that nothing depends on.
        """
        return [
            u
            for u in node.users
            if not ops.is_description_query(u) and (u.users or not ops.is_size_query(u))
        ]

    def drop_size_assertions(self, node: Node) -> None:
        """Let go of assertions about the sizes of `node`; `commit` erases them."""
        for user in node.users:
            if ops.is_size_query(user) and not user.users:
                self._doomed[user] = None

    @cached_property
    def memory(self) -> Memory:
        """Which nodes share memory and which write: asked for before anything is changed."""
        return Memory(self.module, self.value, self.operand)

    def constant(self, node: Node) -> torch.Tensor | None:
        """The values of a weight or buffer, where they are at hand."""
        if node.op == "get_attr":
            found = self._attribute(node)
            real = isinstance(found, torch.Tensor) and fake_mode_of(found) is None
            return found if real else None
        return self._constants.get(node.name) if node.op == "placeholder" else None

    def number(self, size: Size) -> int:
        """A size for figures; a dynamic one is 1, or the example inputs' where `batch` is known."""
        if isinstance(size, int):
            return size
        if self.batch is None:
            return 1
        return int(size.subs({s: self._hints.get(s, self.batch) for s in size.free_symbols}))

    @cached_property
    def _hints(self) -> dict[Any, int]:
        """Symbol → its size in the example inputs."""
        values = [self.value(n) for n in self.graph.nodes if n.op == "placeholder"]
        sizes = [s for v in values if isinstance(v, torch.Tensor) for s in v.shape]
        found = {size_expression(s): size_hint(s) for s in sizes if isinstance(s, torch.SymInt)}
        return {symbol: hint for symbol, hint in found.items() if hint is not None}

    @property
    def is_dynamic(self) -> bool:
        """Whether any input has a size that is not a number."""
        inputs = (self.shape(n) for n in self.graph.nodes if n.op == "placeholder")
        return any(not isinstance(size, int) for shape in inputs for size in shape or ())

    # Changing it ------------------------------------------------------------------------------
    def set_shape(self, node: Node, shape: Sequence[Size]) -> None:
        """Record that `node` now has `shape`; its fake value is renewed by `refresh`."""
        self._shapes[node] = tuple(shape)
        self._dirty[node] = None

    def mark(self, node: Node) -> None:
        """Ask `refresh` to recompute `node`."""
        self._dirty[node] = None

    def call(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...],
        *,
        like: Node,
        shape: Sequence[Size],
        rule: str,
        dtype: torch.dtype | None = None,
        name: str | None = None,
    ) -> Node:
        """Insert a call at the graph's insertion point.

        Args:
            like: node whose module path and stack trace the new one inherits.
            shape: shape of the result.
            rule: the rule that made it, stamped into ``meta["todo_rule"]``.
            dtype: of the result; None: that of `like`.
        """
        node = self.graph.create_node("call_function", target, args, name=name)
        for key in _PROVENANCE:
            if key in like.meta:
                node.meta[key] = like.meta[key]
        node.meta["todo_rule"] = rule
        node.meta["todo_sites"] = self.sites
        value = self.value(like)
        if isinstance(value, torch.Tensor):
            node.meta[self.value_key] = value if dtype is None else value.to(dtype)
        self.set_shape(node, shape)
        return node

    def forget(self, node: Node) -> None:
        """Erase a node that has no users."""
        self.graph.erase_node(node)
        self._shapes.pop(node, None)
        self._dirty.pop(node, None)
        self._raw_cache.pop(node, None)

    @contextmanager
    def working_on(self, *sites: str) -> Generator[None]:
        """New nodes are made on behalf of these sites.

        Where something fails, `sites` stay: whoever asks why learns whose work it was.
        """
        before, self.sites = self.sites, sites
        yield
        self.sites = before

    def snapshot(self) -> Snapshot:
        """The graph as it is, for `restore`."""
        key = self.value_key
        return {
            n: (n.op, n.target, n.args, n.kwargs, n.meta.get(key), n.meta.get("tensor_meta"))
            for n in self.graph.nodes
        }

    def restore(self, snapshot: Snapshot) -> None:
        """Undo everything since `snapshot`."""
        for node, (op, target, args, kwargs, value, tensor_meta) in snapshot.items():
            if (node.args, node.kwargs, node.target) != (args, kwargs, target):
                node.op, node.target, node.args, node.kwargs = op, target, args, kwargs
            for key, kept in ((self.value_key, value), ("tensor_meta", tensor_meta)):
                if kept is not None:
                    node.meta[key] = kept
        for node in reversed(list(self.graph.nodes)):
            if node not in snapshot:
                self.graph.erase_node(node)
        for record in (self._shapes, self._dirty, self._doomed, self._raw_cache):
            record.clear()

    def commit(self) -> None:
        """Erase what was let go of: there is no way back then."""
        for node in self._doomed:
            self.graph.erase_node(node)
        self._doomed.clear()

    def refresh(self) -> int:
        """Recompute fake values of changed nodes and of what they change; returns how many.

        Raises:
            NodeError: a node does not run on its new inputs, has another shape than the passes
                recorded or another dtype than before, or a graph output changed shape.
        """
        pending = set(self._dirty)
        if not pending:
            return 0
        count = 0
        mode = self._mode if self._mode is not None else nullcontext()
        rules = symbolic_rules() if self.is_dynamic else nullcontext()
        with torch.no_grad(), mode, rules, autocast_regions() as run_region:
            for node in self.graph.nodes:
                if run_region(node) or node not in pending or node in self._doomed:
                    continue
                if node.op == "output":
                    raise NodeError(node, "a rewrite changed the shape of a graph output")
                before = self.value(node)
                after = self._run(node, before)
                self._check(node, before, after)
                node.meta[self.value_key] = after
                node.meta.pop("tensor_meta", None)
                count += 1
                if "todo_rule" in node.meta or not _alike(before, after):
                    pending.update(u for u in node.users if not _alike_output(u, before, after))
        self._dirty.clear()
        self._shapes.clear()
        self._raw_cache.clear()
        return count

    def _check(self, node: Node, before: Any, after: Any) -> None:
        if not isinstance(after, torch.Tensor):
            return
        recorded, shape = self._shapes.get(node), tuple(map(plain_size, after.shape))
        if recorded is not None and not (
            len(shape) == len(recorded) and all(map(same, shape, recorded))
        ):
            raise NodeError(node, f"{node.name} has shape {shape}, not {recorded} as recorded")
        if isinstance(before, torch.Tensor) and before.dtype != after.dtype:
            raise NodeError(node, f"{node.name} became {after.dtype}, it was {before.dtype}")

    def _run(self, node: Node, before: Any) -> Any:
        loaded: Any = map_arg((node.args, dict(node.kwargs)), self.operand)
        args, kwargs = loaded
        if ops.op(node) == "linear" and len(args) > 1 and args[0].dtype == before.dtype:
            # The shape rule written out: dispatching linear under fake tensors takes five times as
            # long, and there are two for every site.
            source, weight = args[0], args[1]
            return source.new_empty((*source.shape[:-1], weight.shape[0]))
        try:
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            target: Any = node.target
            return target(*args, **kwargs)
        except Exception as error:
            raise NodeError(
                node, f"node {node.name} ({node.target}) does not run on its new inputs: {error}"
            ) from error

    def operand(self, node: Node) -> Any:
        """Fake value of a node, also of a tensor that is an attribute of the module."""
        value = self.value(node)
        if value is None and node.op == "get_attr":
            value = self._attribute(node)
            if isinstance(value, torch.Tensor) and self._mode is not None:
                value = self._mode.from_tensor(value)
        return value

    def _attribute(self, node: Node) -> Any:
        value: Any = self.module
        for part in str(node.target).split("."):
            value = getattr(value, part)
        return value


def _alike(before: Any, after: Any) -> bool:
    if isinstance(before, torch.Tensor) and isinstance(after, torch.Tensor):
        return (
            before.dtype == after.dtype
            and tuple(map(plain_size, before.shape)) == tuple(map(plain_size, after.shape))
            and tuple(map(plain_size, before.stride())) == tuple(map(plain_size, after.stride()))
        )
    if isinstance(before, (list, tuple)) and isinstance(after, (list, tuple)):
        return len(before) == len(after) and all(map(_alike, before, after))
    return before is after


def _alike_output(user: Node, before: Any, after: Any) -> bool:
    """Whether `user` is the output node and sees no difference that a caller would."""
    if user.op != "output":
        return False
    return (
        isinstance(before, torch.Tensor)
        and isinstance(after, torch.Tensor)
        and before.dtype == after.dtype
        and before.shape == after.shape
    )


def nodes_of(graph_nodes: Iterable[Node], *names: str) -> list[Node]:
    """Nodes whose canonical op is one of `names`, in graph order."""
    wanted = frozenset(names)
    return [n for n in graph_nodes if ops.op(n) in wanted]
