"""Imitation: each branch of the student predicts the map of one teacher (ClassroomNet, section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from student.config import StudentError
from student.detector import DetectorOutput, Student
from student.distillation.batch import DetectionBatch
from student.distillation.method import DistillationMethod
from teachers.target import Target
from training.objective import Loss


@dataclass(frozen=True, kw_only=True)
class ImitationConfig:
    """Weights of the imitation losses.

    With these weights the student imitates objects better than with 1 throughout, and detects better, in each of three
    seeds (`benchmarks/classroom.md`).
    """

    # Weight of the losses of regression teachers.
    regression: float = 2.0
    # Weight of the losses of classification teachers.
    classification: float = 2.0
    # Cells that a classification teacher gives an object have so many times the weight of background.
    foreground_factor: float = 4.0
    # The weights fall along a cosine to this share at the end of the training.
    final_factor: float = 1.0


class Imitation(DistillationMethod):
    """Compares what each branch predicts with the target of its teacher: squared error or cross-entropy.

    class_weights: for each teacher of classes, float32 [K], how much a cell of each class counts
    """

    config: ImitationConfig
    # What the branches predict comes before the fusion, from which the pyramid is made.
    compares_pyramids = False

    def __init__(self, config: ImitationConfig, class_weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.config = config
        # Part of the checkpoint: a run that goes on does not measure them again.
        self.class_weights = nn.ParameterDict(
            {name: nn.Parameter(values.float(), requires_grad=False) for name, values in class_weights.items()}
        )

    def losses(
        self, student: Student, output: DetectorOutput, batch: DetectionBatch, progress: float
    ) -> dict[str, Loss]:
        """Return `imitation/<teacher>` of each teacher in the batch.

        Raises StudentError where a target does not fit the student's branches.
        """
        del student
        foreground = foreground_cells(batch.targets)
        cells = None if foreground is None else 1 + (self.config.foreground_factor - 1) * foreground.float()
        losses = {}
        for name, target in batch.targets.items():
            if name not in output.features.branch_outputs:
                raise StudentError(
                    f"teacher {name}: this student has no branch for it; it has {list(output.features.branch_outputs)}"
                )
            branch_outputs = output.features.branch_outputs[name]
            if target.kind == "regression" and branch_outputs.shape != target.values.shape:
                raise StudentError(
                    f"teacher {name}: expected targets {list(branch_outputs.shape)}, got: {list(target.values.shape)}"
                )
            value = imitation_loss(
                branch_outputs, target, cell_weights=cells, class_weights=self.class_weights.get(name, None)
            )
            losses[f"imitation/{name}"] = Loss(value, self.weight(target, progress))
        return losses

    def weight(self, target: Target, progress: float) -> float:
        """Return how much a loss counts after `progress`, 0 … 1, of the training."""
        start = self.config.classification if target.kind == "classification" else self.config.regression
        fall = (1 - math.cos(math.pi * progress)) / 2
        return start * (1 - (1 - self.config.final_factor) * fall)


def imitation_loss(
    branch_outputs: Tensor, target: Target, *, cell_weights: Tensor | None = None, class_weights: Tensor | None = None
) -> Tensor:
    """Return the loss of a branch's prediction, the mean over images of the weighted mean over their valid cells.

    branch_outputs: float32 [B, D, h, w], standardized numbers, or logits of classes
    cell_weights: float32 [B, 1, h, w], how much each cell counts beside the image's others; all the same by default
    class_weights: float32 [D], how much a cell of each class counts; regression targets have none

    Regression targets: the squared error, mean over channels (paper, section 3.1; Liu et al. 2021, over valid pixels
    alone). Classes: cross-entropy. An image without valid cells counts 0. A class number that the branch has no
    channel for makes the loss NaN, on every device: looked up on a GPU, it would end the process instead.
    """
    weights = target.valid.float() if cell_weights is None else cell_weights * target.valid
    # What stands in cells that are not valid must not matter, not even if it is NaN: it is taken out before anything is
    # computed from it, since a gradient of 0 times NaN would be NaN again.
    if target.kind == "classification":
        truth = target.values.where(target.valid, 0)[:, 0]
        unknown = (truth < 0) | (truth >= branch_outputs.shape[1])
        truth = truth.where(~unknown, 0)
        if class_weights is not None:
            weights = weights * class_weights[truth][:, None]
        error = cross_entropy(branch_outputs, truth, reduction="none").masked_fill(unknown, torch.nan)[:, None]
    else:
        error = (branch_outputs - target.values).where(target.valid, 0.0).square().mean(1, keepdim=True)
    total = (error * weights).sum((1, 2, 3))
    return (total / weights.sum((1, 2, 3)).clamp(min=1e-6)).mean()


def foreground_cells(targets: Mapping[str, Target]) -> Tensor | None:
    """Return bool [B, 1, h, w], the cells that a teacher of classes gives an object; None without such a teacher."""
    seen = [target.valid & (target.values > 0) for target in targets.values() if target.kind == "classification"]
    return torch.stack(seen).any(0) if seen else None


def balanced_weights(shares: Tensor, most: float = 10.0) -> Tensor:
    """Return weights float32 [K] for classes that fill these shares [K] of the cells.

    A class counts as the square root of how rare it is, within `most` times the commonest; with 1 / share a few cells
    of the rarest class would decide. Over all cells the weights' mean is 1. A class that was never seen counts as much
    as the rarest that was.
    """
    seen = shares > 0
    if not bool(seen.any()):
        return torch.ones_like(shares)
    rare = torch.where(seen, shares, shares[seen].min())
    weights = (rare.max() / rare).sqrt().clamp(max=most)
    return weights / (weights * shares).sum().clamp(min=1e-6)
