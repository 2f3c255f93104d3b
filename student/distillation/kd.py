"""Knowledge distillation of classes: the student and a detector teacher judge the same boxes of the student's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from student.depth import encode_depth
from student.detector import DetectorOutput, Student
from student.distillation.batch import DetectionBatch
from student.distillation.detector_teacher import DetectorTeacherOutput
from student.distillation.method import DistillationMethod
from student.distillation.student_boxes import StudentBoxes
from student.roi_heads import RoIPredictions
from training.objective import Loss


@dataclass(frozen=True, kw_only=True)
class KDConfig:
    """How much knowledge distillation counts."""

    # Weight of the loss of classes of each detector teacher.
    weight: float = 1.0
    # Logits are divided by this before they are compared.
    temperature: float = 1.0
    # Weight of the loss of depths, which is ours; 0: depths are not compared.
    depth: float = 0.0


class KD(DistillationMethod):
    """The teacher's box head gives the student's boxes soft classes, which the student's box head is to give them too.

    Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", equation 1 and section 2, for detection as the
    authors of ReviewKD (Chen et al. 2021) describe their baseline: T² KL(p_T || p_S) with p = softmax(z / T) over the
    classes, of which the background is number 0. Its sum over an image's boxes is divided by their number, and then
    comes the mean over images; the baseline divides by the boxes of the whole batch. No class counts more than another.
    Neither temperature nor weight of the baseline was published; 1 is that of the later detection codes.

    The boxes are the student's (`StudentBoxes`), constants. Teacher logits are constants, too: the student's
    classifier, box head, pyramid and backbone learn, its proposals and box regression do not.

    `depth`, which no paper has: smooth L1 between the encoded depths of the class, background aside, that the teacher
    gives most probability to. A box counts by that probability, and by the sum of these is divided, or by 1 where it is
    less. Of what is surely background nobody knows a depth.
    """

    config: KDConfig

    def __init__(self, config: KDConfig) -> None:
        super().__init__()
        self.config = config

    def losses(
        self, student: Student, output: DetectorOutput, batch: DetectionBatch, progress: float
    ) -> dict[str, Loss]:
        """Return `kd/<teacher>`, and with a weight `kd/<teacher>/depth`, over all images, labelled or not."""
        del progress
        image_size = (batch.images.shape[-2], batch.images.shape[-1])
        boxes = StudentBoxes.of(student, output, image_size)
        predicted = _predictions(student, output, boxes)
        losses = {}
        for name, teacher in batch.detectors.items():
            truth = teacher.predict(boxes.boxes)
            divergence = softened_divergence(predicted.logits, truth.logits, self.config.temperature)
            losses[f"kd/{name}"] = Loss(boxes.mean(divergence), self.config.weight)
            if self.config.depth:
                error, probability = _depth_error(student, predicted, teacher, truth, boxes.boxes, image_size)
                losses[f"kd/{name}/depth"] = Loss(boxes.mean(error, probability), self.config.depth)
        return losses


def softened_divergence(logits: Tensor, truth: Tensor, temperature: float) -> Tensor:
    """Return T² KL(p || q) [...] for q = softmax(logits / T) and p = softmax(truth / T), both [..., M].

    As T grows, it comes to |z_T - z_S|² / 2M for logits z of mean 0 (Hinton et al. 2015, equation 4).
    """
    predicted, expected = ((values / temperature).log_softmax(-1) for values in (logits, truth))
    return temperature**2 * (expected.exp() * (expected - predicted)).sum(-1)


def _predictions(student: Student, output: DetectorOutput, boxes: StudentBoxes) -> RoIPredictions:
    """Return what the student's box head predicts of its boxes; of the labelled images' it has done so already."""
    known = output.predictions
    labelled = len(known.logits)
    if labelled == len(boxes.boxes):
        return known
    levels = [level[labelled:] for level in output.features.pyramid]
    others = student.heads.predict(levels, boxes.boxes[labelled:])
    return RoIPredictions(
        torch.cat([known.pooled, others.pooled]),
        torch.cat([known.logits, others.logits]),
        torch.cat([known.deltas, others.deltas]),
    )


def _depth_error(
    student: Student,
    predicted: RoIPredictions,
    teacher: DetectorTeacherOutput,
    truth: RoIPredictions,
    boxes: Tensor,
    image_size: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Return the error [B, S] of the student's encoded depths, and the teacher's probability of their classes."""
    probability, classes = truth.most_likely()
    depths = student.heads.encoded_depths(predicted.pooled, boxes, image_size)
    # Each encodes by its own longest depth.
    expected = encode_depth(teacher.depths_m(truth, boxes), student.config.max_depth_m)
    depths, expected = (values.gather(2, classes[..., None])[..., 0] for values in (depths, expected))
    return smooth_l1_loss(depths, expected, beta=student.config.depth_beta, reduction="none"), probability
