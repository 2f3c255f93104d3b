"""Where the inertia of more and more clusters bends."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from student.evaluation.knee import knee, kneedle, null_knee
from student.pretraining.kmeans import kmeans


@pytest.mark.parametrize(("most", "expected"), [(8, 3), (10, 3), (12, 4), (16, 4), (20, 5), (25, 5), (32, 6)])
def test_points_without_clusters_have_a_knee_that_only_the_most_clusters_decide(most: int, expected: int) -> None:
    assert null_knee(most) == expected


def test_the_knee_is_the_first_bend_from_which_the_curve_falls_towards_its_chord_by_loops() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        most = int(random.integers(4, 20))
        # Convex and falling: steps that become smaller.
        steps = np.sort(random.exponential(size=most - 1))[::-1]
        curve = np.concatenate([[0], -np.cumsum(steps)]) + 100
        low, high = curve.min(), curve.max()
        below = [1 - (curve[i] - low) / (high - low) - i / (most - 1) for i in range(most)]
        # A convex curve has one maximum: the first step that is shorter than the chord's.
        top = next(i for i in range(most - 1) if steps[i] < (high - low) / (most - 1))
        falls = [below[j] < below[top] - 1 / (most - 1) for j in range(top + 1, most)]
        assert kneedle(curve) == (top + 1 if any(falls) else None)
        assert knee(curve) == top + 1


def test_a_level_curve_is_one_cluster() -> None:
    assert knee([3.0] * 12) == 1
    assert kneedle([3.0] * 12) is None


def test_a_second_bend_does_not_count() -> None:
    assert knee([100, 40, 38, 36, 34, 32, 5, 4, 3, 2, 1, 0]) == 2


def test_a_straight_line_has_no_knee_but_an_answer() -> None:
    line = np.linspace(10, 0, 12)
    assert kneedle(line) is None
    assert 1 <= knee(line) <= 12


@pytest.mark.parametrize("count", [3, 4, 5, 6])
def test_blobs_far_apart_are_counted(count: int) -> None:
    random = torch.Generator().manual_seed(count)
    points = torch.eye(16)[:count].repeat_interleave(30, 0) * 8 + torch.randn(30 * count, 16, generator=random) / 3
    inertia = [
        float(kmeans(points[None], k, [torch.Generator().manual_seed(k)], restarts=8).inertia) for k in range(1, 13)
    ]
    assert knee(inertia) == count


def test_a_curve_of_one_number_is_refused() -> None:
    with pytest.raises(ValueError, match="Expected the inertia of 1, 2 and more clusters"):
        knee([1.0])
