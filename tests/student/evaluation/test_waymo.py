"""Waymo's detection metric against what the official implementation computed, and its properties."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from student.evaluation.waymo import (
    LabelledBoxes,
    MatchedBoxes,
    OperatingPoints,
    ScoredBoxes,
    match_for_waymo,
    score_cutoffs,
)

TYPES = ("VEHICLE", "PEDESTRIAN", "SIGN", "CYCLIST")
OFFICIAL_NAMES = [f"OBJECT_TYPE_TYPE_{name}_LEVEL_{level}" for name in TYPES for level in (1, 2)]
BOX = (10.0, 10.0, 30.0, 20.0)


class Official(NamedTuple):
    """Input and output of the official op, of types x levels.

    average_precision: [8]
    points: [8, C, 5], precision, recall, true positives, false positives, false negatives
    """

    detections: ScoredBoxes
    labels: LabelledBoxes
    average_precision: NDArray[np.float32]
    points: NDArray[np.float32]


@pytest.fixture(scope="module", params=["student", "random"])
def official(request: pytest.FixtureRequest, real_data: Path) -> Official:
    with np.load(real_data / f"waymo_ap/{request.param}.npz") as found:
        values = {name: found[name] for name in found}
    assert values["official_name"].tolist() == OFFICIAL_NAMES
    detections = ScoredBoxes(
        image=values["prediction_frame"],
        boxes=values["prediction_box"],
        types=values["prediction_type"].astype(np.int64),
        scores=values["prediction_score"],
        distance_m=np.zeros(len(values["prediction_box"]), np.float32),
    )
    labels = LabelledBoxes(
        image=values["label_frame"],
        boxes=values["label_box"],
        types=values["label_type"].astype(np.int64),
        difficulty=values["label_difficulty"].astype(np.int8),
        distance_m=np.zeros(len(values["label_box"]), np.float32),
    )
    return Official(detections, labels, values["official_ap"], values["official_precision_recall"])


def points_of(matched: MatchedBoxes) -> list[OperatingPoints]:
    """Return the operating points in the order of OFFICIAL_NAMES."""
    return [matched.operating_points(number, level) for number in range(1, 5) for level in (1, 2)]


def test_average_precision_is_the_official_one(official: Official) -> None:
    found = [one.average_precision for one in points_of(match_for_waymo(official.detections, official.labels))]
    assert np.count_nonzero(official.average_precision) >= 6
    np.testing.assert_allclose(found, official.average_precision, rtol=0, atol=1e-6)


def test_counts_at_each_cutoff_are_the_official_ones(official: Official) -> None:
    for mine, theirs in zip(
        points_of(match_for_waymo(official.detections, official.labels)), official.points, strict=True
    ):
        counts = [mine.true_positives, mine.false_positives, mine.false_negatives]
        np.testing.assert_array_equal(np.stack(counts, 1), theirs[:, 2:])
        np.testing.assert_allclose(np.stack([mine.precision, mine.recall], 1), theirs[:, :2], rtol=0, atol=1e-6)


def test_metrics_are_named_by_level_and_type_and_the_mean_leaves_signs_out(official: Official) -> None:
    metrics = match_for_waymo(official.detections, official.labels).metrics()
    by_name = dict(zip(OFFICIAL_NAMES, official.average_precision.tolist(), strict=True))
    for level in ("LEVEL_1", "LEVEL_2"):
        ranked = {name: by_name[f"OBJECT_TYPE_TYPE_{name}_{level}"] for name in ("VEHICLE", "PEDESTRIAN", "CYCLIST")}
        for name, value in ranked.items():
            assert metrics[f"waymo/{level}/{name}"] == pytest.approx(value, abs=1e-6)
        assert metrics[f"waymo/{level}"] == pytest.approx(sum(ranked.values()) / 3, abs=1e-6)


def test_the_order_of_boxes_does_not_matter(official: Official) -> None:
    random = np.random.default_rng(0)
    detections, labels = official.detections, official.labels
    first, second = random.permutation(len(detections.boxes)), random.permutation(len(labels.boxes))
    mixed = match_for_waymo(
        ScoredBoxes(
            detections.image[first],
            detections.boxes[first],
            detections.types[first],
            detections.scores[first],
            detections.distance_m[first],
        ),
        LabelledBoxes(
            labels.image[second],
            labels.boxes[second],
            labels.types[second],
            labels.difficulty[second],
            labels.distance_m[second],
        ),
    )
    assert mixed.metrics() == match_for_waymo(detections, labels).metrics()


def boxes_at(*lefts: float) -> NDArray[np.float32]:
    """Return boxes that do not overlap, one at each multiple of their width."""
    return np.array([(BOX[0] + 100 * left, BOX[1], BOX[2] + 100 * left, BOX[3]) for left in lefts], np.float32)


def some(
    found: list[tuple[float, float, float]], there: list[tuple[float, int, float]]
) -> tuple[ScoredBoxes, LabelledBoxes]:
    """Return vehicles of one image: (place, score, distance) of detections, (place, difficulty, distance) of labels."""
    detections = ScoredBoxes(
        image=np.zeros(len(found), np.int64),
        boxes=boxes_at(*(row[0] for row in found)).reshape(-1, 4),
        types=np.ones(len(found), np.int64),
        scores=np.array([row[1] for row in found], np.float32),
        distance_m=np.array([row[2] for row in found], np.float32),
    )
    labels = LabelledBoxes(
        image=np.zeros(len(there), np.int64),
        boxes=boxes_at(*(row[0] for row in there)).reshape(-1, 4),
        types=np.ones(len(there), np.int64),
        difficulty=np.array([row[1] for row in there], np.int8),
        distance_m=np.array([row[2] for row in there], np.float32),
    )
    return detections, labels


def test_a_hard_object_that_is_missed_counts_at_level_2_alone() -> None:
    metrics = match_for_waymo(*some([(0, 0.9, 10)], [(0, 1, 10), (1, 2, 10)])).metrics()
    assert (metrics["waymo/LEVEL_1/VEHICLE"], metrics["waymo/LEVEL_2/VEHICLE"]) == pytest.approx((1.0, 0.5))


def test_an_object_without_difficulty_counts_at_both_levels() -> None:
    metrics = match_for_waymo(*some([(0, 0.9, 10)], [(0, 1, 10), (1, 0, 10)])).metrics()
    assert (metrics["waymo/LEVEL_1/VEHICLE"], metrics["waymo/LEVEL_2/VEHICLE"]) == pytest.approx((0.5, 0.5))


def test_distances_are_those_of_objects_and_of_wrong_detections_as_predicted() -> None:
    # Found at another distance than predicted; missed far away; wrong in between.
    detections, labels = some([(0, 0.9, 50), (2, 0.95, 30)], [(0, 1, 10), (1, 1, 50), (3, 1, np.nan)])
    metrics = match_for_waymo(detections, labels).metrics()
    assert metrics["waymo-ours/LEVEL_2/0-20m"] == 1
    assert metrics["waymo-ours/LEVEL_2/40m+"] == 0
    assert "waymo-ours/LEVEL_2/20-40m" not in metrics
    near = match_for_waymo(replace(detections, distance_m=np.array([50, 10], np.float32)), labels).metrics()
    assert near["waymo-ours/LEVEL_2/0-20m"] == pytest.approx(0.5)


def test_nothing_found_is_zero_and_nothing_labelled_is_no_metric() -> None:
    assert set(match_for_waymo(*some([], [(0, 1, 10)])).metrics().values()) == {0.0}
    assert match_for_waymo(*some([(0, 0.9, 10)], [])).metrics() == {}
    assert match_for_waymo(*some([], [])).metrics() == {}


@pytest.mark.parametrize("count", [101, 150, 198, 1000])
def test_cutoffs_have_equally_many_scores_between_them(count: int) -> None:
    scores = np.random.default_rng(count).permutation(np.linspace(0.1, 0.9, count, dtype=np.float32))
    cutoffs = score_cutoffs(scores)
    assert len(cutoffs) == 100
    assert (cutoffs[0], cutoffs[-1]) == (scores.min(), 1)
    between = np.histogram(scores, cutoffs)[0]
    assert {int(each) for each in between} <= {count // 99, -(-count // 99)}


def test_few_scores_are_cut_evenly() -> None:
    np.testing.assert_allclose(score_cutoffs(np.full(3, 0.5, np.float32)), np.arange(100) / 99, atol=1e-7)
