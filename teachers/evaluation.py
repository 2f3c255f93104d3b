"""Evaluation of a teacher on frames that it was not trained on, and the statistics of its features."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from datalake.sample import Sample, naming
from teachers.card import ChannelStatistics
from teachers.classes import MASK_CLASSES
from teachers.confusion import Confusion
from teachers.mask_rcnn.average_precision import AveragePrecision
from teachers.mask_rcnn.instances import instances_of
from teachers.mask_rcnn.teacher import MaskRcnnTeacher
from teachers.sanity import ComparableTeacher
from teachers.spvnas.teacher import SpvnasTeacher
from teachers.statistics import Moments
from training.errors import TrainingError

_BATCH = 4


def compare_with_labels(teacher: ComparableTeacher, samples: Iterable[Sample]) -> Confusion:
    """Return how the teacher's classes compare with all labels of the samples.

    Raises TrainingError where there are none.
    """
    total = Confusion.empty(len(teacher.card.class_names))
    for batch in _batches(samples):
        with naming(sample.key for sample in batch):
            total += teacher.confusion(batch)
    if not total.total:
        raise TrainingError(
            f"teacher {teacher.card.name}: the evaluation split has no labels to compare with; name another split"
        )
    return total


def measure_statistics(teacher: SpvnasTeacher, samples: Iterable[Sample]) -> ChannelStatistics:
    """Return mean and variance of the features over all pixels that show a point.

    The teacher's card must have no statistics yet. Raises TeacherError where no pixel shows a point.
    """
    moments = Moments.empty(teacher.card.channels)
    for sample in samples:
        with naming([sample.key]):
            moments += Moments.of_target(teacher.predict([sample], sample.image.shape[1], sample.image.shape[2]))
    return moments.statistics()


@torch.no_grad()
def mask_precision(teacher: MaskRcnnTeacher, samples: Iterable[Sample], min_pixels: int) -> dict[str, float]:
    """Return `AP50` of the masks, the mean and per class, over instances of at least `min_pixels` visible pixels."""
    precision = AveragePrecision(MASK_CLASSES)
    device = next(teacher.network.parameters()).device
    for sample in samples:
        if sample.panoptic is None:
            continue
        with naming([sample.key]):
            (answer,) = teacher.network([sample.image.to(device).float() / 255])
            truth = instances_of(sample.panoptic, min_pixels)
            masks = answer["masks"][:, 0].cpu() > 0.5
            precision.add(answer["scores"].cpu(), answer["labels"].cpu(), masks, truth.labels, truth.masks)
    return precision.metrics()


def _batches(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    batch: list[Sample] = []
    for sample in samples:
        batch.append(sample)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
