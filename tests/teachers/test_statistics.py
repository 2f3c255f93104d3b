"""Statistics of many batches are those of all of them at once."""

from __future__ import annotations

import functools
import operator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from teachers.card import ChannelStatistics, TeacherError
from teachers.statistics import Moments, standardize
from teachers.target import Target
from tests.teachers.test_target import random_target


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(0, 1000), st.floats(-1e4, 1e4))
@settings(deadline=None, max_examples=60)
def test_batches_merge_into_the_whole(sizes: list[int], seed: int, offset: float) -> None:
    random = np.random.default_rng(seed)
    # Far from zero, a sum of squares in float32 would lose the variance altogether.
    batches = [(random.normal(offset, 0.5, (size, 3))).astype(np.float32) for size in sizes]
    whole = np.concatenate(batches).astype(np.float64)
    moments = functools.reduce(operator.add, (Moments.of(torch.from_numpy(batch)) for batch in batches))
    assert moments.count == len(whole)
    if not len(whole):
        with pytest.raises(TeacherError, match="not one valid cell"):
            moments.statistics()
        return
    statistics = moments.statistics()
    np.testing.assert_allclose(statistics.mean, whole.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(statistics.variance, whole.var(0), rtol=1e-9, atol=1e-12)


def test_partial_results_merge_in_any_grouping() -> None:
    a, b, c = (Moments.of(torch.randn(20 * n, 4) + n) for n in (1, 2, 3))
    left, right = ((a + b) + c).statistics(), (c + (Moments.empty(4) + (b + a))).statistics()
    np.testing.assert_allclose(left.mean, right.mean, rtol=1e-12)
    np.testing.assert_allclose(left.variance, right.variance, rtol=1e-12)


def test_moments_of_other_channels_do_not_merge() -> None:
    with pytest.raises(TeacherError, match="3 and 4 channels"):
        Moments.empty(3) + Moments.empty(4)


def test_only_valid_cells_count() -> None:
    target = random_target(0, classes=False)
    rows = [
        target.values[i, :, y, x].numpy()
        for i in range(2)
        for y in range(4)
        for x in range(5)
        if target.valid[i, 0, y, x]
    ]
    statistics = Moments.of_target(target).statistics()
    np.testing.assert_allclose(statistics.mean, np.mean(np.asarray(rows, np.float64), 0), rtol=1e-12)


def test_classes_have_no_statistics() -> None:
    with pytest.raises(TeacherError, match="classes have no mean"):
        Moments.of_target(random_target(0, classes=True))


def test_standardized_channels_have_mean_0_and_variance_1() -> None:
    target = random_target(1, classes=False)
    moved = Target(target.keys, (target.values * 7 - 300) * target.valid, target.valid)
    standard = standardize(moved, Moments.of_target(moved).statistics())
    after = Moments.of_target(standard).statistics()
    np.testing.assert_allclose(after.mean, 0, atol=1e-4)
    np.testing.assert_allclose(after.variance, 1, rtol=1e-4)
    assert (standard.values[~target.valid.expand_as(standard.values)] == 0).all()


def test_a_constant_channel_is_not_blown_up() -> None:
    target = random_target(1, classes=False)
    statistics = ChannelStatistics(mean=(5.0, 0.0, 0.0), variance=(0.0, 1.0, 1.0))
    flat = Target(target.keys, torch.full_like(target.values, 5), target.valid)
    assert standardize(flat, statistics).values[:, 0].abs().max() == 0


def test_statistics_of_another_network_are_refused() -> None:
    with pytest.raises(TeacherError, match="2 channels cannot standardize 3"):
        standardize(random_target(1, classes=False), ChannelStatistics(mean=(0.0, 0.0), variance=(1.0, 1.0)))
