"""Average precision of detected masks."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(eq=False)
class AveragePrecision:
    """Average precision at one mask IoU, per class: the area under precision as a function of recall.

    A detection is right if its mask's IoU with an instance of its class, in its image, is at least `min_iou`, and no
    more confident one was matched with that instance before. Precision is made monotonous and the area is exact (as in
    PASCAL VOC 2010 and later; COCO samples the same curve at 101 recalls).
    """

    class_names: tuple[str, ...]
    min_iou: float = 0.5
    _scores: list[Tensor] = field(default_factory=list)
    _labels: list[Tensor] = field(default_factory=list)
    _right: list[Tensor] = field(default_factory=list)
    _instances: list[Tensor] = field(default_factory=list)

    def add(self, scores: Tensor, labels: Tensor, masks: Tensor, true_labels: Tensor, true_masks: Tensor) -> None:
        """Count one image.

        scores: float32 [N], labels: int64 [N], masks: bool [N, H, W] of the detections
        true_labels: int64 [M], true_masks: bool [M, H, W] of the instances
        """
        order = scores.argsort(descending=True, stable=True)
        scores, labels = scores[order], labels[order]
        found, there = masks[order].flatten(1).float(), true_masks.flatten(1).float()
        shared = found @ there.T
        iou = shared / (found.sum(1)[:, None] + there.sum(1) - shared).clamp(min=1)
        iou = iou.where(labels[:, None] == true_labels, iou.new_zeros(()))
        right = torch.zeros(len(scores), dtype=torch.bool)
        for i in range(len(scores) if len(true_labels) else 0):
            best = int(iou[i].argmax())
            if iou[i, best] >= self.min_iou:
                right[i] = True
                iou[:, best] = 0
        self._scores.append(scores)
        self._labels.append(labels)
        self._right.append(right)
        self._instances.append(true_labels)

    def metrics(self) -> dict[str, float]:
        """Return `AP50` (the mean over classes that occur) and `AP50/<class>`; {} where no instance was seen."""
        if not self._scores:
            return {}
        scores, labels = torch.cat(self._scores), torch.cat(self._labels)
        right, instances = torch.cat(self._right), torch.cat(self._instances)
        name = f"AP{round(self.min_iou * 100)}"
        areas = {}
        for label, class_name in enumerate(self.class_names):
            count = int((instances == label).sum())
            if count:
                of_class = labels == label
                areas[f"{name}/{class_name}"] = _area(scores[of_class], right[of_class], count)
        return {name: sum(areas.values()) / len(areas), **areas} if areas else {}


def _area(scores: Tensor, right: Tensor, instances: int) -> float:
    """Return the area under the curve of detections [N] of which `right` [N] are."""
    hits = right[scores.argsort(descending=True, stable=True)].double()
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
    # Whoever stops later may have a better precision: the curve's envelope is taken.
    envelope = precision.flip(0).cummax(0).values.flip(0) if len(hits) else precision
    return float((envelope * hits).sum() / instances)
