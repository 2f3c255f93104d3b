"""FitNet: the student's pyramid, by way of an adapter, comes close to a detector teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from student.config import StudentConfig
from student.detector import DetectorOutput, Student
from student.distillation.adapters import PyramidAdapters
from student.distillation.batch import DetectionBatch
from student.distillation.detector_teacher import DetectorTeacher
from student.distillation.method import DistillationMethod
from training.objective import Loss

# Log variances stay within. Without a bound the loss of features that match has no minimum.
_MOST_LOG_VARIANCE = 6.0
_EPSILON = 1e-6


@dataclass(frozen=True, kw_only=True)
class FitNetConfig:
    """How much FitNet counts."""

    # Weight of the loss of each detector teacher.
    weight: float = 1.0
    # Whether the squared error counts by a variance that is predicted of each cell (PAD).
    variance_weighted: bool = False


class FitNet(DistillationMethod):
    """Compares each level of the student's pyramid with the teacher's: hints, in all cells alike.

    Romero et al. 2015, "FitNets: Hints for Thin Deep Nets", equation 3: 1/2 |u(x) - r(v(x))|² for a teacher's feature
    map u, a student's v and a convolutional regressor r. Here r is a 1x1 convolution for each level without an
    activation, since the levels of a pyramid are signed; the squared error is the mean over images, channels and cells
    of a level, and then over levels; and it is minimized beside detection's losses from the first step on, not in a
    stage before.

    `variance_weighted`: (u - r(v))² / (e + exp(s)) + s, where a log variance s is predicted from v (Zhang et al. 2020,
    "Prime-Aware Adaptive Distillation"). Not as there: s is of a cell, not of each feature; it is bounded; it starts
    at 0, which is plain FitNet, instead of after a training with that.

    student: whose pyramid it is
    detectors: the teachers, by their names
    """

    config: FitNetConfig

    def __init__(self, config: FitNetConfig, student: StudentConfig, detectors: Mapping[str, DetectorTeacher]) -> None:
        super().__init__()
        self.config = config
        self.adapters = PyramidAdapters(student, detectors)
        self.log_variances = nn.ModuleDict()
        if config.variance_weighted:
            for name in detectors:
                self.log_variances[name] = nn.ModuleList(_zero(student.width) for _ in range(student.levels))

    def losses(
        self, student: Student, output: DetectorOutput, batch: DetectionBatch, progress: float
    ) -> dict[str, Loss]:
        """Return `fitnet/<teacher>` of each detector teacher that was asked, over all images, labelled or not."""
        del student, progress
        losses = {}
        for name, teacher in batch.detectors.items():
            pyramid = output.features.pyramid
            levels = zip(pyramid, self.adapters.adapt(name, pyramid), teacher.pyramid, strict=True)
            with torch.autocast(pyramid[0].device.type, enabled=False):
                errors = [self._error(name, number, *level) for number, level in enumerate(levels)]
            losses[f"fitnet/{name}"] = Loss(torch.stack(errors).mean(), self.config.weight)
        return losses

    def _error(self, name: str, level: int, features: Tensor, adapted: Tensor, truth: Tensor) -> Tensor:
        """Return the loss of features float32 [B, C, h, w] of a level, adapted to the teacher's [B, D, h, w]."""
        error = (adapted - truth).square()
        if not self.config.variance_weighted:
            return error.mean()
        predictors = self.log_variances[name]
        assert isinstance(predictors, nn.ModuleList)
        log_variance = _MOST_LOG_VARIANCE * (predictors[level](features) / _MOST_LOG_VARIANCE).tanh()
        return (error / (_EPSILON + log_variance.exp()) + log_variance).mean()


def _zero(width: int) -> nn.Conv2d:
    """Return a predictor of one number for each cell, at first 0."""
    predictor = nn.Conv2d(width, 1, 1)
    nn.init.zeros_(predictor.weight)
    assert predictor.bias is not None
    nn.init.zeros_(predictor.bias)
    return predictor
