"""A deterministic, sharded, resumable stream of samples from one snapshot of a lake.

    stream = SampleStream(open_lake(url), LoaderConfig(global_batch=16))
    for batch in stream.loader(workers=2):        # batch: list[Sample]
        ...

The order is a function of (snapshot, split, cameras, the condition of `Lake.where`, seed, epoch, streams) alone: not
of ranks, workers or earlier interruptions. How many samples have been trained says where to go on, on any number of
ranks that divides the global batch. Nothing is kept on disk or between processes.
"""

from __future__ import annotations

import itertools
import shutil
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from datalake.children import die_with_parent
from datalake.chunk import Chunk
from datalake.commit import Commit, LakeError
from datalake.lake import Lake
from datalake.order import epoch_order, share
from datalake.packed_batch import PackedBatch
from datalake.sample import Sample
from datalake.sample_options import SampleOptions
from datalake.segment_files import SegmentFiles

# What is read from a disk, and decoded for each thread, before it is asked for, to keep the threads busy.
_CHUNKS_AHEAD = 2
_PICTURES_AHEAD = 2
# One thread makes chunks for so many that decode images of them.
_DECODERS_A_READER = 3
# What reader processes give passes through here; each has so many batches ready (torch's default).
_SHARED_MEMORY = Path("/dev/shm")
_BATCHES_WAITING = 2
# Of a record's largest image, width and height.
_FULL_SIZE = (1920, 1280)
# A segment, a chunk of it, and the occasion on which it is read.
Place = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class LoaderConfig(SampleOptions):
    """Which samples, what they hold, and in which order.

    global_batch: samples per step over all ranks; in training an epoch is cut to whole batches
    shuffle: a new random order every epoch; otherwise the lake's own order
    streams: how many chunks are mixed at a time, all of them in memory (see `datalake.order`); where there are
        fewer, all are
    threads: how many images each process decodes at once; unlike worker processes, threads copy nothing. At least a
        batch of the rank is decoded ahead
    reads: how many chunks of a remote lake each process asks for at once, ahead of their turn: a chunk takes a round
        trip to the store, and has about eight images. So many are in memory beside the `streams`
    """

    split: str = "train"
    cameras: tuple[str, ...] = ("FRONT",)
    global_batch: int = 8
    shuffle: bool = True
    seed: int = 0
    streams: int = 64
    threads: int = 1
    reads: int = 16


class SampleStream(IterableDataset[Sample]):
    """The samples of one rank, from a given position on.

    start: samples trained so far, by all ranks together; a multiple of the global batch
    epochs: stop after that many epochs in all, or None to go on for ever. With `shuffle=False` there is one epoch,
        whose last batch may be smaller, so that each sample is seen exactly once.
    """

    def __init__(
        self,
        lake: Lake,
        config: LoaderConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        epochs: int | None = 1,
    ) -> None:
        self.lake, self.config, self.rank, self.world_size = lake, config, rank, world_size
        self.start, self.epochs = start, epochs
        self._commits = lake.in_split(config.split)
        self._segment, self._group, self._rows, self._sizes = image_index(self._commits, config.cameras)
        total = len(self._rows)
        self.epoch_samples = total // config.global_batch * config.global_batch if config.shuffle else total
        if config.reads < 1:
            raise LakeError(f"Expected at least 1 read at once, got: {config.reads}")
        if config.global_batch % world_size:
            raise LakeError(f"a global batch of {config.global_batch} cannot be cut among {world_size} ranks")
        if not config.shuffle and epochs != 1:
            raise LakeError("without shuffling there is one epoch; pass epochs=1")
        if start % config.global_batch:
            raise LakeError(f"cannot resume after {start} samples: not a multiple of the batch {config.global_batch}")
        if self.epoch_samples == 0:
            raise LakeError(
                f"{lake.store.url}: split {config.split!r} has {total} images of {', '.join(config.cameras)},"
                f" fewer than one batch of {config.global_batch}"
            )

    def loader(self, workers: int = 0) -> DataLoader[list[Sample]]:
        """Return a DataLoader whose batches are lists of this rank's samples, in order.

        workers: processes that make whole batches ahead, two each; 0: threads of this process alone

        Raises LakeError where the shared memory, through which they give them, is too small.
        """
        if workers:
            self._check_shared_memory(workers)
        return DataLoader(
            cast(IterableDataset[list[Sample]], self),
            batch_size=self._rank_batch,
            num_workers=workers,
            collate_fn=PackedBatch if workers else list,
            worker_init_fn=die_with_parent,
            multiprocessing_context=self._start_method() if workers else None,
        )

    def _check_shared_memory(self, workers: int) -> None:
        """Raise LakeError where waiting images do not fit into shared memory: a worker would die of it, silently.

        Points come on top; how many a frame has is known only when it is read.
        """
        if not _SHARED_MEMORY.is_dir():
            return
        width, height = self.config.image_size or _FULL_SIZE
        needed = _BATCHES_WAITING * workers * self._rank_batch * 3 * width * height
        free = shutil.disk_usage(_SHARED_MEMORY).free
        if free < needed:
            raise LakeError(
                f"{_SHARED_MEMORY} has {free >> 20:,} MiB free, the images that {workers} reader processes hold ready"
                f" take {needed >> 20:,}: start the container with --ipc=host or --shm-size, or read with threads alone"
                " (--data-workers 0)"
            )

    @property
    def _rank_batch(self) -> int:
        return self.config.global_batch // self.world_size

    def _start_method(self) -> str | None:
        """Return how worker processes begin; None: as the platform has it."""
        # fsspec's remote stores own threads, which a forked process would not have.
        if not self.lake.store.is_local:
            return "spawn"
        # Nor would it have the threads of CUDA, but perhaps the locks that these held.
        return "forkserver" if torch.cuda.is_initialized() else None

    def __iter__(self) -> Iterator[Sample]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        # An epoch's positions are counted in whole batches, so that batches never cross from one to the next.
        batch = self.config.global_batch
        padded = -(-self.epoch_samples // batch) * batch
        epoch, start = divmod(self.start, padded)
        turn = worker
        while self.epochs is None or epoch < self.epochs:
            positions = share(start, self.epoch_samples, batch, self.rank, self.world_size, turn, workers)
            yield from self._visit(epoch, positions)
            # The next epoch's first batch goes to the worker behind the one that had this epoch's last.
            turn = (turn - (padded - start) // batch) % workers
            epoch, start = epoch + 1, 0

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return the samples of an epoch int64 [N] in their order, numbered as they lie in the lake."""
        if not self.config.shuffle:
            return np.arange(len(self._rows))
        streams = min(self.config.streams, int((self._sizes > 0).sum()))
        return epoch_order(self._sizes, streams, self.config.seed, epoch)

    def _visit(self, epoch: int, positions: NDArray[np.int64]) -> Iterator[Sample]:
        """Yield what stands at these positions of an epoch, this worker's batches one after the other."""
        return self._read(self.order(epoch)[positions])

    def _read(self, samples: NDArray[np.int64], occasions: NDArray[np.int64] | None = None) -> Iterator[Sample]:
        """Yield samples in order; a chunk is in memory from its first to its last sample, a file likewise.

        occasions: int64 like the samples; for each occasion a chunk is read anew, so that it need not be in memory from
            one to the other; by default there is but one

        Some threads read the next chunks while others decode the next images of the present ones. What they read of a
        remote lake, yet others have asked for before: those only wait, and may be many.
        """
        config = self.config
        occasions = np.zeros_like(samples) if occasions is None else occasions
        numbers = (self._segment[samples], self._group[samples], occasions)
        places = list(zip(*(each.tolist() for each in numbers), strict=True))
        upcoming = list(dict.fromkeys(places))
        samples_left, chunks_left = Counter(places), Counter(segment for segment, *_ in upcoming)
        files: dict[int, SegmentFiles] = {}
        chunks: dict[Place, Future[Chunk]] = {}

        def fetch(place: Place) -> None:
            of_segment, group = files[place[0]], place[1]
            of_segment.fetch(group, config.columns)
            for before, _ in of_segment.frames_before(group, config.sweeps):
                of_segment.fetch(before, {"point": config.frame_columns["point"]}, of=group)

        def read(place: Place, fetched: Future[None] | None) -> Chunk:
            if fetched is not None:
                fetched.result()
            return Chunk(files[place[0]], place[1], config)

        def submit(place: Place) -> None:
            if place[0] not in files:
                files[place[0]] = SegmentFiles(self.lake, self._commits[place[0]])
            fetched = None if self.lake.store.is_local else fetchers.submit(fetch, place)
            chunks[place] = readers.submit(read, place, fetched)

        def decode(chunk: Future[Chunk], row: int) -> Sample:
            return chunk.result().sample(row)

        queue = iter(upcoming)
        started: set[Place] = set()
        decoding: deque[tuple[Place, Future[Sample]]] = deque()

        def finish() -> Sample:
            place, future = decoding.popleft()
            sample = future.result()
            samples_left[place] -= 1
            if not samples_left[place]:
                del chunks[place]
                chunks_left[place[0]] -= 1
                if not chunks_left[place[0]]:
                    files.pop(place[0]).close()
            return sample

        ahead = _CHUNKS_AHEAD if self.lake.store.is_local else max(_CHUNKS_AHEAD, config.reads)
        # Whoever takes batches finds the next one ready.
        images_ahead = max(_PICTURES_AHEAD * config.threads, self._rank_batch)
        with (
            ThreadPoolExecutor(config.reads) as fetchers,
            ThreadPoolExecutor(-(-config.threads // _DECODERS_A_READER)) as readers,
            ThreadPoolExecutor(config.threads) as decoders,
        ):
            try:
                for place in itertools.islice(queue, ahead):
                    submit(place)
                for row, place in zip(self._rows[samples].tolist(), places, strict=True):
                    if place not in started:
                        started.add(place)
                        if (following := next(queue, None)) is not None:
                            submit(following)
                    decoding.append((place, decoders.submit(decode, chunks[place], row)))
                    if len(decoding) > images_ahead:
                        yield finish()
                while decoding:
                    yield finish()
            finally:
                for pool in (fetchers, readers, decoders):
                    pool.shutdown(wait=False, cancel_futures=True)
                for pool in (fetchers, readers, decoders):
                    pool.shutdown()
                for opened in files.values():
                    opened.close()


def image_index(
    commits: tuple[Commit, ...], cameras: tuple[str, ...]
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]:
    """Return segment, row group and row [N] of every image of `cameras`, and the images per chunk [C]."""
    known = list(dict.fromkeys(camera for commit in commits for camera in commit.camera_names))
    if unknown := sorted(set(cameras) - set(known)):
        raise LakeError(f"unknown cameras: {', '.join(unknown)}; there are {', '.join(known)}")
    places, sizes = [], []
    for segment, commit in enumerate(commits):
        wanted = commit.marks(cameras)
        for group, row_cameras in enumerate(commit.chunks):
            rows = [row for row, camera in enumerate(row_cameras) if camera in wanted]
            places += [(segment, group, row) for row in rows]
            sizes.append(len(rows))
    columns = np.array(places, np.int32).reshape(-1, 3).T
    return columns[0], columns[1], columns[2], np.array(sizes, np.int64)
