"""Anchors that fit the boxes which are to be found, and the proof."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from student.config import AnchorShapes, StudentConfig, StudentError
from student.rpn import anchor_generator

_ROUNDS = 50
_IOUS = (0.3, 0.5, 0.7)


@dataclass(frozen=True, slots=True)
class AnchorReport:
    """How well anchors overlap the labelled boxes, before training.

    recall: IoU -> share of the boxes that some anchor overlaps by at least that much
    small: the same for boxes of at most 16 x 16 pixels
    """

    boxes: int
    recall: dict[float, float]
    small: dict[float, float]

    def __str__(self) -> str:
        every = ", ".join(f"{share:.1%} at IoU {iou}" for iou, share in self.recall.items())
        small = ", ".join(f"{share:.1%} at IoU {iou}" for iou, share in self.small.items())
        return f"anchor recall: {every} of {self.boxes:,} boxes; of those up to 16 px {small}"


def fit_anchors(boxes: Tensor, *, levels: int, sizes_per_level: int = 2, ratios: int = 2) -> AnchorShapes:
    """Return anchors for boxes float32 [N, 4] in pixels.

    Ratios are the centers of clusters of log(height / width). Sizes lie at even steps of their logarithm between the
    2nd and the 99th percentile: an anchor is then never more than half a step too small or too large.
    Raises StudentError where there are too few boxes to fit.
    """
    width, height = (boxes[:, 2] - boxes[:, 0]).double(), (boxes[:, 3] - boxes[:, 1]).double()
    usable = (width > 0) & (height > 0)
    if int(usable.sum()) < ratios * 2:
        raise StudentError(f"{int(usable.sum())} labelled boxes are too few to fit anchors to; train on more frames")
    aspect, size = (height / width)[usable].log(), (height * width)[usable].sqrt().log()
    low, high = size.quantile(0.02), size.quantile(0.99)
    count = levels * sizes_per_level
    step = (high - low) / count
    sizes = [round(math.exp(float(low + step * (i + 0.5))), 1) for i in range(count)]
    grouped = tuple(tuple(sizes[i : i + sizes_per_level]) for i in range(0, count, sizes_per_level))
    return AnchorShapes(sizes=grouped, ratios=tuple(round(math.exp(c), 2) for c in _centers(aspect, ratios)))


def anchor_recall(config: StudentConfig, boxes: Tensor, image_size: tuple[int, int]) -> AnchorReport:
    """Return how well the configuration's anchors overlap boxes float32 [N, 4] in images of (height, width).

    Boxes without an area are left out, as `labels_on` does it in training.
    """
    boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)]
    height, width = config.grid(*image_size)
    best = boxes.new_zeros(len(boxes))
    for level, shapes in enumerate(anchor_generator(config.anchors).cell_anchors):
        best = torch.maximum(best, _best_overlap(boxes, shapes, image_size, (height >> level, width >> level)))
    small = ((boxes[:, 2:] - boxes[:, :2]).prod(1)) <= 16**2

    def shares(values: Tensor) -> dict[float, float]:
        return {iou: float((values >= iou).float().mean()) if len(values) else 1.0 for iou in _IOUS}

    return AnchorReport(len(boxes), shares(best), shares(best[small]))


def _best_overlap(boxes: Tensor, shapes: Tensor, image_size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Return the highest IoU of boxes [N, 4] with anchors of `shapes` [K, 4], about 0, in every cell of a level.

    Anchors of one shape differ only in where they are. The overlap falls with the distance along either axis, so the
    nearest one is the best, and a lake of millions of boxes needs no table of boxes by anchors.
    """
    strides = boxes.new_tensor([image_size[1] // grid[1], image_size[0] // grid[0]])
    last = boxes.new_tensor([grid[1] - 1, grid[0] - 1])
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    nearest = (centers / strides).round().clamp(min=0).minimum(last) * strides
    anchors = nearest.repeat(1, 2)[:, None] + shapes.to(boxes)
    shared = torch.minimum(anchors[..., 2:], boxes[:, None, 2:]) - torch.maximum(anchors[..., :2], boxes[:, None, :2])
    overlap = shared.clamp(min=0).prod(-1)
    areas = (anchors[..., 2:] - anchors[..., :2]).prod(-1) + (boxes[:, 2:] - boxes[:, :2]).prod(-1)[:, None]
    return (overlap / (areas - overlap)).amax(1)


def _centers(values: Tensor, count: int) -> list[float]:
    """Return the centers of `count` clusters of values [N], ascending (Lloyd's algorithm from the quantiles)."""
    centers = values.quantile(torch.linspace(0, 1, 2 * count + 1, dtype=values.dtype)[1::2])
    for _ in range(_ROUNDS):
        nearest = (values[:, None] - centers).abs().argmin(1)
        moved = torch.stack(
            [values[nearest == i].mean() if bool((nearest == i).any()) else centers[i] for i in range(count)]
        )
        if torch.equal(moved, centers):
            break
        centers = moved
    return sorted(map(float, centers))
