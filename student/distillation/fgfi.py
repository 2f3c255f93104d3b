"""FGFI: the student's pyramid imitates a detector teacher's near objects, where anchors overlap them most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from student.config import StudentConfig
from student.detector import DetectorOutput, Student
from student.distillation.adapters import PyramidAdapters
from student.distillation.batch import DetectionBatch
from student.distillation.detector_teacher import DetectorTeacher, DetectorTeacherOutput
from student.distillation.method import DistillationMethod
from student.matching import images_at_once
from training.boxes import pairwise_iou
from training.objective import Loss

# In this share of the training the weight rises from 0: at first the student's features mean nothing.
_RAMP = 0.05


@dataclass(frozen=True, kw_only=True)
class FGFIConfig:
    """How much FGFI counts, and where."""

    # Weight of the loss of each detector teacher.
    weight: float = 1.0
    # Cells count where an anchor overlaps an object by more than this share of what the best anchor does.
    psi: float = 0.5
    # On images without labels, what the teacher detects with more than this score stands for the objects.
    min_score: float = 0.5


class FGFI(DistillationMethod):
    """Compares student and teacher in cells near objects: fine-grained feature imitation.

    Wang et al. 2019, "Distilling Object Detectors with Fine-grained Feature Imitation". Of an object the IoUs with all
    anchors have a maximum M; the mask I is 1 in cells with an anchor whose IoU is above F = psi M, of any object. The
    loss is equation 2, 1 / (2 N) sum I (r(s) - t)² over cells and channels, with N the number of cells in the mask, a
    student's features s, a teacher's t and an adapter r; it is added with a weight to detection's (equation 3).

    Not as there, or not said there:
    - M is the maximum over the anchors of all levels of the pyramid, so that an object counts on levels of its scale.
      With a maximum of each level every object would count on all of them, in cells whose anchors hardly fit it. N
      counts the cells of all levels.
    - N is an image's own, and the loss the mean over the images of the batch, where one without objects counts 0:
      as with detection's losses, an image's share does not depend on the others. There, N is the batch's.
    - The sum is divided by the number of channels too, so that weights do not depend on the teacher's width.
    - The adapter is a 1x1 convolution for each level, without the ReLU of the authors' code: levels are signed.
    - The weight rises linearly in the first 5 % of the training; in the authors' code it is 0 for 400 steps.
    - On images without labels, the teacher's confident detections stand for the objects.

    The anchors are the student's, with those that cross the image's border; the boxes are augmented as the images are.

    student: whose pyramid it is
    detectors: the teachers, by their names
    """

    config: FGFIConfig

    def __init__(self, config: FGFIConfig, student: StudentConfig, detectors: Mapping[str, DetectorTeacher]) -> None:
        super().__init__()
        self.config = config
        self.adapters = PyramidAdapters(student, detectors)

    def losses(
        self, student: Student, output: DetectorOutput, batch: DetectionBatch, progress: float
    ) -> dict[str, Loss]:
        """Return `fgfi/<teacher>` of each detector teacher that was asked, over all images, labelled or not."""
        levels = output.features.pyramid
        anchors = student.rpn.anchors(levels, (batch.images.shape[-2], batch.images.shape[-1]))
        cells = sum(level.shape[-2] * level.shape[-1] for level in levels)
        labelled = self._mask(anchors, output.labels.boxes, cells)
        weight = self.config.weight * min(1.0, progress / _RAMP)
        losses = {}
        for name, teacher in batch.detectors.items():
            mask = labelled
            if len(batch.images) > len(labelled):
                boxes = self._confident_boxes(teacher, len(labelled))
                mask = torch.cat([labelled, self._mask(anchors, boxes, cells)])
            adapted = self.adapters.adapt(name, levels)
            losses[f"fgfi/{name}"] = Loss(imitation_losses(adapted, teacher.pyramid, mask).mean(), weight)
        return losses

    def _mask(self, anchors: Tensor, boxes: Tensor, cells: int) -> Tensor:
        return imitation_mask(anchors, boxes, self.config.psi, cells)

    def _confident_boxes(self, teacher: DetectorTeacherOutput, first: int) -> Tensor:
        """Return what the teacher detects in the images from `first` on, float32 [B, D, 4], 0 where it is not sure."""
        found = teacher.with_pyramid(tuple(level[first:] for level in teacher.pyramid)).detections
        return torch.where((found.scores > self.config.min_score)[..., None], found.boxes, 0.0)


@torch.no_grad()
def imitation_mask(anchors: Tensor, boxes: Tensor, psi: float, cells: int, *, constant: bool = False) -> Tensor:
    """Return bool [B, cells], the cells with an anchor whose IoU with any box of the image is above the threshold.

    anchors: float32 [A, 4], level after level, row after row, those of a cell together (`ProposalNetwork.anchors`)
    boxes: float32 [B, M, 4] in pixels; a box of zeros overlaps nothing
    psi: the threshold as a share of the best IoU of each box with any anchor; `constant`: the IoU itself
    cells: of all levels
    """
    masks = []
    for some in images_at_once(boxes, anchors):
        overlaps = pairwise_iou(boxes[some], anchors)
        above = overlaps > (psi if constant else psi * overlaps.amax(-1, keepdim=True))
        masks.append(above.any(1).unflatten(1, (cells, -1)).any(2))
    return torch.cat(masks)


def imitation_losses(adapted: Sequence[Tensor], truth: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Return the loss float32 [B] of each image: half the mean squared error over channels and the cells of its mask.

    adapted: float32 [B, C, h, w] of each level, what the student makes of the teacher's features
    truth: float32 [B, C, h, w] of each level, those features
    mask: bool [B, cells], level after level, row after row; an image without any has a loss of 0
    """
    errors = [(one - other).square().mean(1).flatten(1) for one, other in zip(adapted, truth, strict=True)]
    total = torch.cat(errors, 1).where(mask, 0.0).sum(1)
    return total / (2 * mask.sum(1).clamp(min=1))
