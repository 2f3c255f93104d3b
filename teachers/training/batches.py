"""Batches of labelled samples out of a stream in which not all are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from datalake.sample import Sample
from training.errors import TrainingError


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples to train on, and how many samples the stream had given when the last of them came.

    A stream that starts there gives the next batch: nothing was read ahead.
    """

    samples: list[Sample]
    samples_read: int


def labelled_batches(
    samples: Iterable[Sample], is_labelled: Callable[[Sample], bool], size: int, *, start: int, patience: int
) -> Iterator[Batch]:
    """Yield batches of `size` labelled samples; what is left at the stream's end is dropped.

    start: samples that the stream had given before
    patience: after so many samples without a label TrainingError is raised; give the samples of an epoch
    """
    batch: list[Sample] = []
    unlabelled = 0
    for read, sample in enumerate(samples, start + 1):
        if is_labelled(sample):
            unlabelled = 0
            batch.append(sample)
        else:
            unlabelled += 1
            if unlabelled >= patience:
                raise TrainingError(
                    f"none of {unlabelled:,} samples has the labels that this teacher learns from;"
                    " build the lake from records with segmentation labels"
                )
        if len(batch) == size:
            yield Batch(batch, read)
            batch = []
