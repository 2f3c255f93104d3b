"""Scores become probabilities, and what is refuted becomes no label."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray

from teachers.autolabel.calibration import Calibration, calibrate, reliability, threshold_for
from teachers.autolabel.evidence import Evidence
from teachers.card import TeacherError
from tests.teachers.autolabel.evidences import evidence

# Of a detection that the lidar confirms, and of one that it refutes.
CONFIRMED, REFUTED = {"agreement": 0.9, "lidar_iou": 0.7}, {"agreement": 0.05, "lidar_iou": 0.0}


def planted(count: int, seed: int) -> list[tuple[Evidence, NDArray[np.bool_]]]:
    """Return vehicles: half are confirmed, of which as many are right as their score says; of the others none."""
    random = np.random.default_rng(seed)
    images = []
    for _ in range(count // 20):
        scores = random.uniform(0.05, 0.95, 20)
        confirmed = random.random(20) < 0.5
        rows = [
            {"mask_score": score, **(CONFIRMED if yes else REFUTED)}
            for score, yes in zip(scores, confirmed, strict=True)
        ]
        images.append((evidence(*rows), confirmed & (random.random(20) < scores)))
    return images


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    """Of planted vehicles."""
    return calibrate(planted(6000, 0), 0.8, 0.1, lidar=True)


def test_on_new_detections_scores_are_the_probabilities_that_were_planted(calibration: Calibration) -> None:
    for score in (0.2, 0.5, 0.8):
        confirmed, refuted = calibration.score(
            evidence({"mask_score": score, **CONFIRMED}, {"mask_score": score, **REFUTED})
        ).tolist()
        assert confirmed == pytest.approx(score, abs=0.07)
        assert refuted < 0.05
    images = planted(6000, 1)
    scores = np.concatenate([calibration.score(one) for one, _ in images])
    right = np.concatenate([one for _, one in images])
    for one in reliability(scores, right):
        # Three deviations of a share of so many.
        assert one.right == pytest.approx(one.mean_score, abs=0.02 + 1.5 / one.count**0.5)
    labels = np.concatenate([calibration.score(one) >= calibration.threshold(one) for one, _ in images])
    assert right[labels].mean() == pytest.approx(0.8, abs=0.04)


def test_a_detection_that_the_lidar_refutes_is_no_label_however_sure_the_mask_teacher_is(
    calibration: Calibration,
) -> None:
    both = evidence({"mask_score": 0.95, **CONFIRMED}, {"mask_score": 0.95, **REFUTED})
    assert (calibration.score(both) >= calibration.threshold(both)).tolist() == [True, False]
    assert calibration.score(both)[1] < calibration.background


def test_without_lidar_a_score_is_the_mask_teachers_and_no_agreement_is_counted(calibration: Calibration) -> None:
    # Half of the vehicles are refuted: the mask teacher alone is right half as often as it says.
    without = evidence({"mask_score": 0.8}, lidar=False)
    assert calibration.score(without).tolist() == pytest.approx([0.4], abs=0.07)
    # None of them is as often right as asked for.
    assert calibration.threshold(without).tolist() == [np.inf]
    # What the evidence may hold is not looked at.
    told = evidence({"mask_score": 0.8, "agreement": 1.0}, lidar=False)
    assert calibration.score(told).tolist() == calibration.score(without).tolist()


def test_without_a_lidar_teacher_there_is_a_mask_only_calibration() -> None:
    alone = calibrate(planted(2000, 0), 0.4, 0.1, lidar=False)
    assert alone.types["VEHICLE"].both is None
    one, other = evidence(CONFIRMED), evidence(REFUTED)
    assert alone.score(one).tolist() == alone.score(other).tolist()
    assert alone.threshold(one)[0] < 1


def test_frames_without_lidar_do_not_teach_what_agreement_means() -> None:
    images = planted(2000, 0)
    dark = [(evidence(*({"mask_score": 0.9},) * 20, lidar=False), np.zeros(20, bool))] * 50
    found, expected = (calibrate(some, 0.8, 0.1, lidar=True).types["VEHICLE"] for some in ([*images, *dark], images))
    assert found.both == expected.both
    assert found.both_threshold == expected.both_threshold
    assert found.alone != expected.alone


def test_a_type_with_few_detections_is_not_calibrated(calibration: Calibration) -> None:
    assert list(calibration.types) == ["VEHICLE"]
    pedestrian = evidence({"types": 2})
    assert np.isnan(calibration.score(pedestrian)).all()
    assert calibration.threshold(pedestrian).tolist() == [np.inf]


@pytest.mark.parametrize(
    ("scores", "right", "precision", "expected"),
    [
        ([0.9, 0.8, 0.7, 0.6], [1, 1, 0, 0], 1.0, 0.8),
        ([0.6, 0.9, 0.7, 0.8], [0, 1, 0, 1], 0.6, 0.7),
        # A precision that is lost and reached again further down.
        ([0.9, 0.8, 0.7, 0.6], [0, 1, 1, 1], 0.75, 0.6),
        # Equal scores are taken together.
        ([0.9, 0.8, 0.8, 0.7], [1, 1, 0, 0], 0.9, 0.9),
        ([0.9, 0.8], [0, 0], 0.5, None),
        ([], [], 0.5, None),
    ],
    ids=["perfect", "unordered", "regained", "ties", "never", "nothing"],
)
def test_the_threshold_is_the_lowest_with_the_precision(
    scores: list[float], right: list[int], precision: float, expected: float | None
) -> None:
    # Ten detections of each.
    assert threshold_for(np.repeat(scores, 10), np.repeat(np.array(right, bool), 10), precision) == expected


def test_of_few_detections_there_is_no_threshold() -> None:
    assert threshold_for(np.linspace(0.9, 0.8, 9), np.ones(9, bool), 0.8) is None
    assert threshold_for(np.linspace(0.9, 0.8, 10), np.ones(10, bool), 0.8) == 0.8


def test_a_calibration_survives_json(calibration: Calibration) -> None:
    again = Calibration.from_plain(json.loads(json.dumps(calibration.to_plain())))
    assert again == calibration
    with pytest.raises(TeacherError, match="not the calibration of auto-labels"):
        Calibration.from_plain({"types": {"VEHICLE": {"alone": None}}})
