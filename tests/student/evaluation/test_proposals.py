"""Recall of proposals, by hand and by its properties."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from student.evaluation.proposals import ProposalRecall
from tests.student.evaluation.images import (
    CAR,
    MAN,
    PEDESTRIAN,
    SIGN,
    VAN,
    VEHICLE,
    Box,
    moved,
    random_images,
    there,
)

SMALL: Box = (0, 0, 20, 5)  # 10 pixels
LARGE: Box = (100, 100, 200, 150)  # 71 pixels


def boxes(*rows: Box) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def test_metrics_by_hand() -> None:
    recall = ProposalRecall()
    objects = there((CAR, VEHICLE), (SMALL, VEHICLE), (LARGE, VEHICLE), (MAN, PEDESTRIAN))
    recall.add(boxes(moved(CAR, 5), SMALL, VAN), objects)
    recall.add(boxes(LARGE), there((VAN, SIGN)))
    assert recall.metrics() == pytest.approx(
        {
            "recall@100": 2 / 5,
            "recall@100/>16px": 1 / 4,
            "recall@100/small": 1,
            "recall@100/medium": 1 / 3,
            "recall@100/large": 0,
            "recall@100/VEHICLE": 2 / 3,
            "recall@100/PEDESTRIAN": 0,
            "recall@100/SIGN": 0,
        }
    )


def test_half_overlap_is_enough_and_less_is_not() -> None:
    for bottom, share in ((40, 1), (41, 0)):
        recall = ProposalRecall()
        recall.add(boxes((0, 0, 20, bottom)), there(((0, 0, 20, 20), VEHICLE)))
        assert recall.metrics()["recall@100"] == share


def test_only_the_first_proposals_count() -> None:
    for limit, share in ((2, 0), (3, 1)):
        recall = ProposalRecall(limit)
        recall.add(boxes(VAN, MAN, CAR), there((CAR, VEHICLE)))
        assert recall.metrics()[f"recall@{limit}"] == share


def test_two_proposals_of_one_object_do_not_make_two() -> None:
    recall = ProposalRecall()
    recall.add(boxes(CAR, moved(CAR, 1)), there((CAR, VEHICLE), (VAN, VEHICLE)))
    assert recall.metrics()["recall@100"] == 0.5


def test_without_proposals_nothing_is_recalled_and_without_objects_there_is_no_figure() -> None:
    recall = ProposalRecall()
    assert recall.metrics() == {}
    recall.add(boxes(CAR), there())
    assert recall.metrics() == {}
    recall.add(boxes(), there((CAR, VEHICLE)))
    assert recall.metrics()["recall@100"] == 0


@given(st.integers(0, 10_000), st.permutations(range(4)))
@settings(deadline=None, max_examples=30)
def test_order_does_not_matter_and_more_proposals_recall_no_less(seed: int, order: list[int]) -> None:
    images = random_images(seed, 4)
    one, other, few = ProposalRecall(), ProposalRecall(), ProposalRecall(5)
    for detections, objects in images:
        one.add(detections.boxes, objects)
        few.add(detections.boxes, objects)
    for number in order:
        other.add(images[number][0].boxes, images[number][1])
    assert one.metrics() == pytest.approx(other.metrics())
    assert few.metrics()["recall@5"] <= one.metrics()["recall@100"]


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=30)
def test_the_objects_themselves_recall_all(seed: int) -> None:
    recall = ProposalRecall()
    for _, objects in random_images(seed, 3):
        recall.add(objects.boxes, objects)
    assert set(recall.metrics().values()) <= {1.0}


def test_proposals_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"proposals \[K, 4\], got: \[3, 5\]"):
        ProposalRecall().add(torch.zeros(3, 5), there())
    with pytest.raises(ValueError, match="classes of objects"):
        ProposalRecall().add(boxes(CAR), there((CAR, 0)))
    with pytest.raises(ValueError, match="limit of at least 1, got: 0"):
        ProposalRecall(0)
