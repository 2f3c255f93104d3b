"""The interface of a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from datalake.sample import Sample
from teachers.card import TeacherCard
from teachers.target import Target


class Teacher(Protocol):
    """A frozen network that predicts a map of each sample on the student's grid."""

    @property
    def card(self) -> TeacherCard:
        """What it is."""

    def predict(self, samples: Sequence[Sample], height: int, width: int) -> Target:
        """Return the predictions of the samples, in their order, on a grid of `height` x `width` cells.

        Raises TeacherError where a sample lacks this teacher's input.
        """
