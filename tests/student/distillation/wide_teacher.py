"""A tiny student's wider teacher, and steps of both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from student.distillation.batch import DetectionBatch
from student.distillation.detector_teacher import DetectorTeacher
from student.distillation.method import DistillationMethod
from student.distillation.objective import DetectionObjective, LossWeights
from tests.student.students import TINY, build, samples
from training.generators import Chance
from training.objective import Batch, Loss

WIDE = replace(TINY, width=24)


def wide_teacher(seed: int = 5) -> DetectorTeacher:
    return DetectorTeacher(build(WIDE, seed))


def taught_by(method: DistillationMethod, name: str, teacher: DetectorTeacher | None = None) -> DetectionObjective:
    """Return the objective of a student of seed 0 with one method and a teacher `big`."""
    return DetectionObjective(build(TINY), LossWeights(), {name: method}, detectors={"big": teacher or wide_teacher()})


def batch(places: list[int], labelled: int) -> DetectionBatch:
    """Return these images of a batch of four."""
    chosen = [samples(4)[place] for place in places]
    none = DetectionObjective(build(TINY), LossWeights(), {})
    return none.collate(Batch(chosen, labelled, 0), {}, Chance(0, 0, tuple(places)))


def with_teacher(some: DetectionBatch, teacher: DetectorTeacher | None = None) -> DetectionBatch:
    """Return the batch with what the teacher makes of its images."""
    return replace(some, detectors={"big": (teacher or wide_teacher()).predict(some.images)})


def gradients(parameters: Iterable[nn.Parameter], losses: Mapping[str, Loss]) -> list[Tensor | None]:
    """Return the gradient of the weighted sum with respect to each parameter."""
    torch.stack([loss.weight * loss.value for loss in losses.values()]).sum().backward()
    return [None if parameter.grad is None else parameter.grad.clone() for parameter in parameters]


def same(one: Iterable[Tensor | None], other: Iterable[Tensor | None]) -> bool:
    """Return whether the gradients are the same to the last bit, and enough of them are there."""
    pairs = list(zip(one, other, strict=True))
    there = [(a, b) for a, b in pairs if a is not None and b is not None]
    absent = [pair for pair in pairs if pair[0] is None and pair[1] is None]
    return len(there) > 50 and len(there) + len(absent) == len(pairs) and all(torch.equal(a, b) for a, b in there)
