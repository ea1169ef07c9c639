"""Part of a batch: its rows and columns are those of some items, not of all.

    x (2, H·W, C)   chunk   →   (1, H·W, C)  (1, H·W, C)
    [b][H·W][c]             →   [ ][H'·W'][c]  [ ][H"·W"][c]

So the tokens of one half of a batch are not mistaken for those of the other. Equal parts of equally
batched tensors are the same items: queries and keys that are sliced alike still meet (diffusers'
sliced attention).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from todo_compile.passes.grid.axes import Atom, Axes, Dim, fresh
from todo_compile.passes.grid.state import GridState


def of_items(state: GridState, axes: Axes, cuts: Mapping[int, Hashable]) -> Axes:
    """Axes after part of the batch was taken; as they were if no batch axis is cut.

    Args:
        state: where the ranges of equal parts are kept.
        axes: axes before.
        cuts: axis → what is taken of it; None where that is not known.
    """
    batch = sorted(i for i in cuts if i < len(axes) and _is_batch(axes[i]))
    if not batch:
        return axes
    which: Hashable = None
    if all(cuts[i] is not None for i in batch):
        which = tuple((cuts[i], _batch_key(state, axes[i])) for i in batch)

    def part(atom: Atom) -> Atom:
        if which is None:
            return fresh(atom.size, atom.role)
        key = (state.unifier.find(atom.ident), which)
        return state.items.setdefault(key, fresh(atom.size, atom.role))

    return tuple(tuple(part(a) if a.role in ("H", "W") else a for a in dim) for dim in axes)


def _batch_key(state: GridState, dim: Dim) -> Hashable:
    """Equal for dimensions that hold the same items in the same order."""
    return tuple(
        (state.unifier.find(a.ident) if a.role == "B" else 0, a.size, bool(a.segments)) for a in dim
    )


def _is_batch(dim: Dim) -> bool:
    return any(a.role == "B" or any(_is_batch(s) for s in a.segments) for a in dim)
