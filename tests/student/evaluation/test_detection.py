"""Average precision, by hand, by its properties and against a plain implementation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datalake.sample import Objects
from student.detections import Detections
from student.evaluation.detection import DetectionScores, PrecisionRecall
from tests.student.evaluation.images import (
    CAR,
    MAN,
    PEDESTRIAN,
    SIGN,
    VAN,
    VEHICLE,
    Box,
    found,
    moved,
    perfect,
    random_images,
    there,
)

SMALL: Box = (0, 0, 20, 5)  # 10 pixels
MEDIUM: Box = (0, 100, 40, 110)  # 20 pixels
LARGE: Box = (100, 100, 200, 150)  # 71 pixels

# COCO keeps precision finite by adding the smallest number to what it divides by.
ONE = pytest.approx(1, abs=1e-12)


def scores_of(images: Sequence[tuple[Detections, Objects]]) -> DetectionScores:
    scores = DetectionScores()
    for image in images:
        scores.add(*image)
    return scores


def metrics(*images: tuple[Detections, Objects]) -> dict[str, float]:
    return scores_of(images).metrics()


def at_recalls(*steps: tuple[float, float]) -> float:
    """Return COCO's area: precision up to each recall, from (recall, precision) in rising order."""
    return float(np.mean([next((p for last, p in steps if r <= last + 1e-9), 0.0) for r in np.linspace(0, 1, 101)]))


def test_perfect_detections_of_one_object_have_every_figure_at_one() -> None:
    result = metrics((found((CAR, VEHICLE, 0.3, 25.0)), there((CAR, VEHICLE, 30.0))))
    assert result == pytest.approx(
        dict.fromkeys(
            ("AP", "AP/VEHICLE", "AP50", "AP50/VEHICLE", "AP75", "AP50/medium", "AP50/>16px", "AP50/20-40m",
             "waymo/LEVEL_1", "waymo/LEVEL_1/VEHICLE", "waymo/LEVEL_2", "waymo/LEVEL_2/VEHICLE",
             "waymo-ours/LEVEL_1/20-40m", "waymo-ours/LEVEL_2/20-40m"),
            1.0,
        )
    )  # fmt: skip


def test_nothing_found_is_zero_and_nothing_to_find_is_no_figure() -> None:
    assert metrics((found(), there((CAR, VEHICLE))))["AP"] == 0
    assert metrics((found((CAR, VEHICLE, 0.9)), there())) == {}
    assert metrics((found(), there())) == {}
    assert metrics() == {}


def test_the_curve_is_that_of_the_text_book() -> None:
    # Right, wrong, right of three: precision 1 up to recall 1/3, then 2/3 up to 2/3, then nothing.
    detections = found((CAR, VEHICLE, 0.9), (moved(CAR, 80), VEHICLE, 0.8), (VAN, VEHICLE, 0.7))
    objects = there((CAR, VEHICLE), (VAN, VEHICLE), (MAN, VEHICLE))
    assert metrics((detections, objects))["AP50"] == pytest.approx(at_recalls((1 / 3, 1), (2 / 3, 2 / 3)))


def test_a_second_detection_of_the_same_object_is_wrong() -> None:
    detections = found((CAR, VEHICLE, 0.9), (moved(CAR, 1), VEHICLE, 0.8), (VAN, VEHICLE, 0.7))
    result = metrics((detections, there((CAR, VEHICLE), (VAN, VEHICLE))))
    assert result["AP50"] == pytest.approx(at_recalls((1 / 2, 1), (1, 2 / 3)))


def test_another_class_is_wrong_and_classes_without_objects_do_not_count() -> None:
    result = metrics((found((CAR, PEDESTRIAN, 0.9), (MAN, SIGN, 0.4)), there((CAR, VEHICLE), (MAN, SIGN))))
    assert {name: value for name, value in result.items() if name.startswith("AP50")} == pytest.approx(
        {"AP50": 0.5, "AP50/VEHICLE": 0, "AP50/SIGN": 1, "AP50/medium": 0.5, "AP50/>16px": 0.5}
    )


def test_detections_are_ranked_over_all_images() -> None:
    result = metrics(
        (found((CAR, VEHICLE, 0.6)), there((CAR, VEHICLE))), (found((MAN, VEHICLE, 0.9)), there((VAN, VEHICLE)))
    )
    assert result["AP50"] == pytest.approx(at_recalls((1 / 2, 1 / 2)))


def test_objects_of_another_image_are_not_found() -> None:
    result = metrics((found((CAR, VEHICLE, 0.6)), there()), (found(), there((CAR, VEHICLE))))
    assert result["AP50"] == 0


def test_overlap_decides_which_thresholds_are_passed() -> None:
    # 40 pixels wide, 8 too far right: 32 / 48 = 0.667 in common, enough at 0.50 … 0.65.
    expected = {"AP": 0.4, "AP50": 1, "AP75": 0, "waymo/LEVEL_2/VEHICLE": 0, "waymo/LEVEL_2/PEDESTRIAN": 1}
    detections = found((moved(CAR, 8), VEHICLE, 0.9), (moved(CAR, 8), PEDESTRIAN, 0.9))
    result = metrics((detections, there((CAR, VEHICLE), (CAR, PEDESTRIAN))))
    assert {name: result[name] for name in expected} == pytest.approx(expected)


def test_at_75_and_at_waymo_70() -> None:
    # 40 pixels wide, 6 too far right: 34 / 46 = 0.739.
    result = metrics((found((moved(CAR, 6), VEHICLE, 0.9)), there((CAR, VEHICLE))))
    assert (result["waymo/LEVEL_2/VEHICLE"], result["AP75"]) == pytest.approx((1, 0))
    # 5 too far: 35 / 45 = 0.778.
    result = metrics((found((moved(CAR, 5), VEHICLE, 0.9)), there((CAR, VEHICLE))))
    assert result["AP75"] == ONE


def test_waymos_levels_are_those_of_the_labels() -> None:
    objects = there((CAR, VEHICLE, 10.0), (VAN, VEHICLE, 30.0))
    detections = found((CAR, VEHICLE, 0.9))
    result = metrics((detections, replace(objects, difficulty=torch.tensor([1, 2], dtype=torch.int8))))
    assert (result["waymo/LEVEL_1"], result["waymo/LEVEL_2"]) == (1, 0.5)
    unknown = metrics((detections, objects))
    assert (unknown["waymo/LEVEL_1"], unknown["waymo/LEVEL_2"]) == (0.5, 0.5)


def test_waymos_matching_is_not_greedy() -> None:
    # The more confident one overlaps with both; only if it leaves the car to the other one are both found.
    detections = found((moved(CAR, 6), PEDESTRIAN, 0.9), (moved(CAR, -4), PEDESTRIAN, 0.8))
    objects = there((CAR, PEDESTRIAN), (moved(CAR, 16), PEDESTRIAN))
    result = metrics((detections, objects))
    assert result["waymo/LEVEL_2/PEDESTRIAN"] == 1
    assert result["AP50/PEDESTRIAN"] < 0.6


def test_sizes_are_told_apart_by_the_root_of_the_area() -> None:
    objects = there((SMALL, VEHICLE), (MEDIUM, VEHICLE), (LARGE, VEHICLE))
    result = metrics((found((MEDIUM, VEHICLE, 0.9), (SMALL, VEHICLE, 0.8)), objects))
    assert (result["AP50/small"], result["AP50/medium"], result["AP50/large"]) == pytest.approx((1, 1, 0))
    # The small one's detection is ignored here, not wrong.
    assert result["AP50/>16px"] == pytest.approx(at_recalls((1 / 2, 1)))


def test_a_ghost_is_wrong_in_the_range_of_its_own_size() -> None:
    objects = there((SMALL, VEHICLE), (LARGE, VEHICLE))
    detections = found((moved(SMALL, 300), VEHICLE, 0.9), (SMALL, VEHICLE, 0.8), (LARGE, VEHICLE, 0.7))
    result = metrics((detections, objects))
    assert (result["AP50/small"], result["AP50/large"], result["AP50/>16px"]) == pytest.approx((0.5, 1, 1))


def test_a_ghost_is_wrong_at_the_distance_that_it_predicts() -> None:
    objects = there((CAR, VEHICLE, 10.0), (VAN, VEHICLE, 30.0))
    detections = found((MAN, VEHICLE, 0.9, 30.0), (CAR, VEHICLE, 0.8, 10.0), (VAN, VEHICLE, 0.7, 30.0))
    result = metrics((detections, objects))
    assert (result["AP50/0-20m"], result["AP50/20-40m"]) == pytest.approx((1, 0.5))
    assert "AP50/40m+" not in result


def test_a_right_detection_counts_at_the_true_distance_whatever_it_predicts() -> None:
    result = metrics((found((CAR, VEHICLE, 0.8, 70.0)), there((CAR, VEHICLE, 10.0), (VAN, VEHICLE, 50.0))))
    assert (result["AP50/0-20m"], result["AP50/40m+"]) == pytest.approx((1, 0))


def test_objects_without_distance_are_ignored_in_the_ranges_of_distances() -> None:
    detections = found((VAN, VEHICLE, 0.9, 10.0), (CAR, VEHICLE, 0.8, 10.0))
    result = metrics((detections, there((CAR, VEHICLE, 10.0), (VAN, VEHICLE, math.nan))))
    # Neither is the one that was found wrong ...
    assert result["AP50/0-20m"] == ONE
    # ... nor is the one that was not found missed.
    only = found((CAR, VEHICLE, 0.8, 10.0))
    assert metrics((only, there((CAR, VEHICLE, 10.0), (VAN, VEHICLE))))["AP50/0-20m"] == ONE
    assert not [name for name in metrics((detections, there((VAN, VEHICLE)))) if "0m" in name]


def test_only_the_hundred_best_of_a_image_count() -> None:
    ghosts = [(moved(MAN, -2 * number), VEHICLE, 0.9) for number in range(100)]
    assert metrics((found(*ghosts, (CAR, VEHICLE, 0.5)), there((CAR, VEHICLE))))["AP50"] == 0
    assert metrics((found(*ghosts[1:], (CAR, VEHICLE, 0.5)), there((CAR, VEHICLE))))["AP50"] == pytest.approx(0.01)


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=20)
def test_perfect_detections_have_ap_one(seed: int) -> None:
    images = [(perfect(objects), objects) for _, objects in random_images(seed, 3)]
    result = metrics(*images)
    assert result == dict.fromkeys(result, ONE)


@given(st.permutations(range(4)), st.integers(0, 10_000))
@settings(deadline=None, max_examples=20)
def test_the_order_of_images_and_of_detections_does_not_matter(order: list[int], seed: int) -> None:
    images = random_images(seed, 4)
    shuffled = []
    for number in order:
        was, objects = images[number]
        mixed = torch.randperm(len(was.boxes), generator=torch.Generator().manual_seed(seed))
        now = Detections(was.boxes[mixed], was.classes[mixed], was.scores[mixed], was.depth_m[mixed])
        shuffled.append((now, objects))
    assert metrics(*shuffled) == pytest.approx(metrics(*images))


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=20)
def test_a_image_without_objects_can_only_lower_metrics(seed: int) -> None:
    images = random_images(seed, 3)
    (ghosts, _) = random_images(seed + 1, 1)[0]
    before, after = metrics(*images), metrics(*images, (ghosts, there()))
    assert before.keys() == after.keys()
    assert all(after[name] <= before[name] + 1e-12 for name in before)
    assert metrics(*images, (found(), there())) == before


def plain_ap50(images: Sequence[tuple[Detections, Objects]], number: int) -> float:
    """Return the exact area under the curve of one class, in plain Python."""
    hits: list[tuple[float, bool]] = []
    count = 0
    for detections, objects in images:
        free = [box for box, own in zip(objects.boxes.tolist(), objects.classes.tolist(), strict=True) if own == number]
        count += len(free)
        rows = zip(detections.scores.tolist(), detections.boxes.tolist(), detections.classes.tolist(), strict=True)
        for score, box, own in sorted(rows, reverse=True):
            if own != number:
                continue
            overlaps = [overlap(box, other) for other in free]
            hit = bool(overlaps) and max(overlaps) >= 0.5
            if hit:
                free.pop(overlaps.index(max(overlaps)))
            hits.append((score, hit))
    right, area = 0, 0.0
    precisions = []
    for place, (_, hit) in enumerate(sorted(hits, reverse=True), start=1):
        right += hit
        precisions.append((hit, right / place))
    for place, (hit, _) in enumerate(precisions):
        area += hit * max(precision for _, precision in precisions[place:])
    return area / count


def overlap(first: list[float], other: list[float]) -> float:
    width = min(first[2], other[2]) - max(first[0], other[0])
    height = min(first[3], other[3]) - max(first[1], other[1])
    if width <= 0 or height <= 0:
        return 0
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (first, other)]
    return width * height / (sum(areas) - width * height)


@pytest.mark.parametrize("seed", range(4))
def test_ap50_is_that_of_a_plain_implementation(seed: int) -> None:
    images = random_images(seed, 30)
    result = metrics(*images)
    for number, name in enumerate(("VEHICLE", "PEDESTRIAN", "SIGN", "CYCLIST"), start=1):
        expected = plain_ap50(images, number)
        assert 0.2 < expected < 0.9, "an example that tells nothing"
        assert result[f"AP50/{name}"] == pytest.approx(expected, abs=0.01)


def test_means_are_over_the_classes() -> None:
    result = metrics(*random_images(0, 10))
    for name in ("AP", "AP50"):
        of_classes = [result[f"{name}/{label}"] for label in ("VEHICLE", "PEDESTRIAN", "SIGN", "CYCLIST")]
        assert result[name] == pytest.approx(sum(of_classes) / 4)


def curve(curves: tuple[PrecisionRecall, ...], name: str) -> PrecisionRecall:
    return next(each for each in curves if each.class_name == name)


def test_curves_are_those_whose_area_is_the_figure() -> None:
    scores = scores_of(random_images(3, 10))
    curves, result = scores.curves(), scores.metrics()
    assert [each.class_name for each in curves] == ["VEHICLE", "PEDESTRIAN", "SIGN", "CYCLIST"]
    for each in curves:
        assert each.recall.shape == each.precision.shape == each.scores.shape == (101,)
        assert each.precision.mean() == pytest.approx(result[f"AP50/{each.class_name}"])
        assert (np.diff(each.precision) <= 0).all()


def test_a_curve_tells_the_score_of_each_recall() -> None:
    detections = found((CAR, VEHICLE, 0.75), (MAN, VEHICLE, 0.5))
    objects = there((CAR, VEHICLE), (VAN, VEHICLE), (MAN, SIGN))
    curves = scores_of([(detections, objects)]).curves()
    assert [each.class_name for each in curves] == ["VEHICLE", "SIGN"]
    vehicle = curve(curves, "VEHICLE")
    reached = vehicle.recall <= 0.5
    np.testing.assert_allclose(vehicle.precision, reached)
    assert (vehicle.scores == 0.75 * reached).all()
    assert not curve(curves, "SIGN").precision.any()


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    scores = scores_of(random_images(0, 2))
    scores.metrics()
    scores.curves()
    assert capfd.readouterr() == ("", "")


def test_images_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="classes of detections"):
        DetectionScores().add(found((CAR, 0, 0.5)), there())
    with pytest.raises(ValueError, match="classes of objects"):
        DetectionScores().add(found(), there((CAR, 7)))
