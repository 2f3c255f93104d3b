"""The object instances of an image, from its panoptic labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from datalake.sample import Panoptic
from teachers.classes import CAMERA_TO_MASK, IGNORED

_MASK_OF = torch.tensor(CAMERA_TO_MASK)


@dataclass(frozen=True, slots=True, eq=False)
class Instances:
    """The N things in one image that can be detected.

    boxes: float32 [N, 4], x0, y0, x1, y1 in pixels, around the visible pixels
    labels: int64 [N], index into `MASK_CLASSES`, never 0
    masks: bool [N, H, W]
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor


def instances_of(panoptic: Panoptic, min_pixels: int) -> Instances:
    """Return the instances with at least `min_pixels` visible pixels.

    Things without a number of their own (a crowd, a parked bicycle that nobody tracks) have no box and are left out.
    """
    classes = _MASK_OF[panoptic.semantic_class.long()]
    countable = (classes > 0) & (classes != IGNORED) & (panoptic.instance > 0)
    # Instances are numbered within the camera's classes, of which several become one class of masks.
    code = panoptic.semantic_class.long() << 32 | panoptic.instance.long()
    numbers, pixels = code[countable].unique(return_counts=True)
    masks = code == numbers[pixels >= min_pixels][:, None, None]
    masks &= countable
    rows, columns = masks.any(2), masks.any(1)
    boxes = torch.stack([_first(columns), _first(rows), _last(columns) + 1, _last(rows) + 1], 1).float()
    labels = _MASK_OF[numbers[pixels >= min_pixels] >> 32]
    return Instances(boxes, labels, masks)


def _first(line: Tensor) -> Tensor:
    """Return int64 [N], the first True in each row of bool [N, L]."""
    return line.byte().argmax(1)


def _last(line: Tensor) -> Tensor:
    """Return int64 [N], the last True in each row of bool [N, L]."""
    return line.shape[1] - 1 - line.flip(1).byte().argmax(1)
