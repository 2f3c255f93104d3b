"""The region proposal network, whose losses do not depend on how a batch is cut among workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, pad
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RPNHead, concat_box_prediction_layers
from torchvision.ops import clip_boxes_to_image

from student.box_loss import box_loss
from student.config import StudentConfig
from student.labels import Labels
from student.matching import match_boxes, without_ignored
from student.sampling import rows_of, sample
from training.boxes import Weights, decode_boxes, encode_boxes, shorter_sides
from training.suppression import NOTHING, suppressed

_POSITIVE_SHARE = 0.5
_BETA = 1 / 9
_WEIGHTS: Weights = (1.0, 1.0, 1.0, 1.0)
_BACKGROUND_IOU = 0.3
_SUPPRESSING_IOU = 0.7
_SHORTEST_PX = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class Proposals:
    """At most P boxes of each of B images, the most likely objects first.

    boxes: float32 [B, P, 4], x0, y0, x1, y1 in pixels, within the image; 0 where there is none
    valid: bool [B, P], where there is one
    """

    boxes: Tensor
    valid: Tensor


class ProposalHead(RPNHead):
    """torchvision's head; its outputs are float32 whatever it is computed in.

    bfloat16 resolves the columns of an image to two pixels only.
    """

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return objectness [B, A, h, w] and box deltas [B, 4A, h, w] of each level."""
        objectness, deltas = super().forward(x)
        return [level.float() for level in objectness], [level.float() for level in deltas]


class ProposalNetwork(nn.Module):
    """Faster R-CNN's first stage (Ren et al. 2015), all images of a batch at once.

    The losses are sums over the sampled anchors divided by the size of a sample, then means over images; torchvision
    divides by the anchors sampled in the whole batch, which makes an image's share depend on the others.
    """

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.anchor_generator = anchor_generator(config)
        self._per_cell = len(self.anchor_generator.cell_anchors[0])
        self.head = ProposalHead(config.width, self._per_cell)
        self._object_iou = config.rpn_positive_iou
        self._size = config.rpn_batch
        self._most = config.proposals
        # Of the last size of images: most often that of all of them.
        self._anchors: tuple[object, Tensor] | None = None

    def anchors(self, levels: Sequence[Tensor], image_size: tuple[int, int]) -> Tensor:
        """Return the anchors float32 [A, 4] of images of (height, width) pixels, level after level."""
        made_for = (image_size, tuple(level.shape[-2:] for level in levels), levels[0].device)
        if self._anchors is None or self._anchors[0] != made_for:
            # Only the size is used.
            image = ImageList(torch.empty(1, 0, *image_size, device=levels[0].device), [image_size])
            self._anchors = made_for, self.anchor_generator(image, list(levels))[0]
        return self._anchors[1]

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return objectness [B, A] and box deltas [B, A, 4], float32, of all anchors of levels [B, C, h, w]."""
        objectness, deltas = concat_box_prediction_layers(*self.head(list(levels)))
        return objectness.view(len(levels[0]), -1), deltas.view(len(levels[0]), -1, 4)

    @torch.no_grad()
    def propose(
        self,
        objectness: Tensor,
        deltas: Tensor,
        anchors: Tensor,
        levels: Sequence[Tensor],
        image_size: tuple[int, int],
    ) -> Proposals:
        """Return what `forward` and `anchors` have made of the levels as boxes, each of which is proposed once."""
        per_level = [level.shape[-2] * level.shape[-1] * self._per_cell for level in levels]
        counts = [min(2 * self._most, count) for count in per_level]
        chosen, real, first = [], [], 0
        for count, everything in zip(counts, per_level, strict=True):
            best = objectness[:, first : first + everything].topk(count, 1).indices
            # Each level is a group of its own, and all groups are of one size.
            chosen.append(pad(first + best, (0, max(counts) - count)))
            real.append(pad(torch.ones_like(best, dtype=torch.bool), (0, max(counts) - count)))
            first += everything
        index = torch.stack(chosen, 1)
        boxes = decode_boxes(rows_of(deltas, index.flatten(1)).view(*index.shape, 4), anchors[index], _WEIGHTS)
        boxes = clip_boxes_to_image(boxes, image_size)
        scores = objectness.gather(1, index.flatten(1)).view_as(index).sigmoid()
        # What is not a number is not proposed.
        usable = torch.stack(real, 1) & (shorter_sides(boxes) >= _SHORTEST_PX) & (scores >= 0)
        scores = suppressed(boxes, torch.where(usable, scores, NOTHING), _SUPPRESSING_IOU).flatten(1)
        order = scores.argsort(dim=1, descending=True, stable=True)[:, : min(self._most, sum(counts))]
        valid = scores.gather(1, order) > NOTHING
        return Proposals(torch.where(valid[..., None], rows_of(boxes.flatten(1, 2), order), 0.0), valid)

    def losses(
        self, objectness: Tensor, deltas: Tensor, anchors: Tensor, labels: Labels, keys: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the losses of objectness [B, A] and box deltas [B, A, 4] of the anchors [A, 4], means over images.

        keys: int64 [B, A], see `draw_keys`

        An object's anchors count by its weight. Anchors of ignored boxes are neither objects nor background.
        """
        matches = match_boxes(
            labels.boxes, labels.valid, anchors, high=self._object_iou, low=_BACKGROUND_IOU, every_object=True
        )
        matches = without_ignored(matches, labels.ignored, anchors, low=_BACKGROUND_IOU, every_object=True)
        drawn = sample(matches.label, keys, self._size, _POSITIVE_SHARE)
        positive = (matches.label.gather(1, drawn.index) >= 1) & drawn.valid
        object_of = matches.index.gather(1, drawn.index)
        anchors_looked_at = self._size * len(objectness)
        counted, weight = drawn.valid.float(), None
        if labels.weight is not None:
            weight = torch.where(positive, labels.weight.gather(1, object_of), counted)
            counted = weight
        found = binary_cross_entropy_with_logits(
            objectness.gather(1, drawn.index), positive.float(), weight=counted, reduction="sum"
        )
        truth = encode_boxes(rows_of(labels.boxes, object_of), anchors[drawn.index], _WEIGHTS)
        # Taken out before anything is computed from them: of what is not an object's there may be no logarithm.
        predicted, truth = (
            torch.where(positive[..., None], values, 0.0) for values in (rows_of(deltas, drawn.index), truth)
        )
        boxes = box_loss(predicted, truth, _BETA, weight)
        return found / anchors_looked_at, boxes / anchors_looked_at


def anchor_generator(config: StudentConfig) -> AnchorGenerator:
    """Return torchvision's generator of the configuration's anchors; its `cell_anchors` are those about each cell."""
    shapes = config.anchors
    generator = AnchorGenerator(shapes.sizes, (shapes.ratios,) * len(shapes.sizes))
    if shapes.half_cells:
        generator.cell_anchors = [
            torch.cat([anchors, anchors + (config.stride << level) / 2])
            for level, anchors in enumerate(generator.cell_anchors)
        ]
    return generator
