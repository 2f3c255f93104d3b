"""Anchors that fit, and how well they do."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_iou

from student.anchors import anchor_recall, fit_anchors
from student.config import AnchorShapes, StudentError
from tests.student.students import HEIGHT, TINY, WIDTH

PAPER = AnchorShapes(sizes=((32,), (64,), (128,), (256,)), ratios=(0.5, 1.0, 2.0))


def random_boxes(count: int, sides: tuple[float, float], ratios: tuple[float, ...], seed: int = 0) -> Tensor:
    """Return boxes in an image of 384 x 256, each of nearly one of these ratios of height to width."""
    random = torch.Generator().manual_seed(seed)
    low, high = map(math.log, sides)
    side = (low + (high - low) * torch.rand(count, generator=random)).exp()
    ratio = torch.tensor(ratios)[torch.arange(count) % len(ratios)]
    ratio = ratio * (0.05 * torch.randn(count, generator=random)).exp()
    extent = torch.stack([side / ratio.sqrt(), side * ratio.sqrt()], 1)
    corner = torch.rand(count, 2, generator=random) * (torch.tensor([384.0, 256.0]) - extent).clamp(min=0)
    return torch.cat([corner, corner + extent], 1)


def fitted(boxes: Tensor, stride: int = 4) -> AnchorShapes:
    return fit_anchors(boxes, levels=4, stride=stride)


def test_ratios_lie_at_even_steps_between_the_flattest_and_the_steepest_boxes() -> None:
    shapes = fitted(random_boxes(4000, (10, 100), tuple(torch.logspace(-1, 1, 41, 2).tolist())))
    # A quarter and three quarters of the way from 1/2 to 2.
    assert shapes.ratios == pytest.approx((2**-0.5, 2**0.5), rel=0.05)


def test_sizes_rise_evenly_between_the_smallest_and_the_largest_boxes() -> None:
    shapes = fitted(random_boxes(2000, (8, 128), (1.0, 2.0)))
    sizes = [size for level in shapes.sizes for size in level]
    assert [len(level) for level in shapes.sizes] == [2, 2, 2, 2]
    steps = [math.log(b / a) for a, b in pairwise(sizes)]
    assert steps == pytest.approx([math.log(16) / 8] * 7, rel=0.1)
    assert 8 < sizes[0] < 11
    assert 100 < sizes[-1] < 128


def test_no_level_has_anchors_of_less_than_one_and_a_half_of_its_cells() -> None:
    sizes = fitted(random_boxes(2000, (6, 30), (1.0, 2.0))).sizes
    assert all(min(level) >= 6 << number for number, level in enumerate(sizes))


def test_boxes_that_are_too_small_to_be_found_are_left_out() -> None:
    boxes = random_boxes(200, (10, 100), (0.6, 2.4))
    specks = torch.tensor([[5.0, 5.0, 5.0, 9.0], [5.0, 5.0, 9.0, 5.0], [5.0, 5.0, 8.0, 10.0]])
    assert fitted(torch.cat([boxes, specks])) == fitted(boxes)


@pytest.mark.parametrize(("stride", "dense"), [(1, False), (4, True)])
def test_anchors_of_few_cells_are_set_at_half_cells_as_well(stride: int, dense: bool) -> None:
    assert fitted(random_boxes(200, (6, 100), (0.6, 2.4)), stride).half_cells == dense


@pytest.mark.parametrize("count", [0, 3])
def test_too_few_boxes_are_refused(count: int) -> None:
    with pytest.raises(StudentError, match=f"{count} labelled boxes are too few to fit anchors to"):
        fitted(random_boxes(count, (10, 100), (1.0,)))


def test_fitted_anchors_meet_small_boxes_better_than_the_papers() -> None:
    boxes = random_boxes(600, (6, 90), (0.7, 2.5))
    ours = anchor_recall(replace(TINY, anchors=fitted(boxes)), boxes, (256, 384))
    paper = anchor_recall(replace(TINY, anchors=PAPER), boxes, (256, 384))
    assert ours.small[0.5] > paper.small[0.5] + 0.3
    assert all(ours.recall[iou] >= paper.recall[iou] for iou in ours.recall)


@pytest.mark.parametrize("sides", [(6, 90), (2, 60), (4, 40), (8, 250)])
@pytest.mark.parametrize("ratios", [(0.7, 2.5), (0.5, 0.9, 2.0)])
def test_fitted_anchors_meet_nearly_all_boxes_that_anchors_of_their_shapes_would(
    sides: tuple[float, float], ratios: tuple[float, ...]
) -> None:
    boxes = random_boxes(1000, sides, ratios)
    report = anchor_recall(replace(TINY, anchors=fitted(boxes)), boxes, (256, 384))
    assert report.recall[0.5] > report.bound - 0.03


def positions(half_cells: bool, step: int) -> list[tuple[float, float]]:
    """Return where anchors of a level have their centers in a tiny image."""
    corners = [(float(x), float(y)) for y in range(0, HEIGHT, step) for x in range(0, WIDTH, step)]
    shifted = [(x + step / 2, y + step / 2) for x, y in corners]
    return corners + shifted if half_cells else corners


@pytest.mark.parametrize("half_cells", [False, True])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_recall_is_what_every_anchor_tried_on_every_box_gives(half_cells: bool, seed: int) -> None:
    shapes = AnchorShapes(sizes=((8, 12), (24, 36)), ratios=(0.5, 2.0), half_cells=half_cells)
    boxes = random_boxes(40, (5, 60), (0.7, 2.5), seed) % torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
    boxes = torch.cat([boxes[:, :2].minimum(boxes[:, 2:]), boxes[:, :2].maximum(boxes[:, 2:]) + 1], 1)
    report = anchor_recall(replace(TINY, anchors=shapes), boxes, (HEIGHT, WIDTH))
    anchors = []
    for level, sizes in enumerate(shapes.sizes):
        for x, y in positions(half_cells, 4 << level):
            for size in sizes:
                for ratio in shapes.ratios:
                    # torchvision rounds half of each side.
                    across = round(size / math.sqrt(ratio) / 2)
                    down = round(size * math.sqrt(ratio) / 2)
                    anchors.append((x - across, y - down, x + across, y + down))
    extents = boxes[:, 2:] - boxes[:, :2]
    own = []
    for box, extent in zip(boxes, extents, strict=True):
        centers = torch.tensor(positions(half_cells, 4))
        own.append(box_iou(box[None], torch.cat([centers - extent / 2, centers + extent / 2], 1)).amax())
    best = box_iou(boxes, torch.tensor(anchors, dtype=torch.float32)).amax(1)
    small = extents.prod(1) < 64
    assert (report.boxes, report.findable) == (40, 40 - int(small.sum()))
    assert report.bound == pytest.approx(float((torch.stack(own)[~small] >= 0.5).float().mean()))
    for iou in (0.3, 0.5, 0.7):
        assert report.recall[iou] == pytest.approx(float((best[~small] >= iou).float().mean()))
        if small.any():
            assert report.small[iou] == pytest.approx(float((best[small] >= iou).float().mean()))


def test_boxes_that_training_leaves_out_are_not_counted() -> None:
    boxes = random_boxes(30, (6, 50), (1.0,))
    empty = torch.tensor([[5.0, 5.0, 5.0, 9.0], [400.0, 5.0, 390.0, 9.0]])
    with_empty = anchor_recall(TINY, torch.cat([boxes, empty]), (256, 384))
    assert with_empty == anchor_recall(TINY, boxes, (256, 384))


def test_without_boxes_nothing_is_missed() -> None:
    report = anchor_recall(TINY, torch.zeros(0, 4), (HEIGHT, WIDTH))
    assert report.boxes == 0
    assert set(report.recall.values()) == {1.0}


def test_the_report_is_one_line() -> None:
    line = str(anchor_recall(TINY, random_boxes(50, (6, 50), (1.0,)), (256, 384)))
    assert line.startswith("anchor recall: ")
    assert " boxes of at least 8 px (" in line
    assert "\n" not in line
