"""One full-size sample after the other, in a random order: the lake by number, beside py123d's raw Arrow IPC.

    python -m benchmarks.random_access

A sample is FRONT's image, decoded, the points of its frame, its 3D boxes and its pose; without the image, the rest. One
thread, the page cache warm, contenders in turns. CPU time is what a busy machine hardly changes; samples per second
are one over it.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.fullsize import SOURCE, write_fullsize_segment
from benchmarks.loader_speed import build_lake, find_peer
from datalake.build import BuildConfig
from datalake.chunk import Chunk
from datalake.lake import Lake
from datalake.loader import image_index
from datalake.sample import Sample
from datalake.sample_options import SampleOptions
from datalake.segment_files import SegmentFiles


@dataclass(frozen=True, kw_only=True)
class RandomAccess:
    """Measure random access.

    frames: full-size frames per segment
    samples: that a contender reads in each round
    peers: folder that py123d is installed in, where it is not beside this package
    """

    segments: int = 2
    frames: int = 30
    samples: int = 60
    rounds: int = 3
    source: str = str(SOURCE)
    peers: Path = Path(sys.prefix) / "peers"
    out: Path = Path("out/bench/random_access.json")


@dataclass(frozen=True, slots=True)
class Contender:
    """A way to read a sample: how many there are, one of them, and how many points it has."""

    name: str
    count: int
    read: Callable[[int], Any]
    points: Callable[[Any], int]


@dataclass(frozen=True, slots=True)
class Result:
    """Medians over the rounds."""

    contender: str
    cpu_ms: float
    wall_ms: float
    points: int


def whole_chunks(lake: Lake, options: SampleOptions) -> Contender:
    """Return FRONT's samples as the stream reads them: all of a row group for one image of it."""
    segment, group, row, _ = image_index(lake.commits, ("FRONT",))
    files = [SegmentFiles(lake, commit) for commit in lake.commits]

    def read(number: int) -> Sample:
        return Chunk(files[segment[number]], int(group[number]), options).sample(int(row[number]))

    return Contender("lake, whole row groups", len(row), read, _points)


def contenders(options: RandomAccess, lake: Lake, sources: list[str], folder: Path) -> tuple[list[Contender], str]:
    """Return all that read the frames, and what to do for one that is missing."""
    without = SampleOptions(projections=False, boxes_3d=True, poses=True)
    everything = SampleOptions(boxes_3d=True, poses=True)
    samples, projected = lake.dataset_of_samples("train", without), lake.dataset_of_samples("train", everything)
    frames = lake.dataset_of_frames("train", without)
    ways = [
        Contender("lake", len(samples), samples.__getitem__, _points),
        Contender("lake, with projections", len(projected), projected.__getitem__, _points),
        whole_chunks(lake, everything),
        Contender("lake, no image", len(frames), frames.__getitem__, _points),
    ]
    peer = find_peer("peer_py123d", options.peers)
    if isinstance(peer, str):
        return ways, f"py123d is {peer}"
    peer.write(folder / "py123d", sources)
    count, read = peer.reader(folder / "py123d")
    ways += [
        Contender("py123d, raw IPC", count, lambda number: read(number, True), peer.points_of),
        Contender("py123d, raw IPC, no image", count, lambda number: read(number, False), peer.points_of),
    ]
    return ways, ""


def measure(way: Contender, numbers: list[int]) -> tuple[float, float]:
    """Return (CPU, wall) milliseconds a sample."""
    wall, cpu = time.perf_counter(), time.process_time()
    for number in numbers:
        way.read(number)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return 1e3 * cpu / len(numbers), 1e3 * wall / len(numbers)


def run(options: RandomAccess, folder: Path) -> tuple[list[Result], str, dict[str, int]]:
    """Write the sources, build the lake, and measure; return the results, what is missing, and sizes in bytes."""
    sources = [str(folder / f"{index}.tfrecord") for index in range(options.segments)]
    for index, path in enumerate(sources):
        write_fullsize_segment(path, options.frames, options.source, seed=index)
    lake = build_lake(str(folder / "lake"), sources, BuildConfig())
    ways, missing = contenders(options, lake, sources, folder)
    costs: dict[str, list[tuple[float, float]]] = {way.name: [] for way in ways}
    random = np.random.default_rng(0)
    for attempt in range(options.rounds + 1):
        for way in ways:
            cost = measure(way, random.integers(0, way.count, options.samples).tolist())
            # The first round opens the files.
            if attempt:
                costs[way.name].append(cost)
    results = [
        Result(
            way.name,
            statistics.median(cpu for cpu, _ in costs[way.name]),
            statistics.median(wall for _, wall in costs[way.name]),
            way.points(way.read(0)),
        )
        for way in ways
    ]
    sizes = {name: _folder_bytes(folder / name) for name in ("lake", "py123d")}
    return results, missing, sizes


def main(options: RandomAccess) -> None:
    """Measure, print and write."""
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    with tempfile.TemporaryDirectory(prefix="random-access-") as folder:
        results, missing, sizes = run(options, Path(folder))
    table = Table("reads", "CPU ms", "samples/s of CPU", "wall ms", "points")
    for column in table.columns[1:]:
        column.justify = "right"
    for result in results:
        numbers = f"{result.cpu_ms:.1f}", f"{1e3 / result.cpu_ms:.0f}", f"{result.wall_ms:.1f}", f"{result.points:,}"
        table.add_row(result.contender, *numbers)
    console = Console(width=120)
    console.print(table)
    frames = options.segments * options.frames
    console.print(", ".join(f"{name}: {size / frames / 1e6:.2f} MB a frame" for name, size in sizes.items() if size))
    if missing:
        console.print(missing)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    values = {"options": asdict(options), "results": [asdict(result) for result in results], "bytes": sizes}
    options.out.write_text(json.dumps(values, indent=1, default=str) + "\n")


def _points(sample: Any) -> int:
    return int(sample.lidar.points.shape[1])


def _folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


if __name__ == "__main__":
    main(tyro.cli(RandomAccess))
