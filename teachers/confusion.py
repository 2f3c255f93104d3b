"""How a teacher's classes compare with the lake's labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from teachers.classes import IGNORED


@dataclass(frozen=True, slots=True, eq=False)
class Confusion:
    """Counts of labels and predictions; the sum of two is that of both data sets together.

    counts: int64 [K, K], row: the label's class, column: the predicted one, on the CPU
    """

    counts: Tensor

    @staticmethod
    def empty(classes: int) -> Confusion:
        """Return the counts of nothing."""
        return Confusion(torch.zeros(classes, classes, dtype=torch.int64))

    @staticmethod
    def of(truth: Tensor, answer: Tensor, classes: int) -> Confusion:
        """Return the counts of labels and predictions of the same shape; where the label is IGNORED nothing counts."""
        truth, answer = truth.flatten().long(), answer.flatten().long()
        told = truth != IGNORED
        pairs = truth[told] * classes + answer[told]
        return Confusion(torch.bincount(pairs, minlength=classes * classes).view(classes, classes).cpu())

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(self.counts + other.counts)

    @property
    def total(self) -> int:
        """How many labels were compared."""
        return int(self.counts.sum())

    @property
    def trivial(self) -> Confusion:
        """The counts of always predicting the commonest label's class."""
        of_class = self.counts.sum(1)
        counts = torch.zeros_like(self.counts)
        counts[:, of_class.argmax()] = of_class
        return Confusion(counts)

    def accuracy(self) -> float:
        """Return the share of correct predictions, NaN where nothing was compared."""
        return float(self.counts.diagonal().sum() / self.counts.sum())

    def iou(self) -> Tensor:
        """Return float64 [K], intersection over union of each class, NaN for one that no label has."""
        of_class = self.counts.sum(1)
        right = self.counts.diagonal()
        union = of_class + self.counts.sum(0) - right
        return torch.where(of_class > 0, right / union.clamp(min=1).double(), torch.nan)

    def mean_iou(self) -> float:
        """Return the mean IoU over the classes that some label has."""
        return float(self.iou().nanmean())

    def metrics(self, class_names: Sequence[str]) -> dict[str, float]:
        """Return `accuracy`, `mIoU`, `IoU/<class>` of those that occur, and both `trivial/…`; {} of no labels."""
        if not self.total:
            return {}
        named = zip(class_names, self.iou().tolist(), strict=True)
        return {
            "accuracy": self.accuracy(),
            "mIoU": self.mean_iou(),
            "trivial/accuracy": self.trivial.accuracy(),
            "trivial/mIoU": self.trivial.mean_iou(),
            **{f"IoU/{name}": iou for name, iou in named if iou == iou},
        }
