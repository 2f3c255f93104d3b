"""Anchors and proposals find the objects that torchvision's Matcher has them find."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from student import matching
from student.matching import match_boxes

SIDES = st.integers(0, 12)
BOX = st.tuples(SIDES, SIDES, st.integers(1, 8), st.integers(1, 8)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)
# Whole numbers: many overlaps are the same, and many boxes too.
BOXES = st.lists(BOX, max_size=5)
GRID = torch.tensor([(x, y, x + side, y + side) for x in range(0, 18, 3) for y in range(0, 18, 3) for side in (3, 6)])
ANCHORS = GRID.float()


def padded(images: list[list[tuple[int, int, int, int]]]) -> tuple[Tensor, Tensor]:
    """Return the images' boxes [B, M, 4], and which places hold one."""
    most = max(1, *map(len, images))
    boxes, valid = torch.zeros(len(images), most, 4), torch.zeros(len(images), most, dtype=torch.bool)
    for image, rows in enumerate(images):
        boxes[image, : len(rows)] = torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)
        valid[image, : len(rows)] = True
    return boxes, valid


def by_torchvision(objects: Tensor, boxes: Tensor, high: float, low: float, every: bool) -> tuple[Tensor, Tensor]:
    """Return index and label of one image's boxes, with those without any overlap being background."""
    if not len(objects):
        return torch.zeros(len(boxes), dtype=torch.int64), torch.zeros(len(boxes), dtype=torch.int64)
    overlaps = box_iou(objects, boxes)
    found = Matcher(high, low, allow_low_quality_matches=every)(overlaps)
    label = torch.tensor([1 if one >= 0 else {-1: 0, -2: -1}[one] for one in found.tolist()])
    label[overlaps.amax(0) == 0] = 0
    return overlaps.argmax(0), label


@given(
    images=st.lists(BOXES, min_size=1, max_size=3),
    thresholds=st.sampled_from([(0.5, 0.3), (0.7, 0.3), (0.5, 0.5)]),
    every=st.booleans(),
)
def test_matches_of_every_image_are_those_of_torchvision(
    images: list[list[tuple[int, int, int, int]]], thresholds: tuple[float, float], every: bool
) -> None:
    objects, valid = padded(images)
    high, low = thresholds
    found = match_boxes(objects, valid, ANCHORS, high=high, low=low, every_object=every)
    for image, there in enumerate(valid):
        index, label = by_torchvision(objects[image, there], ANCHORS, high, low, every)
        assert torch.equal(found.label[image], label)
        # Of identical objects it does not matter which: the box is the same.
        chosen = found.label[image] == 1
        assert torch.equal(objects[image, found.index[image, chosen]], objects[image, index[chosen]])


def test_of_identical_objects_the_first_is_found() -> None:
    objects, valid = padded([[(3, 3, 9, 9), (3, 3, 9, 9)]])
    found = match_boxes(objects, valid, ANCHORS, high=0.5, low=0.3)
    assert found.index[found.label == 1].unique().tolist() == [0]


@pytest.mark.parametrize("every", [True, False])
def test_no_box_is_to_find_an_object_that_it_does_not_touch(every: bool) -> None:
    objects, valid = padded([[(500, 500, 520, 520)], [(0, 0, 3, 3)]])
    found = match_boxes(objects, valid, ANCHORS, high=0.5, low=0.3, every_object=every)
    assert not bool(found.label[0].any())
    assert bool((found.label[1] == 1).any())


def test_an_object_that_no_box_meets_well_has_the_closest_nonetheless() -> None:
    objects, valid = padded([[(0, 0, 17, 2)]])
    without = match_boxes(objects, valid, ANCHORS, high=0.5, low=0.3)
    closest = match_boxes(objects, valid, ANCHORS, high=0.5, low=0.3, every_object=True)
    best = box_iou(objects[0], ANCHORS)[0]
    assert not bool((without.label == 1).any())
    assert torch.equal(closest.label[0] == 1, best == best.max())


def test_each_image_may_have_boxes_of_its_own() -> None:
    objects, valid = padded([[(0, 0, 3, 3)], [(0, 0, 3, 3), (9, 9, 15, 15)]])
    boxes = torch.stack([ANCHORS, ANCHORS.flip(0)])
    together = match_boxes(objects, valid, boxes, high=0.5, low=0.3)
    for image in range(2):
        alone = match_boxes(objects[image, None], valid[image, None], boxes[image], high=0.5, low=0.3)
        assert torch.equal(together.label[image], alone.label[0])
        assert torch.equal(together.index[image], alone.index[0])


def test_images_matched_at_once_are_matched_as_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    objects, valid = padded([[(0, 0, 3, 3)], [], [(4, 4, 9, 9), (0, 1, 3, 4)]])
    found = []
    for parts in ([slice(0, 3)], [slice(0, 1), slice(1, 2), slice(2, 3)]):
        monkeypatch.setattr(matching, "images_at_once", lambda *_, parts=parts: parts)
        found.append(match_boxes(objects, valid, ANCHORS, high=0.5, low=0.3, every_object=True))
    together, alone = found
    assert torch.equal(together.label, alone.label)
    assert torch.equal(together.index, alone.index)
