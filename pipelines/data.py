"""The training data of a student: which frames of a lake, with or without labels, in which order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import torch
from torch import Tensor

from datalake.commit import LakeError
from datalake.lake import Lake
from datalake.loader import LoaderConfig, SampleStream
from datalake.sample import Sample
from student.config import StudentError
from teachers.card import TeacherCard, TeacherError

# Chunks that are mixed at a time, at least.
_STREAMS = 64
# The lasers whose points the lidar teacher uses; the others are not read.
_LASERS = ("TOP",)
# After so many visits a labelled image brings little more; others may take its place (benchmarks/classroom.md).
_ENOUGH_VISITS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """Which frames, and how they are read.

    segments: names of the segments; None: all of the split
    threads: how many images are decoded at once
    """

    lake: Lake
    split: str
    cameras: tuple[str, ...]
    image_size: tuple[int, int]
    points: bool
    seed: int = 0
    segments: frozenset[str] | None = None
    threads: int = 1

    @property
    def chosen(self) -> Lake:
        """The lake with these segments alone."""
        if self.segments is None:
            return self.lake
        kept = tuple(c for c in self.lake.commits if c.split != self.split or c.segment in self.segments)
        return replace(self.lake, commits=kept)

    def stream(
        self, batch: int, *, shuffle: bool, rank: int = 0, world_size: int = 1, step: int = 0, panoptic: bool = False
    ) -> SampleStream:
        """Return batches of `batch` samples over all ranks, from a given step on; for ever where shuffled."""
        settings = LoaderConfig(
            split=self.split,
            cameras=self.cameras,
            image_size=self.image_size,
            points=self.points,
            lasers=_LASERS,
            panoptic=panoptic,
            global_batch=batch,
            shuffle=shuffle,
            seed=self.seed,
            threads=self.threads,
            # Each rank then keeps to chunks of its own (`datalake.order`); otherwise several would read the same.
            streams=-(-_STREAMS // batch) * batch,
        )
        return SampleStream(
            self.chosen,
            settings,
            rank=rank,
            world_size=world_size,
            start=step * batch,
            epochs=None if shuffle else 1,
        )


def labelled_segments(lake: Lake, split: str, fraction: float, seed: int = 0) -> tuple[frozenset[str], frozenset[str]]:
    """Return the segments that keep their labels, a fixed share of the split's but at least one, and the others.

    seed: 0 but for runs of version 0.1 that had another `--label-seed`

    Raises StudentError for a share outside 0 … 1.
    """
    if not 0 < fraction <= 1:
        raise StudentError(f"--labelled-fraction {fraction}: expected more than 0 and at most 1")
    names = sorted({commit.segment for commit in lake.in_split(split)})
    drawn = sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    count = max(1, round(fraction * len(names)))
    return frozenset(drawn[:count]), frozenset(drawn[count:])


def unlabelled_per_batch(batch: int, steps: int, labelled: int, workers: int = 1) -> int:
    """Return how many images of a batch may go without labels: those that labelled ones do not need, at most half.

    Labels come first: in a training too short for many visits to each of the `labelled` images all places are theirs.
    Each of the workers gets as many.
    """
    needed = -(-_ENOUGH_VISITS * labelled // max(1, steps))
    spare = min(batch // 2, max(0, batch - needed))
    return spare - spare % workers


def mixed_batches(
    labelled: Frames,
    labelled_batch: int,
    unlabelled: Frames | None,
    unlabelled_batch: int,
    rank: int,
    world_size: int,
    data_workers: int = 0,
) -> Callable[[int], Iterator[list[Sample]]]:
    """Return a function from a step to this rank's batches from there on: labelled samples first, then the others.

    labelled_batch, unlabelled_batch: samples per step over all ranks
    data_workers: processes that read each of the two kinds, among which the threads of `Frames` are shared; 0: this
        process reads. The batches are the same
    """

    def batches(frames: Frames, batch: int, step: int) -> Iterable[Sequence[Sample]]:
        frames = replace(frames, threads=-(-frames.threads // max(1, data_workers)))
        stream = frames.stream(batch, shuffle=True, rank=rank, world_size=world_size, step=step)
        loader = stream.loader(data_workers)
        # A loader draws a number when it starts; not from the generator that the student's weights come from.
        loader.generator = torch.Generator()
        return loader

    def from_step(step: int) -> Iterator[list[Sample]]:
        first = batches(labelled, labelled_batch, step)
        if unlabelled is None or not unlabelled_batch:
            for batch in first:
                yield list(batch)
            return
        second = batches(unlabelled, unlabelled_batch, step)
        for with_labels, without in zip(first, second, strict=True):
            yield [*with_labels, *without]

    return from_step


def read_boxes(frames: Frames) -> Tensor:
    """Return every labelled box float32 [N, 4] of the frames as samples have them.

    In pixels of the frames' image size, within the image and with an area.
    """
    width, height = frames.image_size
    keys = ["segment", "timestamp_us", "camera"]
    chosen = frames.chosen
    labels = chosen.dataset("label", frames.split).to_table(columns=[*keys, "x0", "y0", "x1", "y1"])
    sizes = chosen.images([*keys, "width", "height"], frames.split)
    joined = labels.join(sizes, keys, join_type="inner")
    joined = joined.filter(pa.compute.is_in(joined["camera"], pa.array(frames.cameras)))
    columns = [
        torch.from_numpy(joined[edge].to_numpy() * (size / joined[extent].to_numpy())).clamp(0, size)
        for edge, size, extent in (
            ("x0", width, "width"), ("y0", height, "height"), ("x1", width, "width"), ("y1", height, "height"),
        )
    ]  # fmt: skip
    boxes = torch.stack(columns, 1).float()
    return boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)]


def check_no_leakage(cards: dict[str, TeacherCard], lake: Lake, splits: Sequence[str]) -> None:
    """Raise TeacherError where a teacher was trained on a segment of these splits: its labels would leak."""
    segments = {commit.segment: commit.split for commit in lake.commits if commit.split in splits}
    for name, card in cards.items():
        shared = sorted(segments.keys() & card.data.all_segments) if card.data else []
        if shared:
            raise TeacherError(
                f"teacher {name} was trained on {len(shared)} of the student's segments, e.g. {shared[0]} of split"
                f" {segments[shared[0]]}: their labels would leak; train it on another split"
            )


def check_disjoint_splits(lake: Lake, train: str, evaluated: str) -> None:
    """Raise LakeError where a segment is in both splits: metrics on frames that were trained on mean nothing."""
    names = {split: {commit.segment for commit in lake.in_split(split)} for split in (train, evaluated)}
    if shared := sorted(names[train] & names[evaluated]):
        raise LakeError(
            f"segment {shared[0]} and {len(shared) - 1} more are in both splits, {train} and {evaluated}: metrics on"
            " frames that were trained on mean nothing; name other splits"
        )
