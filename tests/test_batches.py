"""What people write as a batch, and how a call is cut into an engine's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from todo_compile.batches import BatchRange, halved, largest, parse_batch, pieces
from todo_compile.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (2, 2),
        ("2", 2),
        (" 2 ", 2),
        ("1..4", BatchRange(1, 4, 4)),
        ((1, 4), BatchRange(1, 4, 4)),
        ([1, 2, 4], BatchRange(1, 2, 4)),
        ("1..2..4", BatchRange(1, 2, 4)),
        (BatchRange(1, 2, 3), BatchRange(1, 2, 3)),
        ("3..3", 3),  # a range of one number is that number
    ],
)
def test_spellings(given: object, found: object) -> None:
    assert parse_batch(given) == found


@pytest.mark.parametrize("text", ["1..4", "1..2..4", "2..3"])
def test_a_range_is_shown_as_it_is_written(text: str) -> None:
    found = parse_batch(text)
    assert str(found) == text
    assert hash(found) == hash(parse_batch(text))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("4..1", "its numbers must rise"),
        ("1..5..4", "its numbers must rise"),
        ("2..1..4", "its numbers must rise"),
        ("0..4", "A batch of 0 is not possible"),
        ("-1..4", "A batch of -1 is not possible"),
        ("", "is not a batch"),
        ("1..", "is not a batch"),
        ("1-4", "is not a batch"),
        ("1..2..3..4", "is not a batch"),
        ("two", "is not a batch"),
        ((1,), "is not a batch"),
        ((1.0, 4), "is not a batch"),
        ((True, 4), "is not a batch"),
        (True, "is not a batch"),
        (None, "is not a batch"),
        ("9" * 30, "is not a batch"),
    ],
)
def test_refusals(given: object, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        parse_batch(given)
    assert "1..4" in str(caught.value.remedy)


def test_half_of_a_batch_is_its_images() -> None:
    """As for numbers: rounded down, at least one; what is left of a range may be a number."""
    wanted = {"1..4": "1..2", "1..2": "1", "2..8": "1..4", "1..4..8": "1..2..4", "2": "1"}
    assert {one: str(halved(parse_batch(one))) for one in wanted} == wanted
    assert halved(1) == 1
    assert (largest(parse_batch("1..4")), largest(3)) == (4, 3)


@given(st.integers(1, 70), st.integers(1, 9), st.integers(0, 9))
def test_pieces_are_within_the_range(count: int, least: int, more: int) -> None:
    most = least + more
    found = pieces(count, least, most)
    assert sum(found) == count
    assert all(1 <= size <= most for size in found)
    assert all(size >= least for size in found[:-1])
    assert len(found) == -(-count // most)  # no more calls than needed
    # Only a call that no cut of this many pieces serves has rows computed for nothing.
    assert (found[-1] >= least) == (len(found) * least <= count)


@pytest.mark.parametrize(
    ("count", "least", "most", "found"),
    [
        (5, 1, 4, [4, 1]),
        (8, 1, 4, [4, 4]),
        (5, 2, 4, [3, 2]),  # instead of 4 and 1, which would be filled up
        (1, 2, 4, [1]),
        (5, 4, 4, [4, 1]),  # a fixed batch: filled up, as ever
    ],
)
def test_pieces_by_example(count: int, least: int, most: int, found: list[int]) -> None:
    assert pieces(count, least, most) == found
