"""One step's material, and the losses of a student that works through it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from datalake.sample import Objects
from student.config import StudentError
from student.detector import Student
from student.imitation import imitation_loss, object_cells
from teachers.target import Target

Balance = Literal["fixed", "learned"]


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """How much each loss counts; 1 throughout in the paper. Boxes, with few positives, learn faster with more.

    With these weights of imitation the student imitates objects better than with 1 throughout, and detects better, in
    each of three seeds (`benchmarks/classroom.md`).
    """

    # Whether there is an object.
    objectness: float = 1.0
    # Where, of the proposals.
    proposal: float = 3.0
    # What it is.
    classification: float = 1.0
    # Where exactly.
    box: float = 2.0
    # How far away.
    depth: float = 1.0
    # Imitation of teachers that give numbers.
    numbers: float = 2.0
    # Imitation of teachers that tell classes.
    classes: float = 2.0
    # Cells in which a teacher sees an object count so many times as much as background.
    objects: float = 4.0
    # At the end of the training the imitation's weights have fallen, along a cosine, to this share.
    final: float = 1.0
    # `learned`: beside these weights each loss gets one that is trained (Kendall et al. 2018).
    balance: Balance = "fixed"


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """What the student works through in one step.

    pictures: uint8 or float32 within 0 … 1 [B, 3, H, W]
    labels: of the first of the pictures; the others have none
    targets: what the teachers say of all pictures
    generators: one for each labelled picture: which anchors and proposals the losses look at
    """

    pictures: Tensor
    labels: list[Objects]
    targets: dict[str, Target]
    generators: list[torch.Generator]


class Lesson(nn.Module):
    """A student and the losses by which it learns.

    class_weights: for each teacher that tells classes, float32 [K], how much a cell of each class counts
    """

    def __init__(self, student: Student, weights: LossWeights, class_weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.student, self.weights = student, weights
        # Part of the checkpoint: a run that goes on does not measure them again.
        self.class_weights = nn.ParameterDict(
            {name: nn.Parameter(values.float(), requires_grad=False) for name, values in class_weights.items()}
        )
        names = ["objectness", "proposal", "classification", "box", "depth"]
        names += [f"imitate/{spec.name}" for spec in student.config.branches]
        self._names = tuple(names)
        self.balance = nn.Parameter(torch.zeros(len(names))) if weights.balance == "learned" else None

    def forward(self, material: Material, share_done: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum to descend, and each loss as it is, without its weight.

        share_done: how much of the training is done, 0 … 1

        Raises StudentError where a target does not fit the student's branches.
        """
        student, targets = self.student, material.targets
        features = student.features(material.pictures)
        image_size = (material.pictures.shape[-2], material.pictures.shape[-1])
        losses = student.detection_losses(features, image_size, material.labels, material.generators)
        objects = object_cells(targets)
        cells = None if objects is None else 1 + (self.weights.objects - 1) * objects.float()
        for name, target in targets.items():
            if name not in features.said:
                raise StudentError(f"teacher {name}: this student has no branch for it; it has {list(features.said)}")
            said = features.said[name]
            if target.kind == "continuous" and said.shape != target.values.shape:
                raise StudentError(
                    f"teacher {name}: expected targets {list(said.shape)}, got: {list(target.values.shape)}"
                )
            losses[f"imitate/{name}"] = imitation_loss(
                said,
                target,
                cell_weights=cells,
                class_weights=self.class_weights.get(name),
            )
        total = torch.stack([self._weighted(name, loss, share_done) for name, loss in losses.items()]).sum()
        # A branch whose teacher is silent takes part with 0: every worker has gradients for the same weights.
        silent = [said.sum() for name, said in features.said.items() if name not in targets]
        return (torch.stack([total, *(0 * one for one in silent)]).sum() if silent else total), losses

    def weight(self, name: str, share_done: float) -> float:
        """Return how much the loss counts after `share_done` of the training."""
        if not name.startswith("imitate/"):
            return float(getattr(self.weights, name))
        (spec,) = (one for one in self.student.config.branches if f"imitate/{one.name}" == name)
        start = self.weights.classes if spec.kind == "classes" else self.weights.numbers
        fall = (1 - float(torch.cos(torch.tensor(torch.pi * share_done)))) / 2
        return start * (1 - (1 - self.weights.final) * fall)

    def _weighted(self, name: str, loss: Tensor, share_done: float) -> Tensor:
        if self.balance is not None:
            # exp(-s) L + s is smallest where exp(s) = L: without other weights every loss ends up counting the same.
            # They stand outside: s would undo them otherwise.
            log_scale = self.balance[self._names.index(name)]
            loss = (-log_scale).exp() * loss + log_scale
        return self.weight(name, share_done) * loss
