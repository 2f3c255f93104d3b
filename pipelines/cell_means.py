"""The mean of what regression teachers predict in each cell: the best prediction without an image."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pipelines.data import Frames
from pipelines.evaluated_frames import drawn_batches
from student.evaluation.imitation import CellMean
from teachers.pool import LocalPool

# Samples from which the means are computed.
_SAMPLES = 200


def cell_means(
    frames: Frames, batch: int, pool: LocalPool, progress: Callable[[int, int], None] = lambda _done, _all: None
) -> dict[str, Tensor]:
    """Return float32 [D, h, w] of each teacher in the pool, over samples from everywhere in the frames' split.

    pool: of regression teachers; without any, nothing is read
    progress: called with the samples done, and with how many there are

    Raises StudentError where a teacher predicts no valid cell.
    """
    means = {name: CellMean(card.channels, *pool.grid) for name, card in pool.cards.items()}
    if not means:
        return {}
    batches, samples = drawn_batches(frames, batch, _SAMPLES)
    done = 0
    for samples_of_batch, targets in pool.follow(batches):
        for name, mean in means.items():
            mean.add(targets[name])
        done += len(samples_of_batch)
        progress(done, samples)
    return {name: mean.values() for name, mean in means.items()}
