"""Average precision, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from teachers.mask_rcnn.average_precision import AveragePrecision

NAMES = ("BACKGROUND", "VEHICLE", "PEDESTRIAN")


def bars(*spans: tuple[int, int]) -> Tensor:
    """Return masks [N, 1, 100] that cover columns from … to."""
    masks = torch.zeros(len(spans), 1, 100, dtype=torch.bool)
    for mask, (first, last) in zip(masks, spans, strict=True):
        mask[0, first:last] = True
    return masks


def metrics(*images: tuple[list[float], list[int], Tensor, list[int], Tensor]) -> dict[str, float]:
    precision = AveragePrecision(NAMES)
    for scores, labels, masks, true_labels, true_masks in images:
        precision.add(torch.tensor(scores), torch.tensor(labels, dtype=torch.int64), masks,
                      torch.tensor(true_labels, dtype=torch.int64), true_masks)  # fmt: skip
    return precision.metrics()


def test_all_found_and_nothing_else_is_one() -> None:
    there = bars((0, 10), (20, 30), (40, 50))
    assert metrics(([0.9, 0.2, 0.5], [1, 1, 2], there, [1, 1, 2], there)) == {
        "AP50": 1.0,
        "AP50/VEHICLE": 1.0,
        "AP50/PEDESTRIAN": 1.0,
    }


def test_nothing_found_is_zero_and_classes_that_never_occur_do_not_count() -> None:
    assert metrics(([0.9], [2], bars((0, 5)), [1], bars((0, 5)))) == {"AP50": 0.0, "AP50/VEHICLE": 0.0}
    assert metrics(([], [], bars(), [1], bars((0, 5)))) == {"AP50": 0.0, "AP50/VEHICLE": 0.0}
    assert metrics(([0.9], [2], bars((0, 5)), [], bars())) == {}
    assert metrics() == {}


def test_the_curve_is_that_of_the_text_book() -> None:
    # Right, wrong, right of three instances: precision 1 at recall 1/3, 2/3 at recall 2/3, then nothing.
    found, there = bars((0, 10), (60, 70), (20, 30)), bars((0, 10), (20, 30), (40, 50))
    result = metrics(([0.9, 0.8, 0.7], [1, 1, 1], found, [1, 1, 1], there))
    assert result["AP50"] == pytest.approx(1 / 3 * 1 + 1 / 3 * 2 / 3)


def test_an_envelope_is_taken_over_later_precision() -> None:
    # Wrong, right, right of two: precision 1/2 then 2/3, so 2/3 all along.
    found, there = bars((60, 70), (0, 10), (20, 30)), bars((0, 10), (20, 30))
    result = metrics(([0.9, 0.8, 0.7], [1, 1, 1], found, [1, 1], there))
    assert result["AP50"] == pytest.approx(2 / 3)


def test_a_second_detection_of_the_same_instance_is_wrong() -> None:
    there = bars((0, 10), (20, 30))
    result = metrics(([0.9, 0.8, 0.7], [1, 1, 1], bars((0, 10), (0, 10), (20, 30)), [1, 1], there))
    assert result["AP50"] == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 3)


def test_half_overlap_is_enough_and_less_is_not() -> None:
    there = bars((0, 10))
    assert metrics(([0.9], [1], bars((0, 20)), [1], there))["AP50"] == 1
    assert metrics(([0.9], [1], bars((0, 21)), [1], there))["AP50"] == 0


def test_detections_are_ranked_over_all_images() -> None:
    # The second image's wrong detection is more confident than the first image's right one.
    result = metrics(([0.6], [1], bars((0, 10)), [1], bars((0, 10))), ([0.9], [1], bars((50, 60)), [1], bars((0, 10))))
    assert result["AP50"] == pytest.approx(1 / 2 * 1 / 2)
