"""The student's way from one picture to its detections, in shapes that do not depend on what it sees.

`torch.export` cannot follow torchvision's way, which drops boxes as it goes and asks how many are left. Here nothing is
dropped before the last line: what torchvision would drop keeps its place, with a score below all others.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import clip_boxes_to_image, nms

from student.depth import decode_depth
from student.detector import Student

# What is dropped.
_NOTHING = -1.0
# torchvision drops detections with a shorter side.
_SHORTEST_PX = 1e-2
# Among more boxes torchvision looks at one group after the other; among fewer it moves the groups apart, which rounds.
_MANY_BOXES = 1000


class DetectionProgram(nn.Module):
    """A student for pictures uint8 [1, 3, H, W] of one size. Its weights are the student's own, not copies."""

    def __init__(self, student: Student, image_size: tuple[int, int]) -> None:
        """Prepare it for pictures of (height, width) pixels; raises StudentError where they do not divide into cells.

        The student is on the CPU, in eval mode.
        """
        super().__init__()
        self.student, self._image_size = student, image_size
        height, width = student.config.grid(*image_size)
        levels = [torch.empty(1, 1, height >> level, width >> level) for level in range(student.config.levels)]
        (anchors,) = student.rpn.anchor_generator(ImageList(torch.empty(1, 0, *image_size), [image_size]), levels)
        self._per_level = [
            level[0, 0].numel() * count
            for level, count in zip(levels, student.rpn.anchor_generator.num_anchors_per_location(), strict=True)
        ]
        self.register_buffer("anchors", anchors, persistent=False)

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what `Detections` holds: boxes [N, 4], classes [N], scores [N] and depth_m [N], the best first."""
        levels = dict(zip(self.student.level_names, self.student.features(picture).pyramid, strict=True))
        proposals, proposed = self._propose(levels)
        heads, config = self.student.heads, self.student.config

        pooled = heads.box_head(heads.box_roi_pool(levels, [proposals], [self._image_size]))
        logits, deltas = heads.box_predictor(pooled)
        # One group for each class but the background, one box of each proposal in it.
        boxes = clip_boxes_to_image(heads.box_coder.decode(deltas, [proposals]), self._image_size)[:, 1:]
        boxes = boxes.permute(1, 0, 2).reshape(-1, 4)
        scores = logits.softmax(-1)[:, 1:].T
        scores = torch.where(proposed & (scores > heads.score_thresh), scores, _NOTHING).flatten()
        scores = torch.where(_sides(boxes) >= _SHORTEST_PX, scores, _NOTHING)
        scores = _suppressed(boxes, scores, {n: len(proposals) for n in range(1, config.classes)}, heads.nms_thresh)

        best = scores.argsort(descending=True, stable=True)[: heads.detections_per_img]
        boxes, scores, classes = boxes[best], scores[best], best // len(proposals) + 1
        pooled = heads.box_head(heads.box_roi_pool(levels, [boxes], [self._image_size]))
        told = heads.depth_head(pooled, boxes, self._image_size).gather(1, classes[:, None])[:, 0]
        depth_m = decode_depth(told, config.max_depth_m)
        # The only shape that depends on the picture.
        found = (scores > _NOTHING).nonzero()[:, 0]
        return boxes[found], classes[found], scores[found], depth_m[found]

    def _propose(self, levels: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return float32 [P, 4] and bool [P]: the proposals, the best first, and which of them there really are."""
        network = self.student.rpn
        objectness, deltas = concat_box_prediction_layers(*network.head(list(levels.values())))
        boxes = network.box_coder.decode(deltas, [self.anchors])[:, 0]
        chosen, first = [], 0
        counts = [min(network.pre_nms_top_n(), count) for count in self._per_level]
        for count, everything in zip(counts, self._per_level, strict=True):
            chosen.append(first + objectness[first : first + everything, 0].topk(count).indices)
            first += everything
        best = torch.cat(chosen)
        boxes, scores = clip_boxes_to_image(boxes[best], self._image_size), objectness[best, 0].sigmoid()
        usable = (_sides(boxes) >= network.min_size) & (scores >= network.score_thresh)
        scores = torch.where(usable, scores, _NOTHING)
        scores = _suppressed(boxes, scores, dict(enumerate(counts)), network.nms_thresh)
        best = scores.argsort(descending=True, stable=True)[: network.post_nms_top_n()]
        return boxes[best], scores[best] > _NOTHING


def _sides(boxes: Tensor) -> Tensor:
    """Return the shorter side [N] of boxes [N, 4]."""
    return (boxes[:, 2:] - boxes[:, :2]).amin(1)


def _suppressed(boxes: Tensor, scores: Tensor, groups: Mapping[int, int], most_iou: float) -> Tensor:
    """Return the scores [N], those of boxes that overlap a better one of their group by more than `most_iou` lowered.

    groups: torchvision's number of each group, and how many of the boxes, one group after the other, belong to it
    """
    usable = scores > _NOTHING
    # As far apart as torchvision moves them, so that the overlaps are rounded alike.
    furthest = torch.where(usable[:, None], boxes, 0.0).amax() + 1
    apart = torch.where(usable.sum() > _MANY_BOXES, 0.0, furthest)
    kept, first = torch.zeros_like(usable), 0
    for number, count in groups.items():
        group = slice(first, first + count)
        best = nms(boxes[group] + number * apart, scores[group], most_iou)
        kept[first + best] = True
        first += count
    return torch.where(kept & usable, scores, _NOTHING)
