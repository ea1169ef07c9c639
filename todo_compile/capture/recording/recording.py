"""What is known of a recorded call: its tensors, which have the batch, and where the image is."""

from __future__ import annotations

from dataclasses import dataclass

from todo_compile.capture.recording.call import Flat
from todo_compile.capture.recording.picture import Picture
from todo_compile.options import TokenGrid, grid_tokens, grids_of


@dataclass(frozen=True)
class Recording:
    """A denoiser's call.

    Attributes:
        call: its tensors for the batch that was asked for.
        batched: names of those whose first size is the batch.
        picture: where the image is in them; None if the pipeline draws none.
        several: whether batches of other sizes do the same, row by row.
        texts: names of those whose second size is the tokens of the text, where that has a range.
    """

    call: Flat
    batched: frozenset[str]
    picture: Picture | None
    several: bool
    texts: frozenset[str] = frozenset()

    @property
    def token_grids(self) -> dict[int, TokenGrid]:
        """Number of packed tokens → (rows, columns), or (frames, rows, columns); of each picture
        where they are several pictures'."""
        if self.picture is None or self.picture.partly:
            return {}
        return {grid_tokens(grid): grid for grid in self.picture.packed.values()}

    @property
    def in_a_row(self) -> dict[str, list[list[int]]]:
        """Input → the grids of its tokens, where several pictures follow each other."""
        packed = {} if self.picture is None else self.picture.packed
        grids = {name: grids_of(grid) for name, grid in packed.items()}
        return {name: [list(g) for g in several] for name, several in grids.items() if several[1:]}

    @property
    def image_axes(self) -> dict[str, tuple[int, int]]:
        """Input → its (row, column) axes."""
        axes = {} if self.picture is None else self.picture.axes
        # Of a list with a picture for each row a smaller batch has fewer.
        return {name: both for name, both in axes.items() if name in self.call.names}
