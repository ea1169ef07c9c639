"""Sizes as written by users, and what they are told about those that do not work."""

from __future__ import annotations

import re

import pytest
import torch

from todo_compile.capture.inputs import input_specs, is_recorded
from todo_compile.errors import ConfigError
from todo_compile.models import Resolution, resolve_component
from todo_compile.models.registry import REGISTRY


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


def test_only_what_works_is_named() -> None:
    """A pipeline may refuse multiples too."""
    size = Resolution(65, 65)
    assert size.near(8) == [Resolution(64, 64), Resolution(72, 72)]
    assert size.near(8, lambda one: one.width > 64) == [Resolution(72, 72)]
    assert Resolution(65, 3).near(8, lambda one: one.width > 64) == [Resolution(72, 8)]
    with pytest.raises(ConfigError) as caught:
        size.latent(8, 8, lambda _: False)
    assert "nearest" not in (caught.value.remedy or "")


KNOWN = [name for name in REGISTRY if is_recorded(resolve_component(name))]
ODD = ("5", "1001x2000", "1", "63", "100x65", "32767x3", "32768x1")


@pytest.mark.parametrize(
    ("name", "component"),
    [*((name, "unet") for name in REGISTRY if name not in KNOWN), ("demo", "vae_decoder")],
)
def test_the_named_size_is_taken(name: str, component: str) -> None:
    """By the check that refused the other."""
    source = resolve_component(name, component)
    for text in ODD:
        with pytest.raises(ConfigError, match="cannot make") as caught:
            input_specs(source, Resolution.parse(text), dtype=torch.float16)
        named = re.findall(r"\d+x\d+", caught.value.remedy or "")
        assert 1 <= len(named) <= 2
        for one in named:
            input_specs(source, Resolution.parse(one), dtype=torch.float16)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_a_pipeline_takes_the_size_that_it_names(name: str) -> None:
    """Where its own code was asked."""
    source = resolve_component(name)
    for text in ODD[:2]:
        with pytest.raises(ConfigError, match="cannot make") as caught:
            input_specs(source, Resolution.parse(text), dtype=torch.float16)
        named = re.findall(r"\d+x\d+", caught.value.remedy or "")
        assert named
        for one in named:
            input_specs(source, Resolution.parse(one), dtype=torch.float16)
