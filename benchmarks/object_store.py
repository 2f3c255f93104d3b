"""How much of the loader's speed is left where every request to the store takes 20 or 100 ms?

    python -m benchmarks.object_store

A lake of simulated drives, on a disk and behind an S3 endpoint in another process that waits before each answer, and
then gives it from memory (`benchmarks.faulty_store`). For each latency, in turns with the lake on the disk, several
rounds:

- one read at a time: the next chunk is asked for while the present one is decoded, no read-ahead to speak of
- the default number of reads in flight
- the same with an empty local cache, and once more with what is then in it

A rate is images per second over an epoch, with points and labels joined, start included; its ratio is taken to the
disk's rate of the same round, the medians are shown. CPU time is of this process alone: the client's own work for a
request is in it, the store's is not. The command fails where the default's ratio at the longest latency is below
`required` times that at the shortest.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.faulty_store import Faults, FaultyStore, Request, moto_server
from benchmarks.loader_speed import build_lake
from datalake.build import BuildConfig
from datalake.cache import RangeCache
from datalake.lake import Lake, open_lake
from datalake.loader import LoaderConfig, SampleStream
from datalake.store import Store
from datalake.synthetic import DriveConfig, write_drives

_BUCKET = "lakes"


@dataclass(frozen=True, kw_only=True)
class ObjectStore:
    """Measure the loader on a slow store.

    lake: a local lake to read, its split `split`; one of simulated drives is built where it is not given
    share: of the requests that end in a fault
    """

    lake: str | None = None
    split: str = "train"
    segments: int = 16
    frames: int = 40
    streams: int = 16
    rounds: int = 3
    latencies_ms: tuple[float, ...] = (0, 20, 100)
    reads: int = LoaderConfig.reads
    share: float = 0.0
    required: float = 0.6
    out: Path = Path("out/bench/object_store.json")


@dataclass(frozen=True, slots=True)
class Run:
    """One epoch."""

    images_per_s: float
    cpu_ms_per_image: float
    requests_per_image: float
    mb_per_image: float


@dataclass(frozen=True, slots=True)
class Result:
    """A way of reading at one latency, medians over the rounds; `ratio` is to the lake on the disk."""

    latency_ms: float
    way: str
    images_per_s: float
    ratio: float
    cpu_ms_per_image: float
    requests_per_image: float
    mb_per_image: float


class RemoteStore:
    """The slow store in a process of its own, so that its work is not taken for the loader's."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def behave(self, faults: Faults) -> None:
        """Set latency and faults, and forget the requests so far."""
        self._pipe.send(faults)
        self._pipe.recv()

    def log(self) -> list[Request]:
        """Return the requests since the store was last told how to behave."""
        self._pipe.send(None)
        log: list[Request] = self._pipe.recv()
        return log


def serve(pipe: Connection) -> None:
    """Run the store until the other end is closed."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with moto_server() as upstream, FaultyStore(upstream, Faults(), keeps=True) as store:
        pipe.send(store.url)
        while True:
            try:
                order = pipe.recv()
            except EOFError:
                return
            if order is None:
                pipe.send(list(store.log))
            else:
                store.faults = order
                store.log.clear()
                pipe.send(True)


@contextmanager
def remote_store() -> Iterator[RemoteStore]:
    """Start a store with an empty bucket, and point every S3 client of this process to it."""
    import s3fs

    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there,), daemon=True)
    process.start()
    there.close()
    os.environ |= {
        "AWS_ENDPOINT_URL": here.recv(),
        "AWS_ACCESS_KEY_ID": "benchmark",
        "AWS_SECRET_ACCESS_KEY": "benchmark",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    s3fs.S3FileSystem().mkdir(_BUCKET)
    try:
        yield RemoteStore(here)
    finally:
        here.close()
        process.join()


def upload(lake: Lake, split: str, url: str) -> Lake:
    """Copy the split's files to a store; return the lake there, opened from this one's snapshot."""
    commits = lake.in_split(split)
    store = Store(url)
    for commit in commits:
        for table in commit.files:
            name = commit.file_name(table)
            store.write(name, lake.store.read(name))
    return replace(lake, store=store, commits=commits)


def epoch(lake: Lake, config: LoaderConfig, store: RemoteStore, faults: Faults) -> Run:
    """Read an epoch in this process."""
    store.behave(faults)
    start, cpu = time.perf_counter(), time.process_time()
    images = sum(len(batch) for batch in SampleStream(lake, config).loader())
    seconds, cpu_s = time.perf_counter() - start, time.process_time() - cpu
    log = store.log()
    moved = sum(request.bytes for request in log)
    return Run(images / seconds, 1e3 * cpu_s / images, len(log) / images, moved / 1e6 / images)


def compare(options: ObjectStore, disk: Lake, remote: Lake, store: RemoteStore, folder: Path) -> list[Result]:
    """Read in all ways, in turns."""
    config = LoaderConfig(split=options.split, streams=options.streams, reads=options.reads)
    runs: dict[tuple[float, str], list[tuple[Run, float]]] = {}
    # The page cache and the store's memory are filled first.
    epoch(disk, config, store, Faults())
    epoch(remote, config, store, Faults())
    for round_ in range(options.rounds):
        for latency_ms in options.latencies_ms:
            faults = Faults(share=options.share, latency_s=latency_ms / 1e3, seed=round_)
            cached = replace(remote, cache=RangeCache(str(folder / f"cache-{round_}-{latency_ms:g}")))
            ways = {
                "disk": (disk, config),
                "one read at a time": (remote, replace(config, reads=1)),
                f"{config.reads} reads in flight": (remote, config),
                "cache, first epoch": (cached, config),
                "cache, second epoch": (cached, config),
            }
            here = {way: epoch(lake, settings, store, faults) for way, (lake, settings) in ways.items()}
            for way, run in here.items():
                runs.setdefault((latency_ms, way), []).append((run, run.images_per_s / here["disk"].images_per_s))
    return [_result(latency_ms, way, found) for (latency_ms, way), found in runs.items()]


def show(results: list[Result], console: Console) -> None:
    """Print one table."""
    table = Table("latency ms", "way", "images/s", "of disk", "CPU ms/image", "requests/image", "MB/image")
    for column in table.columns:
        column.justify = "left" if column.header == "way" else "right"
    before = None
    for result in results:
        if before not in (None, result.latency_ms):
            table.add_section()
        before = result.latency_ms
        table.add_row(
            f"{result.latency_ms:g}",
            result.way,
            f"{result.images_per_s:.0f}",
            f"{result.ratio:.2f}",
            f"{result.cpu_ms_per_image:.1f}",
            f"{result.requests_per_image:.2f}",
            f"{result.mb_per_image:.2f}",
        )
    console.print(table)


def main(options: ObjectStore) -> int:
    """Measure, print and write; return 1 where the latency costs more than is allowed."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="object-store-") as temporary, remote_store() as store:
        folder = Path(temporary)
        disk = open_lake(options.lake) if options.lake else _simulate(options, folder)
        disk = replace(disk, commits=disk.in_split(options.split)[: options.segments])
        remote = upload(disk, options.split, f"s3://{_BUCKET}")
        results = compare(options, disk, remote, store, folder)
    console = Console(width=120)
    show(results, console)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    values = {"options": asdict(options), "results": [asdict(result) for result in results]}
    options.out.write_text(json.dumps(values, indent=1, default=str) + "\n")
    ahead = [result.ratio for result in results if result.way.endswith("in flight")]
    if ahead[-1] >= options.required * ahead[0]:
        return 0
    console.print(
        f"{options.latencies_ms[-1]:g} ms leave {ahead[-1] / ahead[0]:.2f} of the rate at"
        f" {options.latencies_ms[0]:g} ms, required is {options.required}"
    )
    return 1


def _simulate(options: ObjectStore, folder: Path) -> Lake:
    config = DriveConfig(image_width=384, image_height=256)
    sources = write_drives(
        str(folder / "drives"), config, segments=options.segments, frames=options.frames, workers=os.cpu_count() or 1
    )
    return build_lake(str(folder / "lake"), sources, BuildConfig(split=options.split, cameras=("FRONT",)))


def _result(latency_ms: float, way: str, found: list[tuple[Run, float]]) -> Result:
    runs = [run for run, _ in found]
    return Result(
        latency_ms=latency_ms,
        way=way,
        images_per_s=round(statistics.median(run.images_per_s for run in runs), 1),
        ratio=round(statistics.median(ratio for _, ratio in found), 3),
        cpu_ms_per_image=round(min(run.cpu_ms_per_image for run in runs), 2),
        requests_per_image=round(statistics.median(run.requests_per_image for run in runs), 3),
        mb_per_image=round(statistics.median(run.mb_per_image for run in runs), 3),
    )


if __name__ == "__main__":
    sys.exit(main(tyro.cli(ObjectStore)))
