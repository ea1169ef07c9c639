"""Running a pipeline, made of stand-ins, up to its denoiser's first call."""

from __future__ import annotations

import inspect
import logging
import traceback
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from todo_compile.capture.recording.arguments import arguments, parameters
from todo_compile.capture.recording.modules import Recorded, Result, Stage, class_of, stand_in
from todo_compile.capture.recording.times import Times, line, time_of
from todo_compile.capture.recording.words import UNBOUNDED, tokenizer
from todo_compile.errors import ModelError, TodoError, first_line
from todo_compile.libraries import quiet_libraries
from todo_compile.models.parts import Part, Parts, token_limit
from todo_compile.models.resolution import Resolution

_LEFT_OUT = ("safety_checker", "watermarker", "feature_extractor", "image_encoder")
"""Parts that only look at finished pictures, or that a pipeline may do without."""
_CLIP_LENGTH = 77
_STEPS = 20
"""Steps of a loop that times are read off: from a picture some are left out."""


class Rehearsal:
    """A pipeline made of stand-ins; see `rehearsal`.

    Attributes:
        parts: what it is made of.
        denoiser: name of the part whose call is wanted.
        pipeline: diffusers' own object.
        stage: shared by its stand-ins.
    """

    def __init__(self, parts: Parts, denoiser: str) -> None:
        self.parts = parts
        self.denoiser = denoiser
        self.stage = Stage()
        with quiet_libraries(logging.CRITICAL):
            self.pipeline = _assembled(parts, denoiser, self.stage)

    def call(
        self,
        size: Resolution | None,
        *,
        count: int = 1,
        dtype: torch.dtype = torch.float32,
        length: int | None = None,
        words: int | None = None,
        mode: Any = None,
    ) -> Mapping[str, Any]:
        """What the denoiser is first called with, by the names of its parameters.

        Args:
            size: in pixels; None for the pipeline's own default.
            count: pictures of one text.
            dtype: of the pipeline.
            length: most tokens of a text; None for the pipeline's own default.
            words: of the prompt; None for more than any pipeline takes.
            mode: a torch function mode around the call.

        Raises:
            ModelError: the pipeline stops before, or does not call its denoiser at all.
        """
        given = arguments(self.pipeline, self.parts, size, count=count, length=length, words=words)
        found = self._run(given, size, dtype, length, mode)
        if found is None:
            raise ModelError(
                f"{self.parts.pipeline} did not call its {self.denoiser}.",
                remedy="Load the module yourself and hand it to the Python API with example "
                "inputs: todo_compile.rewrite(module, example_inputs).",
            )
        return found

    def sample(
        self,
        size: Resolution | None,
        answer: Callable[[Mapping[str, Any]], Any],
        *,
        steps: int,
        seed: int,
        dtype: torch.dtype,
        length: int | None = None,
        words: int | None = None,
    ) -> None:
        """Let the pipeline take `steps` steps of its loop.

        Args:
            size, dtype, length, words: as for `call`.
            answer: the denoiser: what it gives for its arguments. `Recorded` ends the loop.
            steps: of the scheduler.
            seed: of the noise.

        Raises:
            ModelError: the pipeline stops with an error.
        """
        given = arguments(self.pipeline, self.parts, size, length=length, words=words, seed=seed)
        known = parameters(self.pipeline)
        wanted = {"num_inference_steps": steps, "output_type": "latent"}
        self.stage.answer = answer
        try:
            more = {k: v for k, v in wanted.items() if k in known}
            self._run({**given, **more}, size, dtype, length, None)
        finally:
            self.stage.answer = None

    def times(
        self, size: Resolution | None, *, length: int | None = None, words: int | None = None
    ) -> Times | None:
        """How the denoiser's time follows from the scheduler's; None if that cannot be told.

        Args:
            size, length, words: as for `call`.
        """
        seen: dict[str, list[float]] = {}

        def answer(arguments: Mapping[str, Any]) -> Any:
            if (found := time_of(arguments)) is not None:
                value = torch.as_tensor(found[1]).reshape(-1)[0]
                seen.setdefault(found[0], []).append(float(value))
            try:
                return self.stage.shapes(arguments)
            except Exception:  # noqa: BLE001  # whatever a network without values raises
                return Result((next(v for v in arguments.values() if isinstance(v, Tensor)),))

        ended = False
        try:
            self.sample(
                size,
                answer,
                steps=_STEPS,
                seed=0,
                dtype=torch.float32,
                length=length,
                words=words,
            )
            ended = True
        except ModelError:  # what comes after the loop may need more than shapes
            pass
        schedule: Any = getattr(getattr(self.pipeline, "scheduler", None), "timesteps", None)
        if len(seen) != 1 or schedule is None:
            return None
        ((name, values),) = seen.items()
        return line(name, values, torch.as_tensor(schedule).double().tolist(), late=ended)

    def _run(
        self,
        given: Mapping[str, Any],
        size: Resolution | None,
        dtype: torch.dtype,
        length: int | None,
        mode: Any,
    ) -> Mapping[str, Any] | None:
        """The arguments of the call that ended the run; None if none did."""
        self.stage.dtype = dtype
        bounded = length is not None and "max_sequence_length" not in given
        try:
            with (
                quiet_libraries(logging.CRITICAL),
                self._tokens(length if bounded else None),
                torch.random.fork_rng(devices=[]),
                torch.no_grad(),
            ):
                torch.manual_seed(0)
                if mode is None:
                    self.pipeline(**given)
                else:
                    with mode, self._encoding(mode):
                        self.pipeline(**given)
        except Recorded as found:
            return found.arguments
        except TodoError:
            raise
        except Exception as error:  # anything that a pipeline's own code raises
            raise self._stopped(error, size) from error
        return None

    @contextmanager
    def _encoding(self, mode: Any) -> Generator[None]:
        """Pictures that are encoded are what `mode` says."""
        self.stage.encoded, self.stage.encodings = mode.encoded, 0
        try:
            yield
        finally:
            self.stage.encoded = None

    @contextmanager
    def _tokens(self, most: int | None) -> Generator[None]:
        """Tokenizers with another bound, for pipelines that pad to that of their tokenizer."""
        found = [part for name, part in self.pipeline.components.items() if "tokenizer" in name]
        words = [part for part in found if part is not None]
        before = [part.model_max_length for part in words]
        try:
            for part in words if most is not None else ():
                part.model_max_length = most
            yield
        finally:
            for part, length in zip(words, before, strict=True):
                part.model_max_length = length

    def _absent(self) -> str:
        """Parts that the pipeline has, and nothing stands in for: processors of pictures."""
        names = (
            name
            for name, part in self.parts.parts.items()
            if part is not None and getattr(self.pipeline, name, part) is None
        )
        return ", ".join(name for name in names if name not in _LEFT_OUT)

    def _stopped(self, error: Exception, size: Resolution | None) -> ModelError:
        frames = traceback.extract_tb(error.__traceback__)
        theirs = [f for f in frames if "/diffusers/" in f.filename.replace("\\", "/")]
        where = (theirs or frames)[-1]
        file = where.filename.replace("\\", "/").rpartition("/")[2]
        at = "" if size is None else f" at {size}"
        when = "in its loop" if self.stage.answer else f"before it called its {self.denoiser}"
        said, absent = first_line(error, limit=240), self._absent()
        if absent and "NoneType" in said:
            said = f"nothing stands in for its {absent}, which it uses there"
        return ModelError(
            f"{self.parts.pipeline} stopped{at} {when}, in {file}, line {where.lineno}: {said}",
            remedy="If it is about the size, take another; else compare the folder with the "
            "model's origin, or hand the module to todo_compile.rewrite(module, example_inputs).",
        )


def rehearsal(parts: Parts, denoiser: str) -> Rehearsal:
    """`Rehearsal` of a pipeline; the same one for equal parts.

    Raises:
        ModelError: diffusers cannot make it.
    """
    key = (parts.text, denoiser)
    if key not in _kept:
        while len(_kept) >= _KEPT:
            del _kept[next(iter(_kept))]
        _kept[key] = Rehearsal(parts, denoiser)
    return _kept[key]


_KEPT = 4
_kept: dict[tuple[str, str], Rehearsal] = {}


def _assembled(parts: Parts, denoiser: str, stage: Stage) -> Any:
    pipeline: Any = class_of(Part("diffusers", parts.pipeline, {}))
    known = inspect.signature(pipeline.__init__).parameters
    given = {k: v for k, v in parts.settings.items() if k in known}
    for name, part in parts.parts.items():
        if name in known:
            given[name] = None if part is None else _part(name, part, parts, denoiser, stage)
    for name, parameter in known.items():
        empty = parameter.default is inspect.Parameter.empty
        if name not in given and name not in ("self", "kwargs", "args") and empty:
            given[name] = None
    if "requires_safety_checker" in known:
        given["requires_safety_checker"] = False
    try:
        made = pipeline(**given)
    except Exception as error:  # whatever a part that does not fit sets off
        raise ModelError(
            f"diffusers cannot make a {parts.pipeline} of these parts: {first_line(error)}",
            remedy="Compare model_index.json with the model's origin, or update diffusers.",
        ) from error
    made.set_progress_bar_config(disable=True)
    return made


def _part(name: str, part: Part, parts: Parts, denoiser: str, stage: Stage) -> Any:
    if "tokenizer" in name:
        return tokenizer(token_limit(part) or _length(name, parts), positions=_positioned(part))
    if name in ("safety_checker", "watermarker"):
        return None
    cls = class_of(part)
    if isinstance(cls, type) and issubclass(cls, torch.nn.Module):
        return stand_in(name, part, stage, denoiser=name == denoiser)
    if hasattr(cls, "from_config"):  # schedulers: as they are
        return cls.from_config(dict(part.config))
    return cls() if name == "feature_extractor" else None


def _positioned(part: Part) -> bool:
    """Whether a tokenizer gives positions too, as its class says."""
    try:
        return "position_ids" in getattr(class_of(part), "model_input_names", ())
    except ModelError:  # its library is absent: the stand-in does without
        return False


def _length(name: str, parts: Parts) -> int:
    """Tokens of a tokenizer whose own file does not say: its text encoder's positions."""
    encoder = parts.parts.get(name.replace("tokenizer", "text_encoder"))
    if encoder is None:
        return UNBOUNDED
    if encoder.name.startswith("CLIP"):
        return int(encoder.config.get("max_position_embeddings", _CLIP_LENGTH))
    return UNBOUNDED
