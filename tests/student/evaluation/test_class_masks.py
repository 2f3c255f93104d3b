"""Clusters of a whole set against groups of classes."""

from __future__ import annotations

import numpy as np
import pytest

from student.evaluation.class_masks import (
    GROUPS,
    class_metric,
    confusion,
    group_truth,
    likeliest_groups,
    matched_groups,
    mean_iou,
)
from teachers.classes import CAMERA_CLASSES

COUNT = len(GROUPS)


def random_truth(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, COUNT, (16, 16))


def test_no_class_is_in_two_groups_and_all_names_exist() -> None:
    names = [name for group in GROUPS.values() for name in group]
    assert len(names) == len(set(names))
    assert set(names) <= set(CAMERA_CLASSES)


def test_pixels_of_no_group_do_not_count() -> None:
    classes = np.array([[CAMERA_CLASSES.index("ROAD"), CAMERA_CLASSES.index("UNDEFINED")]])
    truth = group_truth(classes)
    assert truth.tolist() == [[list(GROUPS).index("road"), -1]]
    assert confusion(truth, np.zeros((1, 2), np.int64), 3).sum() == 1


def test_confusions_are_those_of_loops() -> None:
    truth, clusters = random_truth(0), np.random.default_rng(1).integers(0, 5, (4, 4))
    expected = np.zeros((COUNT, 5))
    for row in range(16):
        for column in range(16):
            expected[truth[row, column], clusters[row // 4, column // 4]] += 1
    assert confusion(truth, clusters, 5).tolist() == expected.tolist()


@pytest.mark.parametrize("one_to_one", [True, False])
def test_clusters_that_are_the_groups_score_one_under_any_names(one_to_one: bool) -> None:
    truth = random_truth(3)
    renamed = np.random.default_rng(0).permutation(COUNT)[truth]
    metric = class_metric(["a"], [confusion(truth, renamed, COUNT)], ["a"], one_to_one)
    assert metric.value == 1


def test_left_over_clusters_are_wrong_for_all_groups() -> None:
    # Road in two halves: one of them is left over.
    truth = np.zeros((4, 4), np.int64)
    clusters = np.repeat([[0], [1]], 2, 0) * np.ones((4, 4), np.int64)
    table = confusion(truth, clusters, 2)
    assert class_metric(["a"], [table], ["a"], True).value == 0.5
    assert class_metric(["a"], [table], ["a"], False).value == 1


def test_one_to_one_takes_the_largest_sum() -> None:
    table = np.zeros((COUNT, 2))
    table[0], table[1] = (10, 9), (9, 0)
    # Greedily the first group would take the first cluster.
    assert matched_groups(table).tolist() == [1, 0]
    assert likeliest_groups(table).tolist() == [0, 0]


def test_mean_iou_is_that_of_the_groups_that_there_are() -> None:
    table = np.zeros((COUNT, COUNT + 1))
    table[0, 0], table[0, 1], table[1, 1], table[1, COUNT] = 6, 2, 3, 1
    assert mean_iou(table) == pytest.approx((6 / 8 + 3 / 6) / 2)


def test_a_clusters_group_is_that_of_all_images_together() -> None:
    one, other = np.zeros((2, COUNT, 1))
    one[0, 0], other[1, 0] = 10, 1
    metric = class_metric(["a", "b"], [one, other], ["a", "b"], one_to_one=False)
    assert metric.sums[1][1, 0] == 1
    assert metric.value == pytest.approx((10 / 11 + 0) / 2)
