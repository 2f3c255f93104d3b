"""Matching of anchors and proposals to labelled objects."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.boxes import pairwise_iou, shared_areas

# Overlaps that a GPU computes at a time, whatever the batch. A CPU takes one image at a time: what fits its caches is
# sooner done.
_MOST_PAIRS = 1 << 26
# A box that lies in an ignored one by this share of its area is ignored as well.
_IGNORED_SHARE = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """What N boxes of each of B images are to find.

    index: int64 [B, N], the object that a box overlaps most; 0 where the image has none
    label: int64 [B, N], 1 an object, 0 background, -1 neither
    """

    index: Tensor
    label: Tensor


def images_at_once(objects: Tensor, boxes: Tensor) -> list[slice]:
    """Return parts of the images of objects [B, M, 4] whose overlaps with boxes [..., N, 4] are computed at a time."""
    alone = boxes.device.type == "cpu"
    images = 1 if alone else max(1, _MOST_PAIRS // max(1, objects.shape[1] * boxes.shape[-2]))
    return [slice(first, first + images) for first in range(0, len(objects), images)]


@torch.no_grad()
def match_boxes(
    objects: Tensor, valid: Tensor, boxes: Tensor, *, high: float, low: float, every_object: bool = False
) -> Matches:
    """Return the matches of boxes [B, N, 4], or [N, 4] for all images, with objects [B, M, 4]; M is at least 1.

    valid: bool [B, M], which of the objects there really are; these have an area
    high, low: an IoU of `high` and more is an object, one below `low` is background
    every_object: the boxes that overlap an object most are to find what they overlap most, however little that is

    As torchvision's Matcher, but that a box without any overlap never becomes an object's: of an object outside the
    image every anchor is "the closest".
    """
    parts = [
        _match_at_once(
            objects[some], valid[some], boxes if boxes.ndim == 2 else boxes[some], high=high, low=low,
            every_object=every_object,
        )
        for some in images_at_once(objects, boxes)
    ]  # fmt: skip
    return Matches(torch.cat([part.index for part in parts]), torch.cat([part.label for part in parts]))


@torch.no_grad()
def without_ignored(
    matches: Matches, ignored: Tensor | None, boxes: Tensor, *, low: float, every_object: bool = False
) -> Matches:
    """Return the matches of boxes [B, N, 4] or [N, 4], with none of those as background that ignored ones may explain.

    ignored: [B, R, 4], of zeros where there is none; None: no image has any
    low, every_object: as for `match_boxes`

    A box is not background either if it would not be were the ignored one an object, or if it lies in it by half of
    its area. What is matched with an object stays so.
    """
    if ignored is None:
        return matches
    label = matches.label.clone()
    for some in images_at_once(ignored, boxes):
        others = boxes if boxes.ndim == 2 else boxes[some]
        # Of boxes of zeros, which overlap nothing, 0 / 0 with others like them is none.
        overlaps = pairwise_iou(ignored[some], others).nan_to_num_(nan=0.0)
        explained = (overlaps >= low).any(1)
        if every_object:
            most = overlaps.amax(2, keepdim=True)
            explained |= ((overlaps == most) & (most > 0)).any(1)
        sides = (others[..., 2:] - others[..., :2]).clamp(min=0)
        within = shared_areas(ignored[some], others) > _IGNORED_SHARE * sides.prod(-1)[..., None, :]
        explained |= within.any(1)
        label[some] = torch.where(explained & (label[some] == 0), -1, label[some])
    return Matches(matches.index, label)


def _match_at_once(
    objects: Tensor, valid: Tensor, boxes: Tensor, *, high: float, low: float, every_object: bool
) -> Matches:
    """Return the same, with memory for the overlaps of all images."""
    overlaps = pairwise_iou(objects, boxes).masked_fill_(~valid[..., None], -1.0)
    iou, index = overlaps.max(1)
    label = (iou >= high).long() - ((iou >= low) & (iou < high)).long()
    if every_object:
        most = overlaps.amax(2, keepdim=True)
        label.masked_fill_((overlaps == most).logical_and_(most > 0).any(1), 1)
    return Matches(index, label)
