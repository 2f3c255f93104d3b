"""The interface of a distillation method."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import asdict
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from student.detector import DetectorOutput, Student
from student.distillation.batch import DetectionBatch
from training.fingerprint import Plain
from training.objective import Loss

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class DistillationMethod(nn.Module):
    """Losses beside detection's, by which the student learns from teachers.

    Its parameters train with the student's, are clipped by a norm of their own, and are never exported. Random numbers
    come from `batch.chance` under a purpose of its own, so that the student's sampling stays what it is without.

    config: weights of the losses and other settings, numbers and words; None: there are none
    compares_pyramids: whether the losses depend on the student's pyramid, or only on what that is computed from
    """

    config: DataclassInstance | None = None
    compares_pyramids: ClassVar[bool] = True

    @abstractmethod
    def losses(
        self, student: Student, output: DetectorOutput, batch: DetectionBatch, progress: float
    ) -> dict[str, Loss]:
        """Return the losses as `<method>/…`, in every step and on every worker the same names in the same order.

        output: what the student computed for the batch
        progress: how much of the training is done, 0 … 1
        """

    def after_step(self, student: Student, progress: float) -> None:
        """Follow an optimizer step."""

    def fingerprint(self) -> dict[str, Plain]:
        """Return what a run that continues this one must share with it: by default all settings."""
        return {} if self.config is None else asdict(self.config)
