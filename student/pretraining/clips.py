"""A stream of pairs of images of one drive, for pre-training without labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from datalake.commit import Commit, LakeError
from datalake.lake import Lake
from datalake.loader import LoaderConfig, SampleStream
from datalake.order import epoch_order
from datalake.sample import Sample

# What makes a pair: an image and itself; it and the same camera's next image; it and one of another segment, a control.
Pairs = Literal["same", "next", "shuffled"]
# What is added to the seed for the order of the other segments' images.
OF_OTHERS = 1 << 64


class ClipStream(SampleStream):
    """Pairs of one rank, from a given position on: a batch is its B first images, then their B second ones.

    With pairs `same` there are no second ones. `next` is the next image of the segment's camera that the snapshot has,
    one frame later where no record was lost; a camera's last image is the first of no pair. `shuffled` draws the second
    from the images of other segments, about as often each. The order is a function of what decides about a
    `SampleStream`'s and of `pairs`; `start` and `global_batch` count pairs.

    A chunk is in memory while its own images are first ones. Where second ones lie in the chunk after it, that is read
    for them alone.
    """

    def __init__(
        self,
        lake: Lake,
        config: LoaderConfig,
        pairs: Pairs,
        *,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        epochs: int | None = None,
    ) -> None:
        """Raise LakeError where the snapshot has too few pairs, and where the order is not to be shuffled."""
        super().__init__(lake, config, rank=rank, world_size=world_size, start=start, epochs=epochs)
        if not config.shuffle:
            raise LakeError("pairs are dealt in a random order alone; leave shuffle on")
        self.pairs = pairs
        self._chunk = np.repeat(np.arange(len(self._sizes)), self._sizes)
        self._next = _successors(self._commits, self._segment, self._group, self._rows)
        self._first = np.flatnonzero(self._next >= 0) if pairs == "next" else np.arange(len(self._rows))
        self._sizes = np.bincount(self._chunk[self._first], minlength=len(self._sizes))
        self.epoch_samples = len(self._first) // config.global_batch * config.global_batch
        if self.epoch_samples == 0:
            raise LakeError(
                f"{lake.store.url}: split {config.split!r} has {len(self._first)} pairs ({pairs})"
                f" of {', '.join(config.cameras)}, fewer than one batch of {config.global_batch}"
            )
        if pairs == "shuffled" and len(set(self._segment.tolist())) < 2:
            raise LakeError(
                f"{lake.store.url}: split {config.split!r} has one segment, and pairs of different ones are asked for"
            )

    @property
    def _rank_batch(self) -> int:
        return super()._rank_batch * (1 if self.pairs == "same" else 2)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return the first images of an epoch's pairs int64 [N] in their order, numbered as they lie in the lake."""
        return self._first[super().order(epoch)]

    def seconds(self, epoch: int) -> NDArray[np.int64]:
        """Return the second images of an epoch's pairs int64 [N], in the order of the first ones."""
        first = self.order(epoch)
        if self.pairs == "same":
            return first
        if self.pairs == "next":
            return self._next[first]
        streams = min(self.config.streams, int((self._sizes > 0).sum()))
        others = epoch_order(self._sizes, streams, self.config.seed + OF_OTHERS, epoch)
        return of_other_segments(first, others, self._segment)

    def _visit(self, epoch: int, positions: NDArray[np.int64]) -> Iterator[Sample]:
        first = self.order(epoch)[positions]
        if self.pairs == "same":
            return self._read(first)
        second = self.seconds(epoch)[positions]
        # Read with the first one where it is in the same chunk; otherwise for this chunk's pairs alone, or, of another
        # segment, in the order that the others have.
        apart = np.full_like(first, -1) if self.pairs == "shuffled" else 1 + self._chunk[first]
        occasions = np.where((self.pairs == "next") & (self._chunk[second] == self._chunk[first]), 0, apart)
        part = self.config.global_batch // self.world_size

        def joined(of_first: NDArray[np.int64], of_second: NDArray[np.int64]) -> NDArray[np.int64]:
            return np.stack([of_first.reshape(-1, part), of_second.reshape(-1, part)], 1).ravel()

        return self._read(joined(first, second), joined(np.zeros_like(first), occasions))


def _successors(
    commits: tuple[Commit, ...], segment: NDArray[np.int32], group: NDArray[np.int32], row: NDArray[np.int32]
) -> NDArray[np.int64]:
    """Return for each image int64 [N] the number of the next one of its segment and camera; -1: there is none."""
    following = np.full(len(row), -1, np.int64)
    last: dict[tuple[int, str], int] = {}
    for number, (s, g, r) in enumerate(zip(segment.tolist(), group.tolist(), row.tolist(), strict=True)):
        # Row groups and their rows are in the order of time.
        camera = (s, commits[s].chunks[g][r])
        if camera in last:
            following[last[camera]] = number
        last[camera] = number
    return following


def of_other_segments(
    first: NDArray[np.int64], others: NDArray[np.int64], segment: NDArray[np.integer[Any]]
) -> NDArray[np.int64]:
    """Return for each position the image there among the others, or the next behind it that is of another segment."""
    second = others.copy()
    for position in np.flatnonzero(segment[first] == segment[others]).tolist():
        place = position
        while segment[others[place]] == segment[first[position]]:
            place = (place + 1) % len(others)
        second[position] = others[place]
    return second
