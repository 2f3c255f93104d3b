"""The depths of an object are told from those behind it and from strays before it."""

from __future__ import annotations

import numpy as np
import pytest

from teachers.autolabel.nearest_cluster import nearest_cluster


@pytest.mark.parametrize(
    ("depths_m", "expected"),
    [
        ([], []),
        ([30.0], [30.0]),
        ([20.0, 20.5, 21.0, 40.0, 41.0], [20.0, 20.5, 21.0]),
        # One point of a pole in front is no quarter of them.
        ([5.0, 20.0, 20.2, 20.4, 20.6], [20.0, 20.2, 20.4, 20.6]),
        # Far away points of one object lie further apart: 5 % of 60 m.
        ([60.0, 62.5, 65.0, 90.0], [60.0, 62.5, 65.0]),
        # None is a quarter: the largest.
        ([2.0, 10.0, 20.0, 30.0, 30.1, 50.0, 60.0, 70.0, 80.0], [30.0, 30.1]),
    ],
    ids=["nothing", "one", "a wall behind", "a pole in front", "far away", "scattered"],
)
def test_the_nearest_depths_that_are_no_strays_are_the_objects(depths_m: list[float], expected: list[float]) -> None:
    shuffled = np.array(depths_m[::-1], np.float32)
    assert sorted(shuffled[nearest_cluster(shuffled)].tolist()) == pytest.approx(expected)
