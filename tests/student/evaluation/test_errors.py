"""Errors by kind: cases by hand, and a count without tensors."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import pytest

from datalake.sample import Objects
from student.detections import CLASS_NAMES, Detections
from student.evaluation.errors import BACKGROUND, CONFUSION, LOCALIZATION, RIGHT, DetectionErrors, judged
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

# Of the same height as CAR, so that overlaps follow from how far it is moved: by 20 of 40 pixels the IoU is 1/3.
NEAR_CAR = moved(CAR, 20)


def kinds(detections: Detections, objects: Objects) -> tuple[list[int], list[bool]]:
    answer = judged(detections, objects)
    return answer.kinds.tolist(), answer.missed.tolist()


def test_a_box_beside_the_object_is_an_error_of_localization_and_the_object_not_missed() -> None:
    assert kinds(found((NEAR_CAR, VEHICLE, 0.9)), there((CAR, VEHICLE))) == ([LOCALIZATION], [False])


def test_a_second_box_of_an_object_is_an_error_of_localization() -> None:
    twice = found((CAR, VEHICLE, 0.9), (CAR, VEHICLE, 0.8))
    assert kinds(twice, there((CAR, VEHICLE), (VAN, VEHICLE))) == ([RIGHT, LOCALIZATION], [False, True])


@pytest.mark.parametrize("box", [CAR, NEAR_CAR])
def test_another_class_on_an_object_is_a_confusion_however_well_it_fits(box: Box) -> None:
    assert kinds(found((box, SIGN, 0.9)), there((CAR, VEHICLE))) == ([CONFUSION], [False])


def test_an_error_of_localization_comes_before_a_confusion() -> None:
    both = there((CAR, PEDESTRIAN), (NEAR_CAR, VEHICLE))
    assert kinds(found((CAR, VEHICLE, 0.9)), both) == ([LOCALIZATION], [False, False])


def test_far_from_every_object_there_is_background_and_the_object_is_missed() -> None:
    assert kinds(found((MAN, VEHICLE, 0.9)), there((CAR, VEHICLE))) == ([BACKGROUND], [True])


def test_without_objects_everything_is_background() -> None:
    assert kinds(found((MAN, VEHICLE, 0.9)), there()) == ([BACKGROUND], [])


def test_limits_belong_to_the_better_kind() -> None:
    # Of two squares of 10 pixels beside each other, n columns shared: IoU n / (20 - n).
    wide: Box = (0, 0, 20, 10)
    assert kinds(found(((0, 0, 10, 10), VEHICLE, 0.9)), there((wide, VEHICLE)))[0] == [RIGHT]
    assert kinds(found(((0, 0, 9.9, 10), VEHICLE, 0.9)), there((wide, VEHICLE)))[0] == [LOCALIZATION]
    assert kinds(found(((0, 0, 2, 10), VEHICLE, 0.9)), there((wide, VEHICLE)))[0] == [LOCALIZATION]
    assert kinds(found(((0, 0, 1.9, 10), VEHICLE, 0.9)), there((wide, VEHICLE)))[0] == [BACKGROUND]


def test_a_detection_takes_the_free_object_that_it_overlaps_most() -> None:
    first, second = moved(CAR, 4), moved(CAR, 6)
    both = found((CAR, VEHICLE, 0.9), (CAR, VEHICLE, 0.8))
    assert kinds(both, there((second, VEHICLE), (first, VEHICLE))) == ([RIGHT, RIGHT], [False, False])
    one = found((CAR, VEHICLE, 0.9))
    assert kinds(one, there((second, VEHICLE), (first, VEHICLE))) == ([RIGHT], [True, False])


def test_as_many_detections_are_judged_as_there_are_objects_of_their_class_in_all_images() -> None:
    errors = DetectionErrors()
    errors.add(found((CAR, VEHICLE, 0.9), (MAN, VEHICLE, 0.7), (MAN, PEDESTRIAN, 0.3)), there((CAR, VEHICLE)))
    # The last one of the vehicles is not among the two most confident, and no pedestrian is labelled.
    errors.add(found((VAN, VEHICLE, 0.5)), there((VAN, VEHICLE)))
    assert errors.metrics() == {
        f"errors/{kind}{suffix}": share
        for kind, share in (("localization", 0), ("confusion", 0), ("background", 0.5), ("missed", 0.5))
        for suffix in ("", "/VEHICLE")
    }


def test_classes_count_alike_however_many_objects_they_have() -> None:
    errors = DetectionErrors()
    errors.add(found((CAR, VEHICLE, 0.9), (VAN, VEHICLE, 0.8)), there((CAR, VEHICLE), (VAN, VEHICLE), (MAN, SIGN)))
    assert errors.metrics()["errors/missed"] == 0.5


def test_without_objects_or_images_there_is_no_metric() -> None:
    errors = DetectionErrors()
    assert errors.metrics() == {}
    errors.add(found((CAR, VEHICLE, 0.9)), there())
    assert errors.metrics() == {}


def test_a_student_that_makes_no_mistake_has_no_errors() -> None:
    errors = DetectionErrors()
    for _, objects in random_images(3, 4):
        errors.add(perfect(objects), objects)
    assert set(errors.metrics().values()) == {0.0}


@pytest.mark.parametrize("seed", range(6))
def test_random_images_are_judged_as_by_counting(seed: int) -> None:
    images = random_images(seed, 5)
    errors = DetectionErrors()
    for detections, objects in images:
        errors.add(detections, objects)
    assert errors.metrics() == pytest.approx(counted(images))


def counted(images: Sequence[tuple[Detections, Objects]]) -> dict[str, float]:
    """Return the metrics, pair by pair."""
    totals = Counter(number for _, objects in images for number in objects.classes.tolist())
    kept: dict[int, list[tuple[int, Box]]] = defaultdict(list)
    taken, touched, counts = set(), set(), Counter[tuple[str, int]]()
    ranked = sorted(
        (
            (-score, image, tuple(box), number)
            for image, (detections, _) in enumerate(images)
            for box, number, score in zip(
                detections.boxes.tolist(), detections.classes.tolist(), detections.scores.tolist(), strict=True
            )
        )
    )
    for _, image, box, number in ranked:
        if len(kept[number]) == totals[number]:
            continue
        kept[number].append((image, box))
        objects = list(zip(images[image][1].boxes.tolist(), images[image][1].classes.tolist(), strict=True))
        near = {place: value for place, (one, _) in enumerate(objects) if (value := iou(box, one)) >= 0.1}
        own = {place: value for place, value in near.items() if objects[place][1] == number}
        free = [(value, place) for place, value in own.items() if value >= 0.5 and (image, place) not in taken]
        if free:
            taken.add((image, max(free)[1]))
            continue
        counts["localization" if own else "confusion" if near else "background", number] += 1
        touched |= {(image, place) for place in near}
    for image, (_, there_are) in enumerate(images):
        for place, number in enumerate(there_are.classes.tolist()):
            counts["missed", number] += (image, place) not in taken | touched
    metrics = {}
    for kind in ("localization", "confusion", "background", "missed"):
        shares = {number: counts[kind, number] / total for number, total in totals.items()}
        metrics[f"errors/{kind}"] = sum(shares.values()) / len(shares)
        metrics |= {f"errors/{kind}/{CLASS_NAMES[number]}": share for number, share in shares.items()}
    return metrics


def iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the overlap of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)
