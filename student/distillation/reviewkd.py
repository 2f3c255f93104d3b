"""ReviewKD: each level of a detector teacher's pyramid is compared with this and all deeper levels of the student's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from student.config import StudentConfig
from student.detector import DetectorOutput, Student
from student.distillation.batch import DetectionBatch
from student.distillation.detector_teacher import DetectorTeacher
from student.distillation.method import DistillationMethod
from student.layers import norm_layer
from training.objective import Loss

# Cells in height and in width that the context loss pools a level to, beside the level itself.
_POOLED = (4, 2, 1)


@dataclass(frozen=True, kw_only=True)
class ReviewKDConfig:
    """How much ReviewKD counts."""

    # Weight of the loss of each detector teacher.
    weight: float = 1.0


class ReviewKD(DistillationMethod):
    """Compares the teacher's pyramid with the student's, each level fused with what deeper ones have passed on.

    Chen et al. 2021, "Distilling Knowledge via Knowledge Review", section 3: the sum over levels j of D(U(s_j, r_j+1),
    t_j), with a student's features s, a teacher's t, attention-based fusion U (`ABF`), what it passes on r, none to the
    deepest level, and as distance D the `hierarchical_context_loss`. It is added with a weight to detection's losses
    from the first step on; 1 is the authors' for a Faster R-CNN with ResNet-50. All images count, labelled or not.

    Not as there: group norms stand for batch norms, so that an image's share does not depend on the others. All
    features have the teacher's width. Under autocast the fusions are computed as the student is, and compared in
    float32. The order of layers, how convolutions start, and the weights of the distance are those of the authors'
    code for detection.

    student: whose pyramid it is
    detectors: the teachers, by their names
    """

    config: ReviewKDConfig

    def __init__(
        self, config: ReviewKDConfig, student: StudentConfig, detectors: Mapping[str, DetectorTeacher]
    ) -> None:
        super().__init__()
        self.config = config
        deepest = student.levels - 1
        self.fusions = nn.ModuleDict(
            {
                name: nn.ModuleList(
                    ABF(student.width, teacher.config.width, deepest=level == deepest)
                    for level in range(student.levels)
                )
                for name, teacher in detectors.items()
            }
        )

    def losses(
        self, student: Student, output: DetectorOutput, batch: DetectionBatch, progress: float
    ) -> dict[str, Loss]:
        """Return `reviewkd/<teacher>` of each detector teacher that was asked, over all images, labelled or not."""
        del student, progress
        losses = {}
        for name, teacher in batch.detectors.items():
            levels = zip(self.fuse(name, output.features.pyramid), teacher.pyramid, strict=True)
            # Means over many cells differ little, and bfloat16 would round the differences away.
            distances = [hierarchical_context_loss(fused.output.float(), truth) for fused, truth in levels]
            losses[f"reviewkd/{name}"] = Loss(torch.stack(distances).sum(), self.config.weight)
        return losses

    def fuse(self, name: str, pyramid: Sequence[Tensor]) -> list[Fused]:
        """Return what is compared with each level of a teacher's, for a student's pyramid float32 [B, C, h, w]."""
        fusions = self.fusions[name]
        assert isinstance(fusions, nn.ModuleList)
        found: list[Fused] = []
        for fusion, level in zip(reversed(fusions), reversed(pyramid), strict=True):
            found.append(fusion(level, found[-1].passed_on if found else None))
        return found[::-1]


class Fused(NamedTuple):
    """A level of the student's, fused with the deeper ones.

    output: float [B, D, h, w], to be like the teacher's level
    passed_on: float [B, D, h, w], to the next level that is less deep
    gates: float [B, 2, h, w] within 0 … 1, how much the level itself and the deeper ones count; None at the deepest
    """

    output: Tensor
    passed_on: Tensor
    gates: Tensor | None


class ABF(nn.Module):
    """Attention-based fusion (ABF) of a level with what the next deeper one passes on.

    x = norm(conv1x1(level)); y is what was passed on, as large as x by nearest neighbors; two gates
    g = sigmoid(conv1x1([x, y])) for each cell, which need not add up to 1. x g_0 + y g_1 is passed on, and is, after a
    3x3 convolution and a norm, the output. The deepest level passes x on.
    """

    def __init__(self, inputs: int, width: int, *, deepest: bool) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(inputs, width, 1, bias=False), norm_layer("group", width))
        self.gate = None if deepest else nn.Conv2d(2 * width, 2, 1)
        self.predict = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), norm_layer("group", width))
        for convolution in (self.reduce[0], self.predict[0]):
            assert isinstance(convolution, nn.Conv2d)
            nn.init.kaiming_uniform_(convolution.weight, a=1)

    def forward(self, level: Tensor, deeper: Tensor | None) -> Fused:
        """Return the fusion of level [B, C, h, w] with what was passed on [B, D, …], None to the deepest level."""
        features, gates = self.reduce(level), None
        if self.gate is not None:
            assert deeper is not None
            # On a GPU autocast would make float32 of what is only copied.
            with torch.autocast(deeper.device.type, enabled=False):
                deeper = interpolate(deeper, features.shape[-2:], mode="nearest")
            gates = self.gate(torch.cat([features, deeper], 1)).sigmoid()
            features = features * gates[:, :1] + deeper * gates[:, 1:]
        return Fused(self.predict(features), features, gates)


def hierarchical_context_loss(found: Tensor, truth: Tensor) -> Tensor:
    """Return the hierarchical context loss (HCL) of features [B, C, h, w] and [B, C, h, w], a scalar.

    The sum of the mean squared error, and of those of means over 4 x 4, 2 x 2 and 1 x 1 parts of the image where h is
    more than that, with weights of 1, and 1/2, 1/4 and 1/8 in the order in which there are any, divided by the sum of
    the weights.
    """
    # The difference of means is the mean of differences, and rounds less.
    error = found - truth
    total, weights = error.square().mean(), 1.0
    weight = 1.0
    for parts in _POOLED:
        if parts < error.shape[-2]:
            weight /= 2
            total = total + weight * adaptive_avg_pool2d(error, parts).square().mean()
            weights += weight
    return total / weights
