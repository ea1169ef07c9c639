"""Whose text has a length that can be chosen is asked of the pipeline, which may not take it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from todo_compile.capture.recording.lengths import Lengths
from todo_compile.errors import ConfigError, ModelError


def fixed(length: int = 77, words: int | None = None) -> Mapping[str, torch.Tensor]:
    """As Karlo's prior, whose table of positions is for 77 tokens."""
    if length != 77:
        raise ModelError("UnCLIPPipeline stopped: 81 positions, 68 tokens", remedy="")
    return {"text": torch.zeros(1, 77 if words is None else words, 4)}


def test_a_pipeline_that_stops_at_another_length_is_asked_by_its_words() -> None:
    found = Lengths.of("UnCLIPPipeline", fixed)
    assert (found.by, found.numbers) == ("words", (8, 24))


def test_a_pipeline_that_stops_at_every_length_has_one() -> None:
    def padded(length: int = 77, words: int = 77) -> Mapping[str, torch.Tensor]:
        del words
        return fixed(length)

    with pytest.raises(ConfigError, match="no text whose length could be chosen"):
        Lengths.of("UnCLIPPipeline", padded)
