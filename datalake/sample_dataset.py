"""Samples and frames by number, for who brings a training loop, a sampler or a collate function.

    samples = open_lake(url).dataset_of_samples("train", SampleOptions(boxes_3d=True))
    samples[17]

Parquet's columns are compressed a row group of about eight images at a time, and are decoded up to the row of the image
or frame, labels as a whole: in a shuffled order `SampleStream`, which uses all of a row group, is faster.
"""

from __future__ import annotations

import os
import pickle
import threading
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from datalake.chunk import Chunk, Part
from datalake.commit import Commit
from datalake.lake import Lake
from datalake.loader import image_index
from datalake.sample import FrameSample, Sample
from datalake.sample_options import SampleOptions
from datalake.segment_files import SegmentFiles

Item = TypeVar("Item", Sample, FrameSample)
# Segments whose files stay open, in each process.
_OPEN_SEGMENTS = 64


class _LakeDataset(Dataset[Any], Generic[Item]):
    """What samples and frames have in common: files that each process opens for itself, and the transform.

    It may be pickled, forked, and used by several threads.
    """

    def __init__(
        self,
        lake: Lake,
        split: str | None,
        cameras: tuple[str, ...],
        options: SampleOptions,
        transform: Callable[[Item], Any] | None,
    ) -> None:
        self.lake, self.cameras, self.options = lake, cameras, options
        self.transform: Callable[[Item], Any] | None = transform
        self._commits = lake.in_split(split)
        self._open: OrderedDict[int, SegmentFiles] = OrderedDict()
        self._opening = threading.Lock()
        self._process = os.getpid()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def _read(self, number: int) -> Item: ...

    def __getitem__(self, number: int) -> Any:
        """Return item `number`, or what the transform makes of it; negative numbers count from the end.

        Raises IndexError for a number beyond the last, and LakeError as `Chunk.sample` does.
        """
        size = len(self)
        if not -size <= number < size:
            raise IndexError(f"{number}: there are {size:,}")
        try:
            item = self._read(number % size)
        except OSError:
            # Files keep the failure of a store that did not answer; the next call is to ask it anew.
            with self._opening:
                self._open.clear()
            raise
        return item if self.transform is None else self.transform(item)

    def __iter__(self) -> Iterator[Any]:
        return (self[number] for number in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_open", "_opening", "_process")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open, self._opening, self._process = OrderedDict(), threading.Lock(), os.getpid()

    def _files(self, segment: int) -> SegmentFiles:
        if self._process != os.getpid():
            # A forked process has neither the threads of a remote store's client nor whoever held the lock.
            self.lake = replace(self.lake, store=pickle.loads(pickle.dumps(self.lake.store)))
            self._open, self._opening, self._process = OrderedDict(), threading.Lock(), os.getpid()
        with self._opening:
            files = self._open.pop(segment, None) or SegmentFiles(self.lake, self._commits[segment])
            self._open[segment] = files
            if len(self._open) > _OPEN_SEGMENTS:
                # Not closed here: another thread may be reading it.
                self._open.popitem(last=False)
        return files

    def _chunk(self, files: SegmentFiles, group: int, frame: int, images: slice | None) -> Chunk:
        """Return the rows of one frame, given its row of `point` and its rows of `image`, all in one row group."""
        part = Part(images, slice(max(0, frame - self.options.sweeps), frame + 1))
        return Chunk(files, group, self.options, part)


class SampleDataset(_LakeDataset[Sample]):
    """The images of some cameras, numbered as they lie in the lake."""

    def __init__(
        self,
        lake: Lake,
        split: str | None,
        cameras: tuple[str, ...],
        options: SampleOptions,
        transform: Callable[[Sample], Any] | None,
    ) -> None:
        """Raise LakeError for a split or a camera that the lake does not have."""
        super().__init__(lake, split, cameras, options, transform)
        self._segment, self._group, self._row, _ = image_index(self._commits, cameras)

    def __len__(self) -> int:
        return len(self._row)

    def _read(self, number: int) -> Sample:
        group, row = int(self._group[number]), int(self._row[number])
        files = self._files(int(self._segment[number]))
        frame = 0
        if "point" in self.options.columns:
            time = files.times("image")[group][row]
            frame = int(np.flatnonzero(files.times("point")[group] == time)[0])
        return self._chunk(files, group, frame, slice(row, row + 1)).sample(row)


class FrameDataset(_LakeDataset[FrameSample]):
    """The frames, numbered as they lie in the lake, each with the images of some cameras, or of none.

    Of a lake that `Lake.where` has narrowed, those that have an image left.
    """

    def __init__(
        self,
        lake: Lake,
        split: str | None,
        cameras: tuple[str, ...],
        options: SampleOptions,
        transform: Callable[[FrameSample], Any] | None,
    ) -> None:
        """Raise LakeError for a split or a camera that the lake does not have."""
        super().__init__(lake, split, cameras, options, transform)
        image_index(self._commits, cameras)
        # Of each segment the frames that are kept, as they are numbered in it; None: all.
        self._kept = [self._kept_frames(number) for number in range(len(self._commits))]
        sizes = [
            commit.frames if kept is None else len(kept) for commit, kept in zip(self._commits, self._kept, strict=True)
        ]
        self._ends = np.cumsum(sizes)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _kept_frames(self, segment: int) -> NDArray[np.int64] | None:
        commit = self._commits[segment]
        if not any("0" in chunk for chunk in commit.chunks):
            return None
        files = self._files(segment)
        times = [
            image[np.frombuffer(chunk.encode(), np.uint8) != ord("0")]
            for image, chunk in zip(files.times("image"), commit.chunks, strict=True)
        ]
        frames: NDArray[np.int64] = np.flatnonzero(np.isin(np.concatenate(files.times("point")), np.concatenate(times)))
        return frames

    def _read(self, number: int) -> FrameSample:
        segment = int(np.searchsorted(self._ends, number, side="right"))
        frame = number - (int(self._ends[segment - 1]) if segment else 0)
        if (kept := self._kept[segment]) is not None:
            frame = int(kept[frame])
        files, commit = self._files(segment), self._commits[segment]
        group = 0
        while frame >= len(files.times("point")[group]):
            frame -= len(files.times("point")[group])
            group += 1
        time = int(files.times("point")[group][frame])
        rows = _images_of(files, commit, group, time, self.cameras) if self.cameras else []
        images = slice(rows[0], rows[-1] + 1) if rows else None
        return self._chunk(files, group, frame, images).frame(time, rows)


def _images_of(files: SegmentFiles, commit: Commit, group: int, time: int, cameras: tuple[str, ...]) -> list[int]:
    """Return the rows of a row group's images of one frame that these cameras took and that are not left out."""
    wanted, chunk = commit.marks(cameras), commit.chunks[group]
    return [int(row) for row in np.flatnonzero(files.times("image")[group] == time) if chunk[row] in wanted]
