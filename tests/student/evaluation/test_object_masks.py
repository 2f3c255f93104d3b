"""Pieces of images against labelled objects, by hand and by loops."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch

from datalake.sample import Panoptic
from student.evaluation.object_masks import (
    ObjectTruth,
    cell_ids,
    components,
    enlarged,
    fewest_cells,
    least_at_the_border,
    nearest_the_center,
    object_scores,
    object_truth,
    overlaps,
    second_most_cells,
    tiles,
    union_scores,
)

CAR, PEDESTRIAN, ROAD, BICYCLE = 2, 9, 20, 6


def truth_of(ids: np.ndarray) -> ObjectTruth:
    return ObjectTruth(ids, np.ones(int(ids.max()), np.int64))


def test_objects_are_instances_of_vehicles_and_people_that_are_large_enough() -> None:
    semantic, instance = torch.full((40, 40), ROAD, dtype=torch.uint8), torch.zeros(40, 40, dtype=torch.int32)
    semantic[:10, :10], instance[:10, :10] = CAR, 1
    semantic[10:13, :40], instance[10:13, :40] = CAR, 2
    # Ninety pixels are too few.
    semantic[20:29, :10], instance[20:29, :10] = PEDESTRIAN, 1
    semantic[30:40, 5:15], instance[30:40, 5:15] = BICYCLE, 1
    found = object_truth(Panoptic(semantic, instance), 100)
    assert found.count == 3
    assert found.heights.tolist() == [10, 3, 10]
    assert [int((found.ids == number).sum()) for number in range(4)] == [1600 - 100 - 120 - 100, 100, 120, 100]
    assert found.ids[25, 5] == 0


def test_each_pixel_has_the_label_of_its_cell() -> None:
    assert enlarged(np.array([[1, 2], [3, 4]]), (4, 6)).tolist() == [[1] * 3 + [2] * 3] * 2 + [[3] * 3 + [4] * 3] * 2
    # Sides that do not divide: the cell that the pixel's center lies in.
    assert enlarged(np.array([[0, 1, 2]]), (1, 4)).tolist() == [[0, 1, 1, 2]]


def test_parts_are_those_of_a_flood() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        labels = random.integers(0, 3, (9, 12))
        expected, number = np.full(labels.shape, -1), 0
        for row in range(9):
            for column in range(12):
                if expected[row, column] >= 0:
                    continue
                stack = [(row, column)]
                while stack:
                    r, c = stack.pop()
                    if expected[r, c] >= 0 or labels[r, c] != labels[row, column]:
                        continue
                    expected[r, c] = number
                    around = ((r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1))
                    stack += [(a, b) for a, b in around if 0 <= a < 9 and 0 <= b < 12]
                number += 1
        assert components(labels, 1).tolist() == expected.tolist()


def test_small_parts_are_no_pieces_and_the_others_are_numbered_without_gaps() -> None:
    labels = np.zeros((4, 6), np.int64)
    labels[0, 2] = labels[2:, 4:] = 1
    found = components(labels, 4)
    assert found[0, 2] == -1
    assert sorted(set(found.ravel().tolist())) == [-1, 0, 1]


def test_overlaps_are_those_of_sets() -> None:
    random = np.random.default_rng(1)
    truth, pieces = random.integers(0, 4, (8, 8)), random.integers(-1, 3, (8, 8))
    found = overlaps(truth, 4, pieces)
    for t in range(4):
        for p in range(3):
            one, other = (truth == t), (pieces == p)
            assert found[t, p] == pytest.approx((one & other).sum() / (one | other).sum())


def test_the_matching_has_the_largest_sum_of_all() -> None:
    random = np.random.default_rng(2)
    for _ in range(30):
        objects, count = int(random.integers(1, 5)), int(random.integers(1, 6))
        truth, pieces = random.integers(0, objects + 1, (6, 7)), random.integers(0, count, (6, 7))
        truth.flat[: objects + 1] = range(objects + 1)
        pieces.flat[:count] = range(count)
        iou = np.array([[((truth == t) & (pieces == p)).sum() / ((truth == t) | (pieces == p)).sum()
                         for p in range(count)] for t in range(objects + 1)])  # fmt: skip
        padded = np.zeros((objects + 1, objects + 1 + count))
        padded[:, :count] = iou
        best = max(
            sum(padded[t, p] for t, p in enumerate(chosen))
            for chosen in permutations(range(padded.shape[1]), objects + 1)
        )
        scores = object_scores(truth_of(truth), pieces)
        rest = max(best - scores.matched.sum(), 0)
        # What is left of the sum is the rest's own.
        assert any(rest == pytest.approx(value, abs=1e-9) for value in [*iou[0], 0.0])
        assert scores.best == pytest.approx(iou[1:].max(1))
        assert (scores.matched <= scores.best + 1e-12).all()


def test_perfect_pieces_score_one_in_any_order() -> None:
    ids = np.zeros((8, 8), np.int64)
    ids[:4, :4], ids[5:, 2:] = 1, 2
    for order in ([0, 1, 2], [2, 0, 1]):
        found = object_scores(truth_of(ids), np.array(order)[ids])
        assert found.matched.tolist() == found.best.tolist() == [1, 1]


def test_one_piece_for_two_objects_is_matched_with_one() -> None:
    ids = np.array([[1, 1, 2, 2, 0, 0, 0, 0]])
    found = object_scores(truth_of(ids), np.array([[0, 0, 0, 0, 1, 1, 1, 1]]))
    assert sorted(found.matched.tolist()) == [0, 0.5]
    assert found.best.tolist() == [0.5, 0.5]


def test_the_rest_takes_the_piece_that_is_its_own() -> None:
    # Without it the object would be matched with the background's only piece.
    ids = np.zeros((10, 10), np.int64)
    ids[:1] = 1
    assert object_scores(truth_of(ids), np.zeros((10, 10), np.int64)).matched.tolist() == [0]


def test_equal_tiles_have_the_iou_of_their_areas() -> None:
    # One object is exactly one of eight tiles of 2 x 4, another half of one.
    ids = np.zeros((8, 16), np.int64)
    ids[:4, :4], ids[4:, 4:6] = 1, 2
    found = object_scores(truth_of(ids), tiles((8, 16), 8))
    assert found.matched.tolist() == [1, 0.5]


def test_tiles_are_as_many_and_as_large_as_asked() -> None:
    for count in (1, 2, 3, 8, 12, 24):
        assert np.bincount(tiles((24, 48), count).ravel()).tolist() == [24 * 48 // count] * count


def test_union_scores_are_those_of_all_objects_as_one() -> None:
    ids = np.array([[1, 2, 0, 0]])
    assert union_scores(truth_of(ids), np.array([[0, 0, 0, 1]])).tolist() == [2 / 3, 0]


def test_cells_have_the_most_frequent_id_of_their_pixels() -> None:
    ids = np.array([[1, 1, 0, 2], [1, 0, 2, 0]])
    assert cell_ids(ids, (1, 2)).tolist() == [[1, 0]]


def test_rules_name_clusters_by_size_and_place() -> None:
    clusters = np.full((9, 9), 3)
    clusters[0] = 1
    clusters[3:6, 3:6] = 0
    clusters[7:, :6] = 2
    # Cells: 9, 9, 12, the rest; cluster 0 touches no border.
    assert fewest_cells(clusters) == 0
    assert second_most_cells(clusters) == 2
    assert least_at_the_border(clusters) == nearest_the_center(clusters) == 0


def test_rules_never_name_a_cluster_that_is_not_there() -> None:
    clusters = np.full((5, 5), 4)
    clusters[1:3] = 2
    for rule in (fewest_cells, second_most_cells, least_at_the_border, nearest_the_center):
        assert rule(clusters) in (2, 4)
