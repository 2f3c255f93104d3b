"""Each size and distance belongs where the name says."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from student.evaluation.ranges import ABOVE_16_PIXELS, DISTANCES, EVERYTHING, SIZES, Range


def names(ranges: tuple[Range, ...], value: float) -> list[str]:
    return [one.name for one in ranges if bool(one.contains(torch.tensor([value]))[0])]


def test_limits_of_sizes() -> None:
    assert names(SIZES, 15.99) == ["small"]
    assert names(SIZES, 16) == ["medium"]
    assert names(SIZES, 48) == ["medium"]
    assert names(SIZES, 48.01) == ["large"]
    assert names((ABOVE_16_PIXELS,), 16) == []
    assert names((ABOVE_16_PIXELS,), 16.01) == [">16px"]


def test_limits_of_distances_are_exact_in_single_precision() -> None:
    assert names(DISTANCES, 19.99) == ["0-20m"]
    assert names(DISTANCES, 20) == ["20-40m"]
    assert names(DISTANCES, 39.99) == ["20-40m"]
    assert names(DISTANCES, 40) == ["40m+"]


@given(st.floats(0, 1e6, width=32))
def test_every_size_and_distance_has_one_range(value: float) -> None:
    assert len(names(SIZES, value)) == len(names(DISTANCES, value)) == 1


def test_nan_is_in_no_range() -> None:
    assert names((EVERYTHING, *SIZES, *DISTANCES), float("nan")) == []
