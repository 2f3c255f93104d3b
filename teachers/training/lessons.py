"""What a course of training takes from a lake, and where it leaves what it makes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from datalake.sample import Sample
from teachers.card import TrainingData
from training.fingerprint import Plain
from training.versions import installed_versions


@dataclass(frozen=True, slots=True, kw_only=True)
class Lessons:
    """Samples to learn from and to be examined on, of different segments.

    endless: returns the training samples from a given one on, epoch after epoch, always in the same order
    epoch_samples: training samples in an epoch
    examination: returns the samples to be examined on
    data: which frames are trained on
    """

    endless: Callable[[int], Iterable[Sample]]
    epoch_samples: int
    examination: Callable[[], Iterable[Sample]]
    data: TrainingData


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Where and how a course is held.

    folder: for the checkpoint, the log, and in the end the teacher
    identity: what, besides the course's own configuration, a resumed run must have in common with this one
    progress: called with the stage, units done and units in all
    """

    folder: Path
    device: torch.device
    seed: int
    identity: dict[str, Plain]
    progress: Callable[[str, int, int, str], None]


def versions() -> dict[str, str]:
    """Return the versions of what decides over a teacher's figures."""
    return installed_versions(("classroomnet", "torch", "torchvision", "numpy", "safetensors"))
