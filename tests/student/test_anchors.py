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


def test_the_ratios_are_those_of_the_clusters() -> None:
    shapes = fit_anchors(random_boxes(400, (10, 100), (0.6, 2.4)), levels=4)
    assert shapes.ratios == pytest.approx((0.6, 2.4), rel=0.05)


def test_sizes_rise_evenly_between_the_smallest_and_the_largest_boxes() -> None:
    shapes = fit_anchors(random_boxes(2000, (8, 128), (1.0, 2.0)), levels=4, sizes_per_level=2)
    sizes = [size for level in shapes.sizes for size in level]
    assert [len(level) for level in shapes.sizes] == [2, 2, 2, 2]
    steps = [math.log(b / a) for a, b in pairwise(sizes)]
    assert steps == pytest.approx([math.log(16) / 8] * 7, rel=0.1)
    assert 8 < sizes[0] < 11
    assert 100 < sizes[-1] < 128


def test_boxes_without_an_area_are_left_out() -> None:
    boxes = random_boxes(200, (10, 100), (0.6, 2.4))
    empty = torch.tensor([[5.0, 5.0, 5.0, 9.0], [5.0, 5.0, 9.0, 5.0]])
    assert fit_anchors(torch.cat([boxes, empty]), levels=4) == fit_anchors(boxes, levels=4)


@pytest.mark.parametrize("count", [0, 3])
def test_too_few_boxes_are_refused(count: int) -> None:
    with pytest.raises(StudentError, match=f"{count} labelled boxes are too few to fit anchors to"):
        fit_anchors(random_boxes(count, (10, 100), (1.0,)), levels=4)


def test_fitted_anchors_meet_small_boxes_better_than_the_papers() -> None:
    boxes = random_boxes(600, (6, 90), (0.7, 2.5))
    fitted = anchor_recall(replace(TINY, anchors=fit_anchors(boxes, levels=4)), boxes, (256, 384))
    paper = anchor_recall(replace(TINY, anchors=PAPER), boxes, (256, 384))
    assert fitted.small[0.5] > paper.small[0.5] + 0.3
    assert all(fitted.recall[iou] >= paper.recall[iou] for iou in fitted.recall)
    assert fitted.recall[0.5] > 0.8


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_recall_is_what_every_anchor_tried_on_every_box_gives(seed: int) -> None:
    config = replace(TINY, anchors=AnchorShapes(sizes=((8, 12), (24, 36)), ratios=(0.5, 2.0)))
    boxes = random_boxes(40, (5, 60), (0.7, 2.5), seed) % torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
    boxes = torch.cat([boxes[:, :2].minimum(boxes[:, 2:]), boxes[:, :2].maximum(boxes[:, 2:]) + 1], 1)
    report = anchor_recall(config, boxes, (HEIGHT, WIDTH))
    anchors = []
    for level, sizes in enumerate(config.anchors.sizes):
        step = 4 << level
        for y in range(0, HEIGHT, step):
            for x in range(0, WIDTH, step):
                for size in sizes:
                    for ratio in config.anchors.ratios:
                        # torchvision rounds half of each side.
                        across = round(size / math.sqrt(ratio) / 2)
                        down = round(size * math.sqrt(ratio) / 2)
                        anchors.append((x - across, y - down, x + across, y + down))
    best = box_iou(boxes, torch.tensor(anchors, dtype=torch.float32)).amax(1)
    small = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) <= 256
    assert report.boxes == 40
    for iou in (0.3, 0.5, 0.7):
        assert report.recall[iou] == pytest.approx(float((best >= iou).float().mean()))
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
    assert "of 50 boxes" in line
    assert "\n" not in line
