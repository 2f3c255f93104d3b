"""The student's objective: detection's losses, and those of the distillation methods that are on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from student.augmentation import Augmentation
from student.config import StudentError
from student.detector import Student
from student.distillation.batch import DetectionBatch, collate
from student.distillation.controls import (
    Targets,
    random_features,
    random_targets,
    shuffled_features,
    shuffled_labels,
    shuffled_targets,
)
from student.distillation.detector_teacher import DetectorTeacher
from student.distillation.method import DistillationMethod
from teachers.target import Target
from training.fingerprint import Plain, flatten
from training.generators import Chance
from training.objective import Batch, Loss, Objective, ParameterGroup


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weights of the detection losses: 1 throughout in the paper.

    Boxes have few positives and are learned faster with a larger weight.
    """

    # Classification of anchors as object or background.
    objectness: float = 1.0
    # Box regression of the proposals.
    rpn_box: float = 3.0
    # Classification of the detections.
    classification: float = 1.0
    # Box regression of the detections.
    box: float = 2.0
    # Depth of the detections.
    depth: float = 1.0


class DetectionObjective(Objective):
    """Trains a student with its labels and by distillation.

    methods: by their names
    targets: `shuffled` and `random` give the methods targets that say nothing true; controls. `shuffled` also gives
        each image with auto-labels those of another
    auto_labels: the samples that are not labelled have auto-labels, and the detection losses are of all samples
    detectors: detector teachers by their names, asked once a step about its images, after augmentation. They go where
        the objective goes, and are neither among its parameters nor in its state dict
    """

    def __init__(
        self,
        student: Student,
        weights: LossWeights,
        methods: Mapping[str, DistillationMethod],
        augmentation: Augmentation | None = None,
        targets: Targets = "real",
        detectors: Mapping[str, DetectorTeacher] | None = None,
        *,
        auto_labels: bool = False,
    ) -> None:
        super().__init__()
        self.student, self.weights = student, weights
        self.methods = nn.ModuleDict(methods)
        self.augmentation, self.targets = augmentation or Augmentation(), targets
        self.detectors = dict(detectors or {})
        self.auto_labels = auto_labels

    def collate(self, batch: Batch, targets: Mapping[str, Target], chance: Chance) -> DetectionBatch:
        """Return the step's batch: images and labels augmented, targets as the control has them."""
        if self.targets == "shuffled":
            targets = shuffled_targets(targets)
        elif self.targets == "random":
            channels = {spec.name: spec.channels for spec in self.student.config.branches}
            targets = random_targets(targets, channels, chance)
        device = next(self.student.parameters()).device
        samples, labelled = batch.samples, batch.labelled
        if self.auto_labels:
            if self.targets == "shuffled":
                samples = shuffled_labels(samples, labelled)
            labelled = len(samples)
        return collate(samples, labelled, targets, chance, self.augmentation, device)

    def forward(self, batch: DetectionBatch, progress: float) -> dict[str, Loss]:
        """Return the losses of detection, then of each method.

        Raises StudentError where a target does not fit the student's branches.
        """
        output = self.student.training_output(batch.images, batch.labels, batch.generators)
        losses = {name: Loss(value, getattr(self.weights, name)) for name, value in output.losses.items()}
        batch = self._with_detectors(batch)
        for name, method in self._methods():
            of_method = method.losses(self.student, output, batch, progress)
            if twice := losses.keys() & of_method.keys():
                raise StudentError(f"method {name}: there is a loss {min(twice)} already")
            losses |= of_method
        return losses

    def diagnostics(self, batch: DetectionBatch, progress: float) -> dict[str, Tensor]:
        """Return `gradient_ratio/<method>` of each method that compares pyramids or what is made of them.

        The norm of the gradient of the method's weighted losses with respect to the pyramid, of all levels together,
        over that of detection's losses: a method much above 1 decides what the backbone learns. Imitation has none: its
        losses come before the pyramid.

        And `fusion/<branch>/weight` and `/gradient`, see `Backbone.selection`, where there are branches to select from.

        The proposals are drawn anew. Running statistics of batch norms stay as the step left them.
        """
        selected = self.student.backbone.selection() if self.student.config.branches else {}
        found = {f"fusion/{name}": share for name, share in selected.items()}
        if not any(method.compares_pyramids for _, method in self._methods()):
            return found
        with _keeping_statistics(self):
            output = self.student.training_output(batch.images, batch.labels, batch.generators)
            batch = self._with_detectors(batch)
            pyramid = output.features.pyramid
            own = [Loss(value, getattr(self.weights, name)) for name, value in output.losses.items()]
            detection = _norm(own, pyramid)
            ratios = {}
            for name, method in self._methods():
                if method.compares_pyramids:
                    losses = method.losses(self.student, output, batch, progress)
                    ratios[f"gradient_ratio/{name}"] = _norm(losses.values(), pyramid) / detection
            return found | ratios

    def after_step(self, progress: float) -> None:
        """Call the methods' `after_step`."""
        for _, method in self._methods():
            method.after_step(self.student, progress)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the student's, and those of each method that has any."""
        student = self.student
        groups = [
            ParameterGroup(
                "student", list(student.parameters()), student.hidden_weights(), student.pretrained_weights()
            )
        ]
        for name, method in self._methods():
            if trained := [parameter for parameter in method.parameters() if parameter.requires_grad]:
                groups.append(ParameterGroup(name, trained, []))
        return groups

    def product(self) -> Student:
        """Return the student."""
        return self.student

    def config(self) -> str:
        """Return the student's configuration as JSON."""
        return self.student.config.to_json()

    def fingerprint(self) -> dict[str, Plain]:
        """Return the student's architecture, the detector teachers' weights, and what the methods say decides."""
        fingerprint = {f"student.{name}": value for name, value in flatten(self.student.config).items()}
        fingerprint |= {f"teacher.{name}": teacher.weights_sha256 for name, teacher in self.detectors.items()}
        for name, method in self._methods():
            fingerprint |= {f"{name}.{key}": value for key, value in method.fingerprint().items()}
        return fingerprint

    def _with_detectors(self, batch: DetectionBatch) -> DetectionBatch:
        """Return the batch with what the detector teachers make of its images, as the control has it."""
        outputs = {name: teacher.predict(batch.images) for name, teacher in self.detectors.items()}
        if self.targets == "shuffled":
            outputs = shuffled_features(outputs)
        elif self.targets == "random":
            outputs = random_features(outputs, batch.chance)
        return replace(batch, detectors=outputs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DetectionObjective:
        # What `to` calls: the detector teachers are no part of this module, and go where it goes.
        for teacher in self.detectors.values():
            teacher.move(fn)
        moved: DetectionObjective = super()._apply(fn, recurse)
        return moved

    def _methods(self) -> Iterable[tuple[str, DistillationMethod]]:
        for name, method in self.methods.items():
            assert isinstance(method, DistillationMethod)
            yield name, method


@contextmanager
def _keeping_statistics(module: nn.Module) -> Iterator[None]:
    """Have batch norms that are in training normalize by the batch and update no running statistics."""
    tracking = [
        norm
        for norm in module.modules()
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.training and norm.track_running_stats
    ]
    for norm in tracking:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in tracking:
            norm.track_running_stats = True


def _norm(losses: Iterable[Loss], pyramid: Sequence[Tensor]) -> Tensor:
    """Return the norm of the gradient of a weighted sum with respect to all levels; 0 where they have no part in it."""
    weighted = [loss.weight * loss.value for loss in losses]
    # Of a method whose teachers are all muted there is no loss.
    total = torch.stack(weighted).sum() if weighted else pyramid[0].new_zeros(())
    if not total.requires_grad:
        return total.new_zeros(())
    found = torch.autograd.grad(total, list(pyramid), retain_graph=True, allow_unused=True)
    there = [gradient.float().square().sum() for gradient in found if gradient is not None]
    return torch.stack(there).sum().sqrt() if there else total.new_zeros(())
