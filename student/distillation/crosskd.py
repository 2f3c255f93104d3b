"""CrossKD for box heads: a detector teacher's own head finds in the student's pyramid what it finds in its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from student.config import StudentConfig
from student.detector import DetectorOutput, Student
from student.distillation.adapters import PyramidAdapters
from student.distillation.batch import DetectionBatch
from student.distillation.detector_teacher import DetectorTeacher
from student.distillation.kd import softened_divergence
from student.distillation.method import DistillationMethod
from student.distillation.student_boxes import StudentBoxes
from training.objective import Loss

_EPSILON = 1e-6


@dataclass(frozen=True, kw_only=True)
class CrossKDConfig:
    """How much CrossKD counts; the defaults are those of the authors' Faster R-CNN."""

    # Weight of the loss of classes of each detector teacher.
    classification: float = 0.5
    # Weight of the loss of box regression.
    box: float = 1.0
    # Logits are divided by this before they are compared.
    temperature: float = 3.0


class CrossKD(DistillationMethod):
    """The teacher's frozen box head, given the student's pyramid, is to predict what it predicts from its own.

    Wang et al. 2024, "CrossKD: Cross-Head Knowledge Distillation for Object Detection", hands features from within the
    student's dense head to the rest of the teacher's. What is here follows the authors' code for Faster R-CNN, which
    the paper does not have: the whole box head is the teacher's, and both its predictions are for the student's
    boxes (`StudentBoxes`). The student's own heads, which labels alone teach, get no gradient, its pyramid and backbone
    do, through the teacher's head, whose parameters take none.

    classification: T² KL(p || q) of p = softmax(z / T) for the teacher's logits from its own pyramid and q for those
    from the student's; its sum over boxes is divided by their number.
    box: the absolute difference of the four deltas of the class, background aside, that the teacher's own logits give
    most probability w to (at T = 1); its sum over boxes, each weighted with its w, is divided by 4 Σ w.
    Both are of an image, of which the mean is taken; the code divides by the boxes of the whole batch.

    The student's levels pass a 1x1 convolution each to the teacher's width, without an activation; the code's pyramids
    have one width, and no adapter. As there, features are not matched to the teacher's mean and deviation first.

    student: whose pyramid it is
    detectors: the teachers, by their names
    """

    config: CrossKDConfig

    def __init__(self, config: CrossKDConfig, student: StudentConfig, detectors: Mapping[str, DetectorTeacher]) -> None:
        super().__init__()
        self.config = config
        self.adapters = PyramidAdapters(student, detectors)

    def losses(
        self, student: Student, output: DetectorOutput, batch: DetectionBatch, progress: float
    ) -> dict[str, Loss]:
        """Return `crosskd/<teacher>/classification` and `…/box` over all images, labelled or not."""
        del progress
        boxes = StudentBoxes.of(student, output, (batch.images.shape[-2], batch.images.shape[-1]))
        losses = {}
        for name, teacher in batch.detectors.items():
            truth = teacher.predict(boxes.boxes)
            crossed = teacher.detector.heads.predict(self.adapters.adapt(name, output.features.pyramid), boxes.boxes)
            divergence = softened_divergence(crossed.logits, truth.logits, self.config.temperature)
            probability, classes = truth.most_likely()
            deltas, expected = (predictions.deltas_of(classes) for predictions in (crossed, truth))
            box = boxes.mean((deltas - expected).abs().mean(-1), probability, least=_EPSILON)
            losses[f"crosskd/{name}/classification"] = Loss(boxes.mean(divergence), self.config.classification)
            losses[f"crosskd/{name}/box"] = Loss(box, self.config.box)
        return losses
