"""Anchors that fit the boxes which are to be found, and the proof."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from student.config import AnchorShapes, StudentConfig, StudentError
from student.rpn import anchor_generator

# The side of the smallest objects that are expected to be found, the root of their area, in pixels: two cells.
FINDABLE_PX = 8.0
# Boxes below half of that would draw anchors away from those that can be found.
_LEAST_PX = FINDABLE_PX / 2
_IOUS = (0.3, 0.5, 0.7)
# Whatever lies between two anchors of so many cells overlaps either by half, also where its shape differs a little;
# smaller ones are set at half cells as well.
_DENSE_CELLS = 4
# A level's anchors have at least so many of its cells: others lie too far apart, and finer levels do better.
_LEAST_CELLS = 1.5


@dataclass(frozen=True, slots=True)
class AnchorReport:
    """How well anchors overlap the labelled boxes, before training.

    boxes: how many, and `findable` how many of them have a side (the root of the area) of at least FINDABLE_PX
    recall: IoU -> share of the findable boxes that some anchor overlaps by at least that much
    bound: the same at IoU 0.5, if in each place of the anchors there were one of the box's very shape
    small: IoU -> share of the other boxes
    """

    boxes: int
    findable: int
    recall: dict[float, float]
    bound: float
    small: dict[float, float]

    def __str__(self) -> str:
        others = ", ".join(f"{share:.1%} at {iou}" for iou, share in self.recall.items() if iou != 0.5)
        return (
            f"anchor recall: {self.recall[0.5]:.1%} at IoU 0.5 of the {self.findable:,} boxes of at least"
            f" {FINDABLE_PX:g} px ({self.bound:.1%} if all had an anchor of their shape; {others});"
            f" {self.small[0.5]:.1%} of the {self.boxes - self.findable:,} smaller ones"
        )


def fit_anchors(boxes: Tensor, *, levels: int, stride: int, sizes_per_level: int = 2, ratios: int = 2) -> AnchorShapes:
    """Return anchors for boxes float32 [N, 4] in pixels; those below half of FINDABLE_PX do not count.

    Sizes and ratios lie at even steps of their logarithm, sizes between the 2nd and the 99th percentile, ratios between
    the 2nd and the 98th: no box between them is more than half a step away from an anchor. Where the boxes are so small
    that coarse levels would get anchors of few cells, finer levels take larger steps instead.

    stride: pixels per cell of the finest level

    Raises StudentError where there are too few boxes to fit.
    """
    width, height = (boxes[:, 2] - boxes[:, 0]).double(), (boxes[:, 3] - boxes[:, 1]).double()
    usable = (width > 0) & (height > 0) & (width * height >= _LEAST_PX**2)
    if int(usable.sum()) < ratios * 2:
        raise StudentError(f"{int(usable.sum())} labelled boxes are too few to fit anchors to; train on more frames")
    aspect, size = (height / width)[usable].log(), (height * width)[usable].sqrt().log()
    low, high = float(size.quantile(0.02)), float(size.quantile(0.99))
    edges = [low]
    for level in range(1, levels):
        edges.append(max(low + (high - low) * level / levels, math.log(_LEAST_CELLS * (stride << level))))
    edges.append(max(high, edges[-1] + math.log(2) / 2))
    sizes = tuple(
        tuple(round(value, 1) for value in _even(*bounds, sizes_per_level)) for bounds in itertools.pairwise(edges)
    )
    extremes = float(aspect.quantile(0.02)), float(aspect.quantile(0.98))
    return AnchorShapes(
        sizes=sizes,
        ratios=tuple(round(value, 2) for value in _even(*extremes, ratios)),
        half_cells=any(sides[0] < _DENSE_CELLS * (stride << level) for level, sides in enumerate(sizes)),
    )


def anchor_recall(config: StudentConfig, boxes: Tensor, image_size: tuple[int, int]) -> AnchorReport:
    """Return how well the configuration's anchors overlap boxes float32 [N, 4] in images of (height, width).

    Boxes without an area are left out, as `labels_on` does it in training.
    """
    boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)]
    height, width = config.grid(*image_size)
    best = boxes.new_zeros(len(boxes))
    for level, shapes in enumerate(anchor_generator(config).cell_anchors):
        grid = (height >> level, width >> level)
        for shape in shapes.to(boxes):
            best = torch.maximum(best, _best_overlap(boxes, shape, image_size, grid))
    # The places of all levels are places of the finest one.
    half = (boxes[:, 2:] - boxes[:, :2]) / 2
    own = torch.cat([-half, half], 1)
    bound = _best_overlap(boxes, own, image_size, (height, width))
    if config.anchors.half_cells:
        bound = torch.maximum(bound, _best_overlap(boxes, own + config.stride / 2, image_size, (height, width)))
    findable = (2 * half).prod(1) >= FINDABLE_PX**2
    return AnchorReport(
        boxes=len(boxes),
        findable=int(findable.sum()),
        recall=_shares(best[findable]),
        bound=_shares(bound[findable])[0.5],
        small=_shares(best[~findable]),
    )


def _shares(overlaps: Tensor) -> dict[float, float]:
    return {iou: float((overlaps >= iou).float().mean()) if len(overlaps) else 1.0 for iou in _IOUS}


def _best_overlap(boxes: Tensor, shape: Tensor, image_size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Return the highest IoU of boxes [N, 4] with anchors of `shape` [4] or [N, 4], about 0, in every cell of a level.

    Anchors of one shape differ only in where they are. The overlap falls with the distance along either axis, so the
    nearest one is the best, and a lake of millions of boxes needs no table of boxes by anchors.
    """
    strides = boxes.new_tensor([image_size[1] // grid[1], image_size[0] // grid[0]])
    last = boxes.new_tensor([grid[1] - 1, grid[0] - 1])
    off_center = (boxes[:, :2] + boxes[:, 2:]) / 2 - (shape[..., :2] + shape[..., 2:]) / 2
    nearest = (off_center / strides).round().clamp(min=0).minimum(last) * strides
    anchors = nearest.repeat(1, 2) + shape
    shared = torch.minimum(anchors[:, 2:], boxes[:, 2:]) - torch.maximum(anchors[:, :2], boxes[:, :2])
    overlap = shared.clamp(min=0).prod(1)
    areas = (anchors[:, 2:] - anchors[:, :2]).prod(1) + (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return overlap / (areas - overlap)


def _even(low: float, high: float, count: int) -> list[float]:
    """Return the middles of `count` even steps between two logarithms, as numbers."""
    step = (high - low) / count
    return [math.exp(low + step * (i + 0.5)) for i in range(count)]
