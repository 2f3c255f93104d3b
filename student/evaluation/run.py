"""Evaluation of a student on frames that it was not trained on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datalake.sample import Sample, SampleKey
from student.config import StudentError
from student.detections import Detections
from student.detector import Prediction, Student
from student.distillation.imitation import foreground_cells
from student.evaluation.depth import DepthScores
from student.evaluation.detection import DetectionScores, PrecisionRecall
from student.evaluation.errors import DetectionErrors
from student.evaluation.imitation import ClassScores, RegressionScores
from student.evaluation.proposals import ProposalRecall
from teachers.card import TeacherCard
from teachers.pool import TeacherPool
from teachers.target import Target

# What is told of each kind of samples.
_OF_KIND = ("AP50", "recall@100", "depth/AbsRel")


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One image with the student's predictions, its labels, and the teachers' targets.

    branch_outputs: of each branch, float32 [channels, h, w]; targets: of one sample each
    """

    sample: Sample
    found: Detections
    branch_outputs: dict[str, Tensor]
    targets: dict[str, Target]


@dataclass(frozen=True, slots=True, eq=False)
class EvaluationResult:
    """How good a student is.

    metrics: `AP50`, `errors/missed`, `recall@100`, `depth/AbsRel` … and `imitation/<teacher>/R2` …,
        `images_per_second` (the student alone, in the batches it was given)
    curves: precision and recall of each class
    depths_m: true and predicted depth float32 [K] of matched detections, as numpy arrays
    examples: evenly spread over the samples
    """

    samples: int
    metrics: dict[str, float]
    curves: tuple[PrecisionRecall, ...]
    depths_m: tuple[NDArray[np.float32], NDArray[np.float32]]
    examples: list[Example]


@torch.no_grad()
def evaluate_student(
    student: Student,
    batches: Iterable[Sequence[Sample]],
    pool: TeacherPool | None,
    *,
    cell_means: Mapping[str, Tensor] | None = None,
    example_every: int = 0,
    bfloat16: bool = False,
    kinds: Mapping[SampleKey, str] | None = None,
    on_sample: Callable[[Sample, Detections], None] = lambda _sample, _found: None,
    progress: Callable[[int], None] = lambda _samples: None,
) -> EvaluationResult:
    """Return how good the student, in eval mode, is on the samples.

    pool: teachers that its branches are compared with; None: they are not
    cell_means: of regression teachers, float32 [D, h, w], the mean of their training targets in each cell
    example_every: one sample of so many becomes an example; 0: none does
    kinds: of samples, such as Night: `AP50`, `recall@100` and `depth/AbsRel` of each are among the metrics, as
        `AP50/Night` and so on
    on_sample: called with each sample and what the student found in it, in pixels of the sample's image, on the CPU
    progress: called with the samples done

    Raises StudentError where there is no sample, a teacher has no branch, or a prediction is not finite.
    """
    detection, proposals, depth = DetectionScores(), ProposalRecall(), DepthScores(student.config.max_depth_m)
    errors = DetectionErrors()
    by_kind: dict[str, tuple[DetectionScores, ProposalRecall, DepthScores]] = {}
    imitation = _imitation_scores(student, pool.cards if pool else {}, cell_means or {})
    device = next(student.parameters()).device
    examples: list[Example] = []
    samples, seconds = 0, 0.0
    for batch, targets in pool.follow(batches) if pool else ((batch, {}) for batch in batches):
        images = torch.stack([sample.image for sample in batch]).to(device)
        started = time.monotonic()
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            prediction = student.predict(images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds += time.monotonic() - started
        _check_finite(batch, prediction)
        objects = foreground_cells(targets)
        for name, target in targets.items():
            scores = imitation[name]
            if isinstance(scores, RegressionScores):
                scores.add(prediction.branch_outputs[name], target, objects)
            else:
                scores.add(prediction.branch_outputs[name], target)
        for place, sample in enumerate(batch):
            found = prediction.detections[place].to("cpu")
            on_sample(sample, found)
            detection.add(found, sample.objects)
            errors.add(found, sample.objects)
            depth.add(found, sample.objects)
            proposals.add(prediction.proposals[place].cpu(), sample.objects)
            if kinds is not None and (kind := kinds.get(sample.key)) is not None:
                if kind not in by_kind:
                    by_kind[kind] = DetectionScores(), ProposalRecall(), DepthScores(student.config.max_depth_m)
                of_kind = by_kind[kind]
                of_kind[0].add(found, sample.objects)
                of_kind[1].add(prediction.proposals[place].cpu(), sample.objects)
                of_kind[2].add(found, sample.objects)
            if example_every and samples % example_every == 0:
                examples.append(_example(sample, found, place, prediction.branch_outputs, targets))
            samples += 1
        progress(samples)
    if not samples:
        raise StudentError("there is no sample to evaluate the student on; name another split")
    metrics = {**detection.metrics(), **errors.metrics(), **proposals.metrics(), **depth.metrics()}
    for kind, of_kind in by_kind.items():
        all_of_kind = {name: value for scores in of_kind for name, value in scores.metrics().items()}
        metrics |= {f"{name}/{kind}": all_of_kind[name] for name in _OF_KIND if name in all_of_kind}
    for name, scores in imitation.items():
        metrics |= {f"imitation/{name}/{figure}": value for figure, value in scores.metrics().items()}
    metrics["images_per_second"] = samples / seconds
    return EvaluationResult(samples, metrics, detection.curves(), depth.pairs, examples)


def most_labelled(samples: Iterable[Sample], count: int = 2) -> set[SampleKey]:
    """Return which samples have the most labelled objects, the first of them where there are as many."""
    return {one.key for one in sorted(samples, key=lambda one: len(one.objects.boxes), reverse=True)[:count]}


def _check_finite(batch: Sequence[Sample], prediction: Prediction) -> None:
    for place, sample in enumerate(batch):
        what = prediction.detections[place].not_finite
        for name, values in prediction.branch_outputs.items():
            if what is None and not bool(values[place].isfinite().all()):
                what = f"imitation of {name}"
        if what is not None:
            raise StudentError(f"{sample.key}: the student's {what} is not finite: train it again")


def _imitation_scores(
    student: Student, cards: Mapping[str, TeacherCard], cell_means: Mapping[str, Tensor]
) -> dict[str, RegressionScores | ClassScores]:
    branches = {spec.name for spec in student.config.branches}
    if unknown := sorted(cards.keys() - branches):
        raise StudentError(f"teacher {unknown[0]}: this student has no branch for it; it has {sorted(branches)}")
    return {
        name: ClassScores(card.class_names)
        if card.kind == "classification"
        else RegressionScores(card.channels, cell_means.get(name))
        for name, card in cards.items()
    }


def _example(
    sample: Sample, found: Detections, place: int, branch_outputs: Mapping[str, Tensor], targets: Mapping[str, Target]
) -> Example:
    chosen = slice(place, place + 1)
    return Example(
        sample,
        found,
        {name: values[place].float().cpu() for name, values in branch_outputs.items()},
        {
            name: Target(
                target.keys[chosen],
                target.values[chosen].cpu(),
                target.valid[chosen].cpu(),
                None if target.confidence is None else target.confidence[chosen].cpu(),
            )
            for name, target in targets.items()
        },
    )
