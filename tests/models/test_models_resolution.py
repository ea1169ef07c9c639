"""Sizes as written by users, and what they are told about those that do not work."""

from __future__ import annotations

import pytest

from todo_compile.errors import ConfigError
from todo_compile.models import Resolution


@pytest.mark.parametrize(
    ("text", "width", "height"),
    [
        ("2048", 2048, 2048),
        (512, 512, 512),
        ("1920x1080", 1920, 1080),
        ("1920×1080", 1920, 1080),
        (" 8 X 16 ", 8, 16),
    ],
)
def test_parse(text: str | int, width: int, height: int) -> None:
    assert Resolution.parse(text) == Resolution(width=width, height=height)


@pytest.mark.parametrize("text", ["", "big", "1024x", "x1024", "1024x1024x3", "10.5", "1024px"])
def test_not_a_resolution(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a resolution") as caught:
        Resolution.parse(text)
    assert "1920x1080" in (caught.value.remedy or "")


@pytest.mark.parametrize("text", ["0", "-512", "512x0", "1000000"])
def test_impossible_side(text: str) -> None:
    with pytest.raises(ConfigError, match="is not possible") as caught:
        Resolution.parse(text)
    assert "1 to 32768" in (caught.value.remedy or "")


def test_latent_is_height_first() -> None:
    assert Resolution(1920, 1080).latent(8, 8) == (135, 240)


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("1025", "1024x1024 or 1032x1032"),
        ("1920x1081", "1920x1080 or 1920x1088"),
        ("1001x1002", "1000x1000 or 1008x1008"),
        ("5", ": 8x8."),
    ],
)
def test_nearest_that_works(text: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match="multiples of 8") as caught:
        Resolution.parse(text).latent(8, 8)
    assert nearest in (caught.value.remedy or "")
