"""RoI heads: class, box and depth of each proposal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, smooth_l1_loss
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import clip_boxes_to_image

from student.box_loss import box_loss
from student.config import StudentConfig
from student.depth import decode_depth, encode_depth
from student.detections import Detections
from student.labels import Labels
from student.matching import match_boxes, without_ignored
from student.rpn import Proposals
from student.sampling import rows_of, sample
from training.boxes import Weights, decode_boxes, encode_boxes, shorter_sides
from training.pooling import LevelPool, rois_of
from training.suppression import NOTHING, suppressed

_POSITIVE_SHARE = 0.25
_OBJECT_IOU = 0.5
_BOX_BETA = 1 / 9
_WEIGHTS: Weights = (10.0, 10.0, 5.0, 5.0)
_SUPPRESSING_IOU = 0.5
_SHORTEST_PX = 1e-2
_GEOMETRY = 6


class BoxPredictor(FastRCNNPredictor):
    """torchvision's classifier and box regression; the outputs are float32 whatever they are computed in."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return class logits [N, M] and box deltas [N, 4M] for features [N, C]."""
        logits, deltas = super().forward(x)
        return logits.float(), deltas.float()


class DepthHead(nn.Module):
    """Predicts a depth for each class (paper, section 3.2: one depth per class and detection).

    The default student also gets the box: pooled features have lost where in the image, and how large, an object
    is, which on a road determines most of its distance. The paper's does not. All of this is float32 under autocast as
    well: bfloat16 would round a box's lower edge, and with it the distance, to whole pixels.
    """

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self._sees_box = config.depth_sees_box
        inputs = config.head_width + (_GEOMETRY if self._sees_box else 0)
        self.hidden = nn.Linear(inputs, config.head_width // 2)
        self.predictor = nn.Linear(config.head_width // 2, config.classes)
        # The initial prediction is a medium depth rather than 0.
        nn.init.constant_(self.predictor.bias, 0.7)

    def forward(self, features: Tensor, boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Return encoded depths float32 [N, M] of boxes [N, 4], whose pooled features are [N, C]."""
        features = features.float()
        if self._sees_box:
            features = torch.cat([features, _geometry(boxes, image_size)], 1)
        with torch.autocast(features.device.type, enabled=False):
            predicted: Tensor = self.predictor(self.hidden(features).relu())
        return predicted


@dataclass(frozen=True, slots=True, eq=False)
class RoIs:
    """S of the proposals and labelled boxes of each of B images, which are sampled for the losses.

    boxes: float32 [B, S, 4]
    classes: int64 [B, S], 0 background; -1 where an image has too few boxes, and no loss belongs there
    object_boxes: float32 [B, S, 4], the labelled box that each of them is to find, where its class is above 0
    depth_m: float32 [B, S], how far away that is, NaN where it is not known
    weight: float32 [B, S], how much each counts in the losses; None: all the same
    """

    boxes: Tensor
    classes: Tensor
    object_boxes: Tensor
    depth_m: Tensor
    weight: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class RoIPredictions:
    """The box head's predictions for S RoIs of each of B images.

    pooled: float [B, S, head_width], the features that all predictions are computed from
    logits: float32 [B, S, M] of the classes, with the background
    deltas: float32 [B, S, 4M], the box of each class
    """

    pooled: Tensor
    logits: Tensor
    deltas: Tensor

    def most_likely(self) -> tuple[Tensor, Tensor]:
        """Return float32 and int64 [B, S]: the most probability of a class but the background, and which class that is.

        The background has its share of the probabilities.
        """
        probability, column = self.logits.softmax(-1)[..., 1:].max(-1)
        return probability, column + 1

    def deltas_of(self, classes: Tensor) -> Tensor:
        """Return float32 [B, S, 4], the deltas of one class int64 [B, S] of each RoI."""
        column = classes[..., None, None].expand(-1, -1, 1, 4)
        return self.deltas.view(*classes.shape, -1, 4).gather(2, column)[:, :, 0]


@dataclass(frozen=True, slots=True, eq=False)
class BatchDetections:
    """At most D objects in each of B images, the most confident first; a score of NOTHING where there is none.

    boxes: float32 [B, D, 4]; classes: int64 [B, D]; scores: float32 [B, D]
    """

    boxes: Tensor
    classes: Tensor
    scores: Tensor

    @property
    def valid(self) -> Tensor:
        """Bool [B, D], where there is an object."""
        return self.scores > NOTHING


class DepthRoIHeads(nn.Module):
    """Faster R-CNN's second stage (Ren et al. 2015) with a depth per class, all images of a batch at once.

    Losses are divided by the fixed size of a sample, so that an image's share does not depend on the others. The
    depth's is the mean over positive boxes with a known depth: a box without a lidar point has no depth loss.
    """

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.pool = LevelPool(config.stride)
        self.box_head = TwoMLPHead(config.width * self.pool.cells**2, config.head_width)
        self.box_predictor = BoxPredictor(config.head_width, config.classes)
        self.depth_head = DepthHead(config)
        self._size = config.roi_batch
        self._min_score, self._most = config.min_score, config.detections
        self._depth_beta = config.depth_beta
        self._max_depth_m = config.max_depth_m

    def candidates(self, proposals: Proposals, labels: Labels) -> list[int]:
        """Return how many places for boxes of each image the losses choose from: keys are to be drawn for so many."""
        return [proposals.boxes.shape[1] + max(1, count) for count in labels.counts]

    @torch.no_grad()
    def choose(self, proposals: Proposals, labels: Labels, keys: Tensor) -> RoIs:
        """Return a sample of the proposals and the labelled boxes, with nothing as background that is ignored.

        keys: int64 [B, N], see `draw_keys`, for each of the image's `candidates`
        """
        boxes = torch.cat([proposals.boxes, labels.boxes], 1)
        matches = match_boxes(labels.boxes, labels.valid, boxes, high=_OBJECT_IOU, low=_OBJECT_IOU)
        matches = without_ignored(matches, labels.ignored, boxes, low=_OBJECT_IOU)
        label = torch.where(torch.cat([proposals.valid, labels.valid], 1), matches.label, -1)
        drawn = sample(label, keys, self._size, _POSITIVE_SHARE)
        index = matches.index.gather(1, drawn.index)
        positive = (label.gather(1, drawn.index) > 0) & drawn.valid
        weight = None if labels.weight is None else torch.where(positive, labels.weight.gather(1, index), 1.0)
        return RoIs(
            rows_of(boxes, drawn.index),
            torch.where(positive, labels.classes.gather(1, index), torch.where(drawn.valid, 0, -1)),
            rows_of(labels.boxes, index),
            labels.depth_m.gather(1, index),
            weight,
        )

    def predict(self, levels: Sequence[Tensor], boxes: Tensor) -> RoIPredictions:
        """Return what the box head says of boxes [B, S, 4] in the images of levels [B, C, h, w]."""
        pooled = self.box_head(self.pool(levels, rois_of(boxes)))
        logits, deltas = self.box_predictor(pooled)
        shape = boxes.shape[:2]
        return RoIPredictions(pooled.view(*shape, -1), logits.view(*shape, -1), deltas.view(*shape, -1))

    def encoded_depths(self, pooled: Tensor, boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Return float32 [B, S, M], the depth of each class of boxes [B, S, 4] with pooled features [B, S, C]."""
        depths: Tensor = self.depth_head(pooled.flatten(0, 1), boxes.flatten(0, 1), image_size)
        return depths.view(*boxes.shape[:2], -1)

    def losses(self, predictions: RoIPredictions, rois: RoIs, image_size: tuple[int, int]) -> dict[str, Tensor]:
        """Return the losses `classification`, `box` and `depth`, means over the images, each RoI times its weight."""
        logits = predictions.logits.flatten(0, 1)
        classes, images = rois.classes, len(rois.classes)
        rows = self._size * images
        positive = classes > 0
        predicted = predictions.deltas_of(classes.clamp(min=0))
        truth = encode_boxes(rois.object_boxes, rois.boxes, _WEIGHTS)
        # Taken out before anything is computed from them: of what is not an object's there may be no logarithm.
        predicted, truth = (torch.where(positive[..., None], values, 0.0) for values in (predicted, truth))
        box = box_loss(predicted, truth, _BOX_BETA, rois.weight)
        if rois.weight is None:
            classification = cross_entropy(logits, classes.flatten(), ignore_index=-1, reduction="sum")
        else:
            each = cross_entropy(logits, classes.flatten(), ignore_index=-1, reduction="none")
            classification = (each * rois.weight.flatten()).sum()
        return {
            "classification": classification / rows,
            "box": box / rows,
            "depth": self._depth_loss(predictions.pooled.flatten(0, 1), rois, image_size),
        }

    def _depth_loss(self, pooled: Tensor, rois: RoIs, image_size: tuple[int, int]) -> Tensor:
        known = (rois.classes > 0) & rois.depth_m.isfinite()
        predicted = self.depth_head(pooled, rois.boxes.flatten(0, 1), image_size).view(*known.shape, -1)
        predicted = predicted.gather(2, rois.classes.clamp(min=0)[..., None])[..., 0]
        truth = encode_depth(rois.depth_m, self._max_depth_m)
        predicted, truth = (torch.where(known, values, 0.0) for values in (predicted, truth))
        error = smooth_l1_loss(predicted, truth, beta=self._depth_beta, reduction="none")
        error = (error if rois.weight is None else error * rois.weight).sum(1)
        return (error / known.sum(1).clamp(min=1)).mean()

    def find(self, levels: Sequence[Tensor], proposals: Proposals, image_size: tuple[int, int]) -> BatchDetections:
        """Return the objects that the images of levels [B, C, h, w] show."""
        predictions = self.predict(levels, proposals.boxes)
        return detections_of(predictions, proposals, image_size, self._min_score, self._most)

    def depths_m(self, levels: Sequence[Tensor], rois: Tensor, classes: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Return the depths [K] of rois [K, 5] of these classes [K], for final boxes as Mask R-CNN predicts masks."""
        predicted: Tensor = self.depth_head(self.box_head(self.pool(levels, rois)), rois[:, 1:], image_size)
        return decode_depth(predicted.gather(1, classes[:, None])[:, 0], self._max_depth_m)

    def detect(self, levels: Sequence[Tensor], proposals: Proposals, image_size: tuple[int, int]) -> list[Detections]:
        """Return what is found in each image."""
        found = self.find(levels, proposals, image_size)
        counts = found.valid.sum(1).tolist()
        boxes, classes, scores = (
            torch.cat([one[:count] for one, count in zip(values, counts, strict=True)])
            for values in (rois_of(found.boxes).view(*found.classes.shape, 5), found.classes, found.scores)
        )
        depths_m = self.depths_m(levels, boxes, classes, image_size)
        each = zip(*(values.split(counts) for values in (boxes[:, 1:], classes, scores, depths_m)), strict=True)
        return [Detections(*one) for one in each]


def detections_of(
    predictions: RoIPredictions, proposals: Proposals, image_size: tuple[int, int], min_score: float, most: int
) -> BatchDetections:
    """Return what a box head's predictions for the proposals find in images of (height, width) pixels.

    min_score: of a detection, more than that; most: detections of an image
    """
    shape = proposals.valid.shape
    # One group for each class but the background, one box of each proposal in it: [B, M - 1, P].
    boxes = decode_boxes(predictions.deltas.view(*shape, -1, 4), proposals.boxes[:, :, None], _WEIGHTS)
    boxes = clip_boxes_to_image(boxes, image_size)[:, :, 1:].transpose(1, 2)
    scores = predictions.logits.softmax(-1)[..., 1:].transpose(1, 2)
    usable = proposals.valid[:, None] & (scores > min_score) & (shorter_sides(boxes) >= _SHORTEST_PX)
    scores = suppressed(boxes, torch.where(usable, scores, NOTHING), _SUPPRESSING_IOU).flatten(1)
    best = scores.argsort(dim=1, descending=True, stable=True)[:, : min(most, scores.shape[1])]
    classes = torch.div(best, shape[1], rounding_mode="floor") + 1
    return BatchDetections(rows_of(boxes.flatten(1, 2), best), classes, scores.gather(1, best))


def _geometry(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Return float32 [N, 6]: the boxes' edges as shares of the image, and the logarithms of width and height."""
    height, width = image_size
    shares = torch.stack([boxes[:, 0::2].float() / width, boxes[:, 1::2].float() / height], 2).flatten(1)
    sizes = (shares[:, 2:] - shares[:, :2]).clamp(min=1e-3).log()
    return torch.cat([shares, sizes], 1)
