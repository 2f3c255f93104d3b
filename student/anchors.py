"""Anchors that fit the boxes which are to be found, and the proof."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from student.config import AnchorShapes, StudentConfig, StudentError
from student.proposals import anchor_generator

_ROUNDS = 50
_IOUS = (0.3, 0.5, 0.7)


@dataclass(frozen=True, slots=True)
class AnchorReport:
    """How well anchors meet boxes before anything is learned.

    recall: IoU -> share of the boxes that some anchor overlaps by at least that much
    small: the same for boxes of at most 16 x 16 pixels
    """

    boxes: int
    recall: dict[float, float]
    small: dict[float, float]

    def __str__(self) -> str:
        every = ", ".join(f"{share:.1%} at IoU {iou}" for iou, share in self.recall.items())
        small = ", ".join(f"{share:.1%} at IoU {iou}" for iou, share in self.small.items())
        return f"anchors meet {every} of {self.boxes:,} boxes; of those up to 16 px {small}"


def fit_anchors(boxes: Tensor, *, levels: int, sizes_per_level: int = 2, ratios: int = 2) -> AnchorShapes:
    """Return anchors for boxes float32 [N, 4] in pixels.

    Ratios are the centres of clusters of log(height / width). Sizes lie at even steps of their logarithm between the
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
    return AnchorShapes(sizes=grouped, ratios=tuple(round(math.exp(c), 2) for c in _centres(aspect, ratios)))


def anchor_recall(config: StudentConfig, boxes: Tensor, image_size: tuple[int, int]) -> AnchorReport:
    """Return how well the configuration's anchors meet boxes float32 [N, 4] in pictures of (height, width)."""
    grid = config.grid(*image_size)
    maps = [torch.empty(1, 1, grid[0] >> level, grid[1] >> level) for level in range(config.levels)]
    pictures = ImageList(torch.empty(1, 0, *image_size), [image_size])
    (anchors,) = anchor_generator(config.anchors)(pictures, maps)
    best = (
        torch.cat([box_iou(part, anchors).amax(1) for part in boxes.split(256)]) if len(boxes) else boxes.new_zeros(0)
    )
    small = ((boxes[:, 2:] - boxes[:, :2]).prod(1)) <= 16**2

    def shares(values: Tensor) -> dict[float, float]:
        return {iou: float((values >= iou).float().mean()) if len(values) else 1.0 for iou in _IOUS}

    return AnchorReport(len(boxes), shares(best), shares(best[small]))


def _centres(values: Tensor, count: int) -> list[float]:
    """Return the centres of `count` clusters of values [N], ascending (Lloyd's algorithm from the quantiles)."""
    centres = values.quantile(torch.linspace(0, 1, 2 * count + 1, dtype=values.dtype)[1::2])
    for _ in range(_ROUNDS):
        nearest = (values[:, None] - centres).abs().argmin(1)
        moved = torch.stack(
            [values[nearest == i].mean() if bool((nearest == i).any()) else centres[i] for i in range(count)]
        )
        if torch.equal(moved, centres):
            break
        centres = moved
    return sorted(map(float, centres))
