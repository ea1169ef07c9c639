"""Where image axes come from: operations that treat the positions of two axes as neighbours.

    conv2d, kernel 3×3   [?][?][?][?]   →   [B][c][H][W]      its source is named too
    conv2d, kernel 1×1   [B][?][H][W]   →   [B][c][H][W]      carries what is known, proves nothing
    conv2d, kernel 1×3   [?][?][?][?]   →   [B][c][?][W]      one axis: no grid yet
    conv3d, kernel 1×2×2 [?][?][?][?][?] →  [B][c][f][H][W]   frames, then rows and columns

An axis of four (or five, with frames) is rows or columns only with evidence about position on it
(`kernels` says what that is): a kernel wider than one, a change of size by pooling or resizing,
pixels moved into channels or out of them. One position before or after it is no evidence: a kernel
over the whole side is a full projection, and it would do the same to tokens in any order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch.fx import Node

from todo_compile.passes import ops
from todo_compile.passes.grid.axes import Axes, Dim, Size, fresh, fresh_dim, same
from todo_compile.passes.grid.kernels import Reach, reach, reaches
from todo_compile.passes.grid.state import GridState, Rule, Shape

_SIDES = (-2, -1)
_NAMES = {-2: "H", -1: "W"}


def through_spatial(state: GridState, node: Node, shape: Shape) -> Axes | None:
    """conv2d, pooling, resize: rows and columns where it proves them, else what they were."""
    source = ops.tensor_arg(node, 0, "input", "self")
    before = state.axes.get(source) if source is not None else None
    old = state.context.shape(source) if source is not None else None
    if source is None or before is None or old is None or not _takes(state, node, len(old)):
        return None
    found = [reach(state.context, node, axis, old[axis], shape[axis]) for axis in _SIDES]
    roles = _roles(state, before, found)
    before = _named_source(state, source, before, roles)
    sides = [
        _side(before[axis], one, roles[axis], old[axis], shape[axis])
        for axis, one in zip(_SIDES, found, strict=True)
    ]
    ahead = [
        dim if reach(state.context, node, -3, old[2], shape[2]).keeps else fresh_dim(shape[2])
        for dim in before[2:-2]  # frames
    ]
    return before[0], fresh_dim(shape[1]), *ahead, *sides


def _takes(state: GridState, node: Node, rank: int) -> bool:
    """Whether a tensor of so many axes is (B, C, H, W) or (B, C, frames, H, W) to an operation.

    What takes pictures with a batch takes one without it too, which is of no interest.
    """
    name = ops.op(node)
    if name == "convolution":
        weight = ops.tensor_arg(node, 1, "weight")
        shape = state.context.shape(weight) if weight is not None else None
        return rank in (4, 5) and shape is not None and len(shape) == rank
    if name in ("interpolate", "upsample", "upsample_nearest"):
        return rank in (4, 5)
    return rank == (5 if "3d" in name else 4)


def through_grid_sample(state: GridState, node: Node, shape: Shape) -> Axes | None:
    """grid_sample: interpolates between neighbours of its source; where to is the grid's business.

    A picture warped by a flow is on the flow's axes; a list of points is no picture.
    """
    source = ops.tensor_arg(node, 0, "input", "self")
    places = ops.tensor_arg(node, 1, "grid")
    before = state.axes.get(source) if source is not None else None
    given = state.axes.get(places) if places is not None else None
    if source is None or before is None or given is None or len(before) != 4 or len(shape) != 4:
        return None
    old = state.context.shape(source) or shape
    moving = [Reach(proves=not same(old[axis], 1), keeps=False, step=1) for axis in _SIDES]
    before = _named_source(state, source, before, _roles(state, before, moving))
    return before[0], fresh_dim(shape[1]), given[1], given[2]


def _roles(state: GridState, before: Axes, found: list[Reach]) -> dict[int, str]:
    """Side → role: what is known of it, or what is proved now; "" for neither.

    A picture that lies on its side keeps the names of its sides.
    """
    rows, columns = before[-2:]
    if _is_plane_of_tokens(state, rows, columns):
        return dict.fromkeys(_SIDES, "")
    known = {axis: _role(before[axis]) for axis in _SIDES}
    if known[-2] == known[-1]:  # both unknown, or named by two things that disagree
        known = dict.fromkeys(_SIDES, "")
    turned = known[-2] == "W" or known[-1] == "H"
    names = {-2: "W", -1: "H"} if turned else _NAMES
    return {
        axis: known[axis] or (names[axis] if one.proves else "")
        for axis, one in zip(_SIDES, found, strict=True)
    }


def _is_plane_of_tokens(state: GridState, rows: Dim, columns: Dim) -> bool:
    """Scores of tokens against tokens, or a flattened grid against anything: no picture's sides."""
    both = any({"H", "W"} <= {a.role for a in dim} for dim in (rows, columns))
    return both or bool(rows and state.unifier.same_range(rows, columns))


def _role(dim: Dim) -> str:
    roles = {a.role for a in dim if a.role in ("H", "W")}
    return roles.pop() if len(roles) == 1 else ""


def _named_source(state: GridState, source: Node, before: Axes, roles: dict[int, str]) -> Axes:
    """The axes of `source`, which are named by what is done to it; kept for its other users."""
    batch = _named(state, before[0], "B")
    sides = (_named(state, before[axis], roles[axis]) for axis in _SIDES)
    named = (batch, *before[1:-2], *sides)
    state.axes[source] = named
    return named


def _named(state: GridState, dim: Dim, role: str) -> Dim:
    """A dimension of one nameless range gets a role; it is still the same range."""
    if not role or len(dim) != 1 or dim[0].role or dim[0].segments:
        return dim
    state.prove(dim[0], role)
    # Named at last, it must not become the nameless range that it was split off again.
    return (replace(dim[0], role=role, split_of=None),)


def _side(dim: Dim, found: Reach, role: str, old: Size, new: Size) -> Dim:
    """A side after the operation: the same positions, some of them, or others."""
    if found.keeps and (not role or [a.role for a in dim] == [role]):
        return dim
    if not role:
        return fresh_dim(new)
    if found.step > 1 and len(dim) == 1 and not dim[0].segments and not same(old, new):
        return (fresh(new, role, dim[0].origin or dim[0].ident),)  # every n-th of them
    return (fresh(new, role),)


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(reaches(), through_spatial),
    **dict.fromkeys(("grid_sample", "grid_sampler", "grid_sampler_2d"), through_grid_sample),
}
