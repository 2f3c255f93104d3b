"""PKD: each channel of the student's pyramid correlates with a detector teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from student.config import StudentConfig
from student.detector import DetectorOutput, Student
from student.distillation.adapters import PyramidAdapters
from student.distillation.batch import DetectionBatch
from student.distillation.detector_teacher import DetectorTeacher
from student.distillation.method import DistillationMethod
from student.distillation.standardization import standardized
from training.objective import Loss

# Added to a channel's variance: one that is constant has no correlation, and a finite gradient.
_EPSILON = 1e-6


@dataclass(frozen=True, kw_only=True)
class PKDConfig:
    """How much PKD counts."""

    # Weight of the loss of each detector teacher; the authors' code has 6 for Faster R-CNN.
    weight: float = 3.0


class PKD(DistillationMethod):
    """Compares each level of the student's pyramid with the teacher's by Pearson's correlation, channel by channel.

    Cao et al. 2022, "PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient":
    1/2 of the mean squared difference of standardized features, which is 1 - r: 0 for a copy of any positive scale and
    any shift, 2 for its negative. It is the mean over cells, channels and images of a level, and then the sum over
    levels, without a mask.

    Not as there: a channel is standardized over the cells of one image, not over those of the batch, so that images do
    not depend on each other. The student's levels pass a 1x1 convolution each, always and without a bias, which
    would cancel; the authors compare pyramids of equal width as they are. A small number is added to the variance, not
    to the deviation. A channel that is constant in the teacher costs 1/2 and gives no gradient.

    student: whose pyramid it is
    detectors: the teachers, by their names
    """

    config: PKDConfig

    def __init__(self, config: PKDConfig, student: StudentConfig, detectors: Mapping[str, DetectorTeacher]) -> None:
        super().__init__()
        self.config = config
        self.adapters = PyramidAdapters(student, detectors, bias=False)

    def losses(
        self, student: Student, output: DetectorOutput, batch: DetectionBatch, progress: float
    ) -> dict[str, Loss]:
        """Return `pkd/<teacher>` of each detector teacher that was asked, over all images, labelled or not."""
        del student, progress
        losses = {}
        for name, teacher in batch.detectors.items():
            levels = zip(self.adapters.adapt(name, output.features.pyramid), teacher.pyramid, strict=True)
            distances = [correlation_distance(adapted, truth).mean() for adapted, truth in levels]
            losses[f"pkd/{name}"] = Loss(torch.stack(distances).sum(), self.config.weight)
        return losses


def correlation_distance(features: Tensor, truth: Tensor) -> Tensor:
    """Return 1 - r [B, C] of features [B, C, h, w] with others, over the cells of each image and channel."""
    own, other = (standardized(values, _EPSILON) for values in (features, truth))
    return (own - other).square().mean((2, 3)) / 2
