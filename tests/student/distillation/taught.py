"""A tiny student that a wider detector teaches by one method, and what tests of such methods ask of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from student.config import StudentConfig
from student.detector import Student
from student.distillation.batch import DetectionBatch
from student.distillation.controls import Targets
from student.distillation.detector_teacher import DetectorTeacher
from student.distillation.method import DistillationMethod
from student.distillation.objective import DetectionObjective, LossWeights
from tests.student.students import TINY, build, samples
from training.generators import Chance
from training.objective import Batch, Loss

WIDE = replace(TINY, width=24, head_width=40)


def decided(config: StudentConfig = TINY, seed: int = 0) -> Student:
    """Return a student whose heads are far from saying the same of everything, as untrained ones do."""
    student = build(config, seed)
    with torch.no_grad():
        for layer in (student.heads.box_predictor.cls_score, student.heads.box_predictor.bbox_pred):
            layer.weight.mul_(20)
            layer.bias.copy_(torch.linspace(-0.5, 0.5, len(layer.bias)))
    return student


def teachers(seed: int = 5, config: StudentConfig = WIDE) -> dict[str, DetectorTeacher]:
    return {"big": DetectorTeacher(decided(config, seed))}


def taught(
    method: DistillationMethod | None,
    detectors: Mapping[str, DetectorTeacher],
    targets: Targets = "real",
    student: StudentConfig = TINY,
) -> DetectionObjective:
    """Return a student of seed 0 that learns by the method."""
    methods = {} if method is None else {"method": method}
    return DetectionObjective(decided(student), LossWeights(), methods, targets=targets, detectors=detectors)


def batch(places: Sequence[int], labelled: int) -> DetectionBatch:
    """Return these images of a batch of four, in the state in which a step gets it."""
    chosen = [samples(4)[place] for place in places]
    return taught(None, {}).collate(Batch(chosen, labelled, 0), {}, Chance(0, 0, tuple(places)))


def convolutions(adapters: nn.ModuleDict, name: str = "big") -> list[nn.Conv2d]:
    """Return a method's adapters for a teacher, one for each level."""
    return [module for module in adapters[name].modules() if isinstance(module, nn.Conv2d)]


def identities(adapters: nn.ModuleDict, name: str = "big") -> None:
    """Let a method's adapters pass on what they are given."""
    for adapter in convolutions(adapters, name):
        nn.init.dirac_(adapter.weight)
        if adapter.bias is not None:
            nn.init.zeros_(adapter.bias)


def value(losses: Mapping[str, Loss], name: str) -> float:
    return float(losses[name].value.detach())


def total(losses: Iterable[Loss]) -> Tensor:
    return torch.stack([loss.weight * loss.value for loss in losses]).sum()


def of_method(losses: Mapping[str, Loss]) -> dict[str, Loss]:
    """Return the losses that are not detection's."""
    return {name: loss for name, loss in losses.items() if "/" in name}


def reached(student: nn.Module, losses: Iterable[Loss]) -> set[str]:
    """Return the names of the student's parameters that these losses change."""
    total(losses).backward()
    return {name for name, p in student.named_parameters() if p.grad is not None and bool(p.grad.any())}
