"""Errors of distances, by hand and by their properties."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datalake.sample import Objects
from student.detections import Detections
from student.evaluation.depth import DepthScores
from tests.student.evaluation.images import (
    CAR,
    MAN,
    PEDESTRIAN,
    VAN,
    VEHICLE,
    found,
    moved,
    perfect,
    random_images,
    there,
)

BIKE = (10.0, 200.0, 50.0, 210.0)


def scores_of(*images: tuple[Detections, Objects]) -> DepthScores:
    scores = DepthScores()
    for image in images:
        scores.add(*image)
    return scores


def pairs(*images: tuple[Detections, Objects]) -> list[tuple[float, float]]:
    true, predicted = scores_of(*images).pairs
    return list(zip(true.tolist(), predicted.tolist(), strict=True))


OBJECTS = there((CAR, VEHICLE, 10.0), (VAN, VEHICLE, 20.0), (MAN, PEDESTRIAN, 50.0), (BIKE, VEHICLE, 60.0))


def test_metrics_by_hand() -> None:
    detections = found((CAR, VEHICLE, 0.7, 11.0), (VAN, VEHICLE, 0.9, 30.0), (MAN, PEDESTRIAN, 0.8, 40.0))
    assert scores_of((detections, OBJECTS)).metrics() == pytest.approx(
        {
            "depth/matched": 3,
            "depth/recall": 3 / 4,
            "depth/AbsRel": (0.1 + 0.5 + 0.2) / 3,
            "depth/RMSE": math.sqrt((1 + 100 + 100) / 3),
            # 50 / 40 is 1.25, which is not below.
            "depth/delta1": 1 / 3,
            "depth/AbsRel/0-20m": 0.1,
            "depth/AbsRel/20-40m": 0.5,
            "depth/AbsRel/40m+": 0.2,
            # By confidence: the van, the man, the car.
            "depth/AbsRel@recall25": 0.5,
            "depth/AbsRel@recall50": (0.5 + 0.2) / 2,
            # 1 / 10 weighs more than 1 / 20 and 1 / 50 together.
            "depth/AbsRel/constant": (0 + 10 / 20 + 40 / 50) / 3,
        },
        rel=1e-6,
    )


def test_errors_belong_to_the_true_distance() -> None:
    metrics = scores_of((found((CAR, VEHICLE, 0.7, 45.0)), there((CAR, VEHICLE, 15.0)))).metrics()
    assert {name for name in metrics if name.endswith(("0m", "m+"))} == {"depth/AbsRel/0-20m"}


def test_equal_recall_is_left_out_where_it_is_not_reached() -> None:
    one = scores_of((found((CAR, VEHICLE, 0.7, 11.0)), OBJECTS)).metrics()
    assert one["depth/AbsRel@recall25"] == pytest.approx(0.1)
    assert "depth/AbsRel@recall50" not in one


def test_half_of_an_odd_number_is_rounded_up() -> None:
    objects = there((CAR, VEHICLE, 10.0), (VAN, VEHICLE, 20.0), (MAN, PEDESTRIAN, 50.0))
    one = found((CAR, VEHICLE, 0.7, 11.0))
    assert "depth/AbsRel@recall50" not in scores_of((one, objects)).metrics()
    two = found((CAR, VEHICLE, 0.7, 11.0), (VAN, VEHICLE, 0.6, 24.0))
    assert scores_of((two, objects)).metrics()["depth/AbsRel@recall50"] == pytest.approx(0.15)


def test_the_most_confident_are_chosen_over_all_images() -> None:
    first = found((CAR, VEHICLE, 0.6, 11.0)), there((CAR, VEHICLE, 10.0))
    second = found((VAN, VEHICLE, 0.8, 30.0)), there((VAN, VEHICLE, 20.0))
    assert scores_of(first, second).metrics()["depth/AbsRel@recall50"] == pytest.approx(0.5)


def test_an_object_is_taken_once_and_by_the_most_confident() -> None:
    detections = found((moved(CAR, 1), VEHICLE, 0.5, 12.0), (CAR, VEHICLE, 0.4, 10.0))
    assert pairs((detections, there((CAR, VEHICLE, 10.0)))) == [(10, 12)]


def test_a_detection_takes_one_object_and_the_one_it_overlaps_best() -> None:
    objects = there((moved(CAR, 5), VEHICLE, 30.0), (moved(CAR, 2), VEHICLE, 20.0))
    assert pairs((found((CAR, VEHICLE, 0.5, 12.0)), objects)) == [(20, 12)]


def test_a_taken_object_leaves_the_next_best() -> None:
    objects = there((CAR, VEHICLE, 30.0), (moved(CAR, 4), VEHICLE, 20.0))
    detections = found((CAR, VEHICLE, 0.9, 31.0), (moved(CAR, 1), VEHICLE, 0.8, 21.0))
    assert pairs((detections, objects)) == [(30, 31), (20, 21)]


def test_detections_of_another_class_or_place_are_not_right() -> None:
    detections = found((CAR, PEDESTRIAN, 0.9, 10.0), (moved(CAR, 20), VEHICLE, 0.8, 10.0), (VAN, VEHICLE, 0.7, 10.0))
    metrics = scores_of((detections, there((CAR, VEHICLE, 10.0)))).metrics()
    assert metrics == {"depth/matched": 0, "depth/recall": 0}


def test_half_overlap_is_enough() -> None:
    box = (0.0, 0.0, 20.0, 20.0)
    assert pairs((found(((0, 0, 20, 40), VEHICLE, 0.9, 9.0)), there((box, VEHICLE, 8.0)))) == [(8, 9)]
    assert pairs((found(((0, 0, 20, 41), VEHICLE, 0.9, 9.0)), there((box, VEHICLE, 8.0)))) == []


@pytest.mark.parametrize("depth", [math.nan, 75.1])
def test_objects_without_distance_or_beyond_the_farthest_take_no_part(depth: float) -> None:
    objects = there((CAR, VEHICLE, depth), (VAN, VEHICLE, 20.0))
    metrics = scores_of((found((CAR, VEHICLE, 0.9, 10.0), (VAN, VEHICLE, 0.8, 20.0)), objects)).metrics()
    assert metrics["depth/matched"] == metrics["depth/recall"] == metrics["depth/delta1"] == 1
    assert metrics["depth/AbsRel"] == 0


def test_what_shows_an_object_without_distance_does_not_take_its_neighbor() -> None:
    objects = there((CAR, VEHICLE, math.nan), (moved(CAR, 8), VEHICLE, 20.0))
    assert pairs((found((CAR, VEHICLE, 0.9, 10.0)), objects)) == []


def test_the_farthest_distance_itself_counts() -> None:
    scores = DepthScores(max_depth_m=30)
    scores.add(
        found((CAR, VEHICLE, 0.9, 33.0), (VAN, VEHICLE, 0.8, 1.0)), there((CAR, VEHICLE, 30.0), (VAN, VEHICLE, 31.0))
    )
    assert scores.pairs[0].tolist() == [30]
    assert scores.metrics()["depth/AbsRel"] == pytest.approx(0.1)


def test_without_known_distances_there_are_no_metrics() -> None:
    assert scores_of().metrics() == {}
    assert scores_of((found((CAR, VEHICLE, 0.9)), there((CAR, VEHICLE)))).metrics() == {}
    assert pairs() == []


def test_a_predicted_distance_of_zero_is_an_error_of_one() -> None:
    metrics = scores_of((found((CAR, VEHICLE, 0.9, 0.0)), there((CAR, VEHICLE, 10.0)))).metrics()
    assert (metrics["depth/AbsRel"], metrics["depth/delta1"]) == (1, 0)


def test_pairs_are_single_precision_arrays() -> None:
    for values in scores_of((found((CAR, VEHICLE, 0.7, 11.0)), OBJECTS)).pairs:
        assert values.dtype == np.float32
        assert values.shape == (1,)


def constant_error(constant: float, true: Sequence[float]) -> float:
    return float(np.mean([abs(constant - value) / value for value in true]))


@given(st.lists(st.integers(1, 75), min_size=1, max_size=12))
@settings(deadline=None, max_examples=100)
def test_no_constant_is_better_than_the_best(true: list[int]) -> None:
    scores = DepthScores()
    for depth in true:
        scores.add(found((CAR, VEHICLE, 0.5, 1.0)), there((CAR, VEHICLE, float(depth))))
    best = scores.metrics()["depth/AbsRel/constant"]
    tried = [constant_error(constant, true) for constant in np.linspace(0.5, 76, 152)]
    # The error's minimum lies at one of the distances, and these are all among the constants.
    assert best == pytest.approx(min(tried))


@given(st.integers(0, 10_000), st.permutations(range(4)))
@settings(deadline=None, max_examples=30)
def test_the_order_of_images_does_not_matter(seed: int, order: list[int]) -> None:
    images = random_images(seed, 4)
    assert scores_of(*(images[number] for number in order)).metrics() == pytest.approx(scores_of(*images).metrics())


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=30)
def test_perfect_distances_have_no_error(seed: int) -> None:
    scores = scores_of(*((perfect(objects), objects) for _, objects in random_images(seed, 3)))
    metrics = scores.metrics()
    if not metrics:
        assert all(bool(objects.depth_m.isnan().all()) for _, objects in random_images(seed, 3))
        return
    assert metrics["depth/recall"] == metrics["depth/delta1"] == 1
    assert metrics["depth/RMSE"] == metrics["depth/AbsRel"] == metrics["depth/AbsRel@recall50"] == 0


def test_detections_need_not_be_sorted() -> None:
    detections = found((CAR, VEHICLE, 0.4, 10.0), (moved(CAR, 1), VEHICLE, 0.5, 12.0))
    assert pairs((detections, there((CAR, VEHICLE, 10.0)))) == [(10, 12)]


def test_images_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="classes of detections"):
        DepthScores().add(found((CAR, 0, 0.5)), there())
    bad = Objects(torch.zeros(1, 4), torch.ones(1, dtype=torch.int64), torch.ones(2))
    with pytest.raises(ValueError, match="depth_m of objects"):
        DepthScores().add(found(), bad)
