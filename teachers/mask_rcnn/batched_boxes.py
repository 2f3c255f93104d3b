"""What torchvision's detectors do image by image to boxes, for all images of a batch at once.

Each image costs a GPU some hundred and fifty launches and nine waits there, whatever it shows, and each batch some
twenty waits more. Here a batch costs three waits. The results are the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, softmax
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign

from teachers.transfer import on_device
from training.boxes import decode_boxes
from training.pooling import LevelPool
from training.suppression import NOTHING, suppressed

_SMALLEST_DETECTION = 1e-2  # pixels, as in torchvision
_FINEST_STRIDE = 4


def batch_boxes(network: MaskRCNN) -> None:
    """Let a network that only answers treat the boxes of all its images at once."""
    rpn, heads = network.rpn, network.roi_heads
    anchors = rpn.anchor_generator
    anchors.forward = partial(_anchors, anchors.forward, {})
    rpn.box_coder.decode = MethodType(_decode, rpn.box_coder)
    rpn.filter_proposals = MethodType(_filter_proposals, rpn)
    for pool in (heads.box_roi_pool, heads.mask_roi_pool):
        pool.forward = MethodType(_pool, pool)
    heads.postprocess_detections = MethodType(_postprocess_detections, heads)


def _anchors(generate: Any, made: dict[Any, list[Tensor]], images: ImageList, levels: list[Tensor]) -> list[Tensor]:
    """Return each image's anchors [A, 4], as `AnchorGenerator.forward`: all the same, of the last sizes kept.

    made: what was made last, by what it was made for
    """
    made_for = (images.tensors.shape[-2:], tuple(level.shape[-2:] for level in levels), levels[0].device)
    if made_for not in made:
        made.clear()
        made[made_for] = generate(ImageList(images.tensors[:1], images.image_sizes[:1]), levels)
    return made[made_for] * len(images.image_sizes)


def _decode(coder: Any, deltas: Tensor, anchors: list[Tensor]) -> Tensor:
    """Return [B, A, 4], as `BoxCoder.decode` for deltas [B * A, 4] and the same anchors [A, 4] of every image."""
    return decode_boxes(deltas.view(len(anchors), -1, 4), anchors[0], coder.weights)


def _filter_proposals(
    rpn: Any, proposals: Tensor, objectness: Tensor, sizes: list[tuple[int, int]], anchors_of_levels: list[int]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return each image's proposals [P, 4] and scores [P], as `RegionProposalNetwork.filter_proposals`.

    P is the same for all images: one in which fewer are found has boxes without sides behind them, of which
    `_postprocess_detections` makes nothing.
    """
    images, device = len(proposals), proposals.device
    objectness = objectness.detach().reshape(images, -1)
    tops = [min(rpn.pre_nms_top_n(), anchors) for anchors in anchors_of_levels]
    chosen, first = [], 0
    for top, anchors in zip(tops, anchors_of_levels, strict=True):
        best = objectness[:, first : first + anchors].topk(top, 1).indices
        # Each level is a group of its own, and all groups are of one size.
        chosen.append(pad(first + best, (0, max(tops) - top)))
        first += anchors
    index = torch.stack(chosen, 1)
    real = on_device(torch.arange(max(tops)) < torch.tensor(tops)[:, None], device)
    boxes = _rows(proposals, index.flatten(1)).view(*index.shape, 4)
    boxes = _clipped(boxes, _limits(sizes, device)[:, None, None])
    scores = objectness.gather(1, index.flatten(1)).view_as(index).sigmoid()
    sound = real & (_sides(boxes) >= rpn.min_size).all(-1) & (scores >= rpn.score_thresh)
    scores = suppressed(boxes, scores.where(sound, NOTHING), rpn.nms_thresh).flatten(1)
    scores, order = _best(scores, min(rpn.post_nms_top_n(), sum(tops)))
    boxes = _rows(boxes.flatten(1, 2), order).where(scores[..., None] > NOTHING, 0.0)
    return list(boxes.unbind()), list(scores.unbind())


def _pool(
    pool: MultiScaleRoIAlign, features: Mapping[str, Tensor], boxes: Sequence[Tensor], _sizes: list[tuple[int, int]]
) -> Tensor:
    """Return [N, C, cells, cells] of each image's boxes [n, 4], as `MultiScaleRoIAlign.forward`."""
    levels = [features[name] for name in pool.featmap_names if name in features]
    image = torch.arange(len(boxes), dtype=boxes[0].dtype)
    image = image.repeat_interleave(torch.tensor([len(of_image) for of_image in boxes]))
    rois = torch.cat([on_device(image, boxes[0].device)[:, None], torch.cat(list(boxes))], 1)
    return LevelPool(_FINEST_STRIDE, cells=pool.output_size[0], canonical_px=pool.canonical_scale)(levels, rois)


def _postprocess_detections(
    heads: Any, logits: Tensor, deltas: Tensor, proposals: list[Tensor], sizes: list[tuple[int, int]]
) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
    """Return each image's boxes [n, 4], scores [n] and labels [n], as `RoIHeads.postprocess_detections`."""
    device, kinds = logits.device, logits.shape[-1] - 1
    places = len(proposals), len(proposals[0]), kinds + 1
    deltas, scores = deltas.view(*places, 4)[:, :, 1:], softmax(logits, -1).view(places)[..., 1:]
    boxes = decode_boxes(deltas, torch.stack(proposals)[:, :, None], heads.box_coder.weights)
    boxes = _clipped(boxes, _limits(sizes, device)[:, None, None])
    sound = (scores > heads.score_thresh) & (_sides(boxes) >= _SMALLEST_DETECTION).all(-1)
    # The scores of a box sum to one: more cannot be above the threshold.
    most = min(kinds, math.ceil(1 / heads.score_thresh)) if heads.score_thresh > 0 else kinds
    scores, order = _best(scores.where(sound, NOTHING).flatten(1), places[1] * most)
    boxes, labels = _rows(boxes.flatten(1, 2), order), order % kinds + 1

    scores, kept = _best(suppressed(boxes, scores, heads.nms_thresh, labels), heads.detections_per_img)
    # From here on images have as many as are found, which the host needs: there is work to be saved.
    counts = (scores > NOTHING).sum(1).tolist()
    there = torch.cat([torch.arange(count) + number * kept.shape[1] for number, count in enumerate(counts)])
    there = on_device(there, device)

    def by_image(values: Tensor) -> Sequence[Tensor]:
        return values.flatten(0, 1)[there].split(counts)

    return by_image(_rows(boxes, kept)), by_image(scores), by_image(labels.gather(1, kept))


def _best(scores: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return the highest scores [B, n] of [B, N], at most so many, and where they are; of equal ones the first."""
    ranked, order = scores.sort(dim=1, descending=True, stable=True)
    return ranked[:, :most], order[:, :most]


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """Return [B, N, 4], rows [B, N] of tables [B, M, 4]."""
    return table.gather(1, index[..., None].expand(-1, -1, table.shape[2]))


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
