"""A denoiser's inputs at a size and batch, as its pipeline passes them.

Several runs of the pipeline's own code with stand-ins (`run`) are compared: two numbers of pictures
show which inputs have the batch, two sizes what a cell is in pixels, two lengths which axes are
text. Nothing is derived from names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from todo_compile.batches import Text, TextRange, largest
from todo_compile.capture.recording.arguments import count_name, parameters, takes_size
from todo_compile.capture.recording.call import Flat, flatten
from todo_compile.capture.recording.lengths import Lengths, reads_apart
from todo_compile.capture.recording.padding import PADDED
from todo_compile.capture.recording.picture import Picture, cells_of, look
from todo_compile.capture.recording.recording import Recording
from todo_compile.capture.recording.run import rehearsal
from todo_compile.capture.recording.times import Times
from todo_compile.errors import ConfigError, ModelError
from todo_compile.models.architecture import Native, PipelineDefaults, attention_stride, vae_scale
from todo_compile.models.parts import Part, Parts
from todo_compile.models.resolution import Resolution
from todo_compile.models.source import Source

_REFERENCE = 1024  # pixels; whole cells for every scale that there is
_MULTIPLES = (1, 2, 4, 8, 16, 32, 64, 128)
_AUTOENCODERS = ("vae", "movq", "vqgan", "vqvae")


class Recorder:
    """Asks a pipeline; see `recorder`."""

    def __init__(self, parts: Parts, denoiser: str, texts: Text | None) -> None:
        self._parts = parts
        self._denoiser = denoiser
        self._wanted = texts
        part = parts.parts.get(denoiser)
        assert part is not None
        self._config = part.config
        self._padding = PADDED.get(part.name)
        self._memory: dict[Any, Any] = {}

    def record(self, size: Resolution, batch: int, dtype: torch.dtype) -> Recording:
        """The call at `size` for `batch` rows.

        Raises:
            ConfigError: a size, batch or length of text that the pipeline cannot make.
            ModelError: its code stops before the denoiser.
        """
        return self._once(("record", size, batch, dtype), lambda: self._record(size, batch, dtype))

    def sample(
        self,
        size: Resolution,
        answer: Callable[[Mapping[str, Any]], Any],
        *,
        steps: int,
        seed: int,
        dtype: torch.dtype,
    ) -> None:
        """Let the pipeline draw one picture of `size` with `answer` for its denoiser; see
        `Rehearsal.sample`."""
        self._check(size)
        rehearsal(self._sized(size), self._denoiser).sample(
            size,
            lambda found: answer(self._masked(found)),
            steps=steps,
            seed=seed,
            dtype=dtype,
            **self._told(size),
        )

    def times(self, size: Resolution) -> Times | None:
        """How the denoiser's time follows from the scheduler's; None if that cannot be told."""

        def find() -> Times | None:
            found = rehearsal(self._sized(size), self._denoiser)
            return found.times(size, **self._told(size))

        return self._once("times", find)

    @cached_property
    def pipeline_defaults(self) -> PipelineDefaults:
        """What the pipeline does when it is told neither size nor number.

        Raises:
            ModelError: as `record`.
        """
        default = self._default
        rows = self._rows(default)
        cells, sides = self._cells_of(default), self._sides(default)
        grid = sides if sides is not None else cells
        stride = 1 if sides is not None else attention_stride(self._config)
        tokens = -(-grid[0] // stride) * -(-grid[1] // stride)
        return PipelineDefaults(Native(grid, stride, tokens), rows, self._unfilled(default))

    def _record(self, size: Resolution, batch: int, dtype: torch.dtype) -> Recording:
        self._check(size)
        rows = self._rows(size)
        several = self._counts()
        pictures = -(-batch // rows)
        if batch != rows and not several:
            raise ConfigError(
                f"{self._parts.pipeline} calls its {self._denoiser} with {rows} rows, and nothing "
                f"tells how it would with {batch}.",
                remedy=f"Leave --batch out, or give {rows}.",
            )
        given = self._call(size, count=pictures, dtype=dtype, **self._told(size))
        batched = self._batched(size)
        flat = _first(given, batch, pictures * rows, batched) if several else flatten(given)
        names = frozenset(n for n in batched if n in flat.names and _rows_of(flat, n) == batch)
        alike = several and all(_rows_of(flat, n) == batch for n in batched if n in flat.names)
        alike = alike and set(names) == set(batched)
        return Recording(flat, names, self._picture(size), alike, self._texts(size))

    def _call(self, size: Resolution | None, **more: Any) -> Mapping[str, Any]:
        parts = self._parts if size is None else self._sized(size)
        found = rehearsal(parts, self._denoiser).call(size, **more)
        return self._masked(found)

    def _masked(self, found: Mapping[str, Any]) -> Mapping[str, Any]:
        return found if self._padding is None else self._padding.masked(found)

    def _sized(self, size: Resolution) -> Parts:
        """The pipeline for pictures of `size`, where its denoiser's configuration says it alone."""
        if not self._fixed:
            return self._parts
        if size.width != size.height:
            raise ConfigError(
                f"{self._parts.pipeline} makes only square pictures, not {size}.",
                remedy=f"Give one side, such as --res {self._square(size.width)}.",
            )
        part = self._parts.parts[self._denoiser]
        assert part is not None
        side = size.width // self._scale
        changed = Part(part.library, part.name, {**part.config, "sample_size": side})
        return replace(self._parts, parts={**self._parts.parts, self._denoiser: changed})

    def _square(self, side: int) -> int:
        """The side nearest to `side` of a square picture that can be drawn."""
        square = Resolution(side, side)
        if self._fits(square):
            return side
        return next((one.width for one in square.near(self.multiple, self._fits)), _REFERENCE)

    @cached_property
    def _fixed(self) -> bool:
        """Whether neither an argument nor a picture says how large to draw."""
        if takes_size(rehearsal(self._parts, self._denoiser).pipeline):
            return False
        run = rehearsal(self._parts, self._denoiser).call
        one, other = (
            cells_of(lambda mode, side=side: run(Resolution(side, side), mode=mode))
            for side in (_REFERENCE // 2, _REFERENCE)
        )
        return one == other and isinstance(self._config.get("sample_size"), int)

    @cached_property
    def _scale(self) -> int:
        """Pixels a cell, by the autoencoder; without one pictures are made of pixels."""
        for name in _AUTOENCODERS:
            part = self._parts.parts.get(name)
            if part is not None:
                return vae_scale(part.config)
        return 1

    @cached_property
    def _default(self) -> Resolution | None:
        """None where the pipeline knows a size of its own; else the denoiser's training size."""
        if takes_size(rehearsal(self._parts, self._denoiser).pipeline):
            return None
        side = self._config.get("sample_size")
        pixels = side * self._scale if isinstance(side, int) else _REFERENCE
        return Resolution(pixels, pixels)

    def _picture(self, size: Resolution | None) -> Picture | None:
        def run(mode: Any) -> Mapping[str, Tensor]:
            return flatten(self._call(size, mode=mode)).by_name

        return self._once(("picture", size), lambda: look(run))

    def _cells_of(self, size: Resolution | None) -> tuple[int, int]:
        cells = self._once(
            ("cells", size), lambda: cells_of(lambda mode: self._call(size, mode=mode))
        )
        if cells is None:
            raise ModelError(
                f"{self._parts.pipeline} draws no noise with rows and columns, so the size of its "
                "image is unknown.",
                remedy="Hand the module to todo_compile.rewrite(module, example_inputs).",
            )
        return cells

    def _sides(self, size: Resolution | None) -> tuple[int, int] | None:
        """(rows, columns) of packed tokens, of each frame of a video."""
        picture = self._picture(size)
        grid = None if picture is None else picture.drawn
        return None if grid is None else (grid[-2], grid[-1])

    @cached_property
    def _pixels(self) -> tuple[Fraction, Fraction]:
        """Pixels a cell, down and across."""
        rows, columns = self._cells_of(Resolution(_REFERENCE, _REFERENCE))
        return Fraction(_REFERENCE, rows), Fraction(_REFERENCE, columns)

    def _fits(self, size: Resolution) -> bool:
        try:
            cells = self._cells_of(size)
        except (ModelError, ConfigError):
            return False
        return cells == (size.height / self._pixels[0], size.width / self._pixels[1])

    @cached_property
    def multiple(self) -> int:
        """Pixels that sides are multiples of."""
        sides = ((m, Resolution(_REFERENCE + m, _REFERENCE + m)) for m in _MULTIPLES)
        return next((m for m, size in sides if self._fits(size)), _MULTIPLES[-1])

    def _check(self, size: Resolution) -> None:
        """Refuse a size that the pipeline would draw at another."""
        try:
            cells = self._cells_of(size)
        except ModelError:  # it may say so itself, in its own words
            size.latent(self.multiple, 1, self._fits)
            raise
        pixels = tuple(int(n * p) for n, p in zip(cells, self._pixels, strict=True))
        if pixels == (size.height, size.width):
            return
        size.latent(self.multiple, 1, self._fits)  # raises, and names the nearest
        drawn = Resolution(pixels[1], pixels[0])
        raise ConfigError(
            f"{self._parts.pipeline} would draw {drawn} where {size} is asked for.",
            remedy=f"Take {drawn}."
            if self._fits(drawn)
            else f"Take one of its own sizes, multiples of {self.multiple}.",
        )

    def _counts(self) -> bool:
        """Whether more pictures make more rows."""
        size = self._default or Resolution(_REFERENCE, _REFERENCE)
        named = count_name(rehearsal(self._parts, self._denoiser).pipeline)
        return named is not None and bool(self._batched(size))

    def _batched(self, size: Resolution) -> frozenset[str]:
        """Names of tensors (or of lists of them) that have more rows for more pictures."""
        one, two = self._call_shapes(size, 1), self._call_shapes(size, 2)
        return frozenset(n for n in one if one[n] != two.get(n))

    def _call_shapes(self, size: Resolution, count: int) -> dict[str, Any]:
        def shapes() -> dict[str, Any]:
            call = self._call(size, count=count)
            flat = flatten({k: v for k, v in call.items() if not _is_list(v)})
            lists = {k: len(v) for k, v in call.items() if _is_list(v)}
            return {**{n: t.shape for n, t in flat.by_name.items()}, **lists}

        return self._once(("shapes", size, count), shapes)

    def _rows(self, size: Resolution | None) -> int:
        """Rows for one picture: those of the tensor with the image, or of a list of them."""

        def rows() -> int:
            call = self._call(size)
            for value in call.values():
                if _is_list(value) and isinstance(value[0], Tensor):
                    return len(value)
                if isinstance(value, Tensor) and value.dim() >= 3:
                    return value.shape[0]
            return 1

        return self._once(("rows", size), rows)

    def _told(self, size: Resolution) -> dict[str, int]:
        """What the pipeline is told for as many tokens of text as are wanted, at most."""
        if self._wanted is None:
            return {}
        wanted = largest(self._wanted)
        return self._once(("told", size), lambda: self._lengths(size).told(wanted))

    def _texts(self, size: Resolution) -> frozenset[str]:
        """Names of tensors whose second size is the text's, where that has a range."""
        if not isinstance(self._wanted, TextRange):
            return frozenset()
        return self._once(("texts", size), lambda: self._lengths(size).ranged())

    def _lengths(self, size: Resolution | None) -> Lengths:
        def seen(**told: int) -> Mapping[str, Tensor]:
            return flatten(self._call(size, **told)).by_name

        return self._once(("lengths", size), lambda: Lengths.of(self._parts.pipeline, seen))

    def _unfilled(self, size: Resolution | None) -> TextRange | None:
        """Every text that the pipeline passes, where it fills none up and they are read apart.

        Where text and picture are one sequence, their tokens cannot be told apart then.
        """
        rehearsed = rehearsal(self._parts, self._denoiser)
        if "prompt" not in parameters(rehearsed.pipeline):
            return None
        try:
            lengths = self._lengths(size)
        except ConfigError:  # they are all of one length
            return None
        whole = flatten(self._call(size)).by_name
        if lengths.by != "words" or not (names := lengths.even(whole)):
            return None
        if self._denoiser != "unet":
            calls = [self._call(size, words=words) for words in lengths.numbers]
            tokens = [seen[min(names)].shape[1] for seen in lengths.seen]
            if not reads_apart(rehearsed.stage.shapes, calls, tokens):
                return None
        most = whole[min(names)].shape[1]
        return TextRange(1, most, most) if most > 1 else None

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._memory:
            self._memory[key] = make()
        return self._memory[key]


def recorder(source: Source, parts: Parts) -> Recorder:
    """The `Recorder` of a denoiser; the same one for equal pipelines.

    Raises:
        ModelError: diffusers cannot make the pipeline.
    """
    key = (parts.text, source.component, str(source.texts))
    if key not in _recorders:
        while len(_recorders) >= 4:
            del _recorders[next(iter(_recorders))]
        _recorders[key] = Recorder(parts, source.component, source.texts)
    return _recorders[key]


_recorders: dict[Any, Recorder] = {}


def _is_list(value: object) -> bool:
    return isinstance(value, list) and bool(value)


def _rows_of(flat: Flat, name: str) -> int:
    tensor = flat.by_name[name]
    return tensor.shape[0] if tensor.dim() else 0


def _first(call: Mapping[str, Any], batch: int, rows: int, batched: frozenset[str]) -> Flat:
    """The first `batch` of `rows` rows, of everything that has them."""

    def share(value: Any) -> Any:
        return value[: len(value) * batch // rows]

    lists = {k: share(v) if k in batched and _is_list(v) else v for k, v in call.items()}
    flat = flatten(lists)
    pairs = flat.by_name.items()
    return replace(flat, tensors=tuple(share(t) if n in batched else t for n, t in pairs))
