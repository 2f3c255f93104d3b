"""What torchvision's detectors do image by image to boxes, for all images of a batch at once.

Each image costs a GPU some hundred and fifty launches and nine waits there, whatever it shows. The results are the
same, but for overlaps within rounding of the threshold.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softmax
from torchvision.models.detection import MaskRCNN
from torchvision.ops import nms

from teachers.transfer import on_device

_SMALLEST_DETECTION = 1e-2  # pixels, as in torchvision
# Suppression compares each with each: of more boxes the comparisons cost more than the launches saved.
_BOXES_AT_ONCE = 16_000


def batch_boxes(network: MaskRCNN) -> None:
    """Let a network that only answers treat the boxes of all its images at once."""
    network.rpn.filter_proposals = MethodType(_filter_proposals, network.rpn)
    network.roi_heads.postprocess_detections = MethodType(_postprocess_detections, network.roi_heads)


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Return int64 [kept], ascending in rank: non-maximum suppression of boxes [N, 4] within each group int64 [N]."""
    if not len(boxes):
        return groups
    # Groups are moved apart; in float64, where far from the origin is as exact as near it.
    apart = boxes.double().max() + 1
    return nms(boxes.double() + (groups * apart)[:, None], scores.double(), threshold)


def _filter_proposals(
    rpn: Any, proposals: Tensor, objectness: Tensor, sizes: list[tuple[int, int]], anchors_of_levels: list[int]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return each image's proposals [n, 4] and their scores [n], as `RegionProposalNetwork.filter_proposals`."""
    images, device = len(proposals), proposals.device
    objectness = objectness.detach().reshape(images, -1)
    level = torch.arange(len(anchors_of_levels)).repeat_interleave(torch.tensor(anchors_of_levels))
    best = rpn._get_top_n_idx(objectness, anchors_of_levels)
    scores = objectness.gather(1, best).sigmoid()
    boxes = _clipped(proposals.gather(1, best[:, :, None].expand(-1, -1, 4)), _limits(sizes, device)[:, None])
    number = torch.arange(images, device=device)[:, None]
    group = number * len(anchors_of_levels) + on_device(level, device)[best]

    # What is too small or not sure enough comes last of all: it suppresses nobody, and is not kept.
    sound = (_sides(boxes) >= rpn.min_size).all(-1) & (scores >= rpn.score_thresh)
    rank = scores.where(sound, -1.0)
    survives = torch.zeros_like(sound)
    several = max(1, _BOXES_AT_ONCE // max(1, scores.shape[1]))
    for some in zip(*(values.split(several) for values in (survives, boxes, rank, group)), strict=True):
        mark, *those = (values.flatten(0, 1) for values in some)
        mark.index_fill_(0, suppress(those[0], those[1], those[2], rpn.nms_thresh), True)
    survives &= sound
    rank, order = rank.where(survives, -1.0).sort(stable=True, descending=True)
    counts = survives.sum(1).clamp(max=rpn.post_nms_top_n()).tolist()
    boxes = boxes.gather(1, order[:, :, None].expand(-1, -1, 4))
    return (
        [of_image[:count] for of_image, count in zip(boxes, counts, strict=True)],
        [of_image[:count] for of_image, count in zip(rank, counts, strict=True)],
    )


def _postprocess_detections(
    heads: Any, logits: Tensor, deltas: Tensor, proposals: list[Tensor], sizes: list[tuple[int, int]]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return each image's boxes [n, 4], scores [n] and labels [n], as `RoIHeads.postprocess_detections`."""
    device, classes = logits.device, logits.shape[-1]
    counts = torch.tensor([len(of_image) for of_image in proposals])
    image = on_device(torch.arange(len(proposals)).repeat_interleave(counts), device)
    limits = _limits(sizes, device)[image]
    boxes = _clipped(heads.box_coder.decode(deltas, proposals), limits[:, None])[:, 1:].reshape(-1, 4)
    scores = softmax(logits, -1)[:, 1:].flatten()
    sound = (scores > heads.score_thresh) & (_sides(boxes) >= _SMALLEST_DETECTION).all(-1)
    chosen = sound.nonzero()[:, 0]
    boxes, scores = boxes[chosen], scores[chosen]
    image = image[torch.div(chosen, classes - 1, rounding_mode="floor")]
    labels = chosen % (classes - 1) + 1

    kept = suppress(boxes, scores, image * classes + labels, heads.nms_thresh)
    kept = kept[image[kept].argsort(stable=True)]
    found = torch.bincount(image[kept], minlength=len(proposals)).tolist()

    def by_image(values: Tensor) -> list[Tensor]:
        return [of_image[: heads.detections_per_img] for of_image in values[kept].split(found)]

    return by_image(boxes), by_image(scores), by_image(labels)


def _limits(sizes: list[tuple[int, int]], device: torch.device) -> Tensor:
    """Return float32 [B, 2], width and height of each image."""
    return on_device(torch.tensor([(width, height) for height, width in sizes], dtype=torch.float32), device)


def _clipped(boxes: Tensor, limits: Tensor) -> Tensor:
    """Return boxes [..., 4] within 0 and the limits [..., 2]."""
    corners = boxes.unflatten(-1, (2, 2)).clamp(min=0).minimum(limits[..., None, :])
    return corners.flatten(-2)


def _sides(boxes: Tensor) -> Tensor:
    """Return [..., 2], width and height."""
    return boxes[..., 2:] - boxes[..., :2]
