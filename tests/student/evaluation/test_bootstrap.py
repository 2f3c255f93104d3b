"""Intervals of metrics over segments."""

from __future__ import annotations

import math

import numpy as np
import pytest

from student.evaluation.bootstrap import interval, mean_per_segment


def test_a_mean_counts_values_not_segments() -> None:
    metric = mean_per_segment(["a", "a", "a", "b"], [1, 2, 3, 10], ["a", "b", "c"])
    assert metric.value == 4


def test_draws_scatter_as_means_of_segments_do() -> None:
    random = np.random.default_rng(0)
    names = [f"{i}" for i in range(100)]
    values = random.normal(5, 2, 100)
    draws = mean_per_segment(names, list(values), names).draws(4000, 1)
    assert draws.mean() == pytest.approx(values.mean(), abs=0.02)
    assert draws.std() == pytest.approx(values.std() / 10, rel=0.05)


def test_images_of_one_segment_stay_together() -> None:
    # Two segments of equal images each: a draw has one of three means, whatever the images are.
    names = ["a"] * 50 + ["b"] * 50
    draws = mean_per_segment(names, [0.0] * 50 + [1.0] * 50, ["a", "b"]).draws(200, 0)
    assert set(draws.tolist()) == {0.0, 0.5, 1.0}


def test_two_metrics_are_drawn_alike() -> None:
    names = [f"{i}" for i in range(20)]
    values = list(np.random.default_rng(1).normal(size=20))
    one = mean_per_segment(names, values, names)
    other = mean_per_segment(names, [value + 0.5 for value in values], names)
    low, high = interval(other.draws(500, 3) - one.draws(500, 3))
    assert low == pytest.approx(0.5)
    assert high == pytest.approx(0.5)


def test_the_interval_is_the_middle_of_the_draws() -> None:
    assert interval(np.arange(1001.0), 0.9) == pytest.approx((50, 950))


def test_nothing_has_no_interval() -> None:
    metric = mean_per_segment([], [], ["a"])
    assert math.isnan(metric.value)
    assert all(math.isnan(value) for value in interval(metric.draws(5, 0)))
