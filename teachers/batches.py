"""Batches of labelled samples out of a stream in which not all are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from datalake.sample import Sample, naming
from training.distributed import Distributed
from training.errors import TrainingError
from training.objective import Batch


def labelled_batches(
    samples: Iterable[Sample],
    is_labelled: Callable[[Sample], bool],
    size: int,
    *,
    start: int,
    patience: int,
    distributed: Distributed | None = None,
) -> Iterator[Batch]:
    """Yield this worker's share of batches of `size` labelled samples; what is left at the stream's end is dropped.

    A batch's cursor is how many samples the stream had given when the last of them came: a stream that starts there
    gives the next batch, nothing was read ahead. All workers read the whole stream, since which samples are labelled
    is seen there alone.

    start: samples that the stream had given before
    patience: after so many samples without a label TrainingError is raised; give the samples of an epoch
    """
    distributed = distributed or Distributed()
    share = distributed.share(size, "labelled samples")
    mine = slice(distributed.rank * share, (distributed.rank + 1) * share)
    batch: list[Sample] = []
    unlabelled = 0
    for read, sample in enumerate(samples, start + 1):
        with naming([sample.key]):
            labelled = is_labelled(sample)
        if labelled:
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
            yield Batch(batch[mine], share, read)
            batch = []
