"""The whole Waymo perception set, from measured unit costs: how long, how much, and what is in the way first.

    python -m benchmarks.scale

Measures what one frame, segment, image and step cost here (`benchmarks.unit_costs`), and works out from that and from
the assumptions in `Assumed` what building on 1, 16 and 256 cores and training on 1, 8 and 64 GPUs takes. Writes
`benchmarks/scale.md`, which says of every number whether it was measured or assumed.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from benchmarks.unit_costs import UnitCosts, measure
from datalake.loader import LoaderConfig

_HOUR_S, _MONTH_H = 3600.0, 730.0
_MB, _GB = 1e6, 1e9
_WEIGHT_BYTES = 4
# Reads of commits that are under way at once (`datalake.lake`), and an upload's part (`datalake.store`).
_PARALLEL_READS, _PART_BYTES = 16, 16 << 20


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Measure unit costs and work out the page."""

    # Full-size frames that are measured.
    frames: int = 8
    cores: tuple[int, ...] = (1, 16, 256)
    gpus: tuple[int, ...] = (1, 8, 64)
    # The loader's default.
    streams: int = LoaderConfig.streams
    # The JSON of an earlier run, to work out the page again without measuring.
    measured: Path | None = None
    page: Path = Path("benchmarks/scale.md")
    out: Path = Path("out/bench/scale.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumed:
    """Everything that was not measured. Prices are round list prices of large clouds, within one region."""

    segments: int = field(default=1150, metadata={"unit": "segments in the set"})
    frames: int = field(default=198_000, metadata={"unit": "frames in the set"})
    cameras: int = field(default=5, metadata={"unit": "images a frame"})
    cores_per_node: int = field(default=16, metadata={"unit": "cores a node of a build, each as fast as one here"})
    network: float = field(default=1.25e9, metadata={"unit": "bytes/s a node, in each direction: 10 Gbit/s"})
    stream: float = field(default=80e6, metadata={"unit": "bytes/s of one connection to the store"})
    latency_s: float = field(default=0.03, metadata={"unit": "s until a request's answer begins"})
    store: float = field(default=12.5e9, metadata={"unit": "bytes/s of the whole store, in each direction"})
    store_requests: float = field(default=5000.0, metadata={"unit": "reads/s of the whole store"})
    gpu_images_per_s: float = field(
        default=13.3, metadata={"unit": "images/s a GPU, teachers included: the paper's 48,000 an hour; not measured"}
    )
    fast_gpu_images_per_s: float = field(
        default=200.0, metadata={"unit": "images/s a GPU, of a present GPU and the smaller student: a guess"}
    )
    gpus_per_node: int = field(default=8, metadata={"unit": "GPUs a node of a training"})
    cores_per_gpu: int = field(default=8, metadata={"unit": "cores beside a GPU, each as fast as one here"})
    batch_per_gpu: int = field(default=8, metadata={"unit": "images a GPU and step"})
    epochs: int = field(default=12, metadata={"unit": "epochs over all images"})
    core_hour: float = field(default=0.04, metadata={"unit": "$ a core-hour"})
    gpu_hour: float = field(default=2.5, metadata={"unit": "$ a GPU-hour, its cores included"})
    gb_month: float = field(default=0.023, metadata={"unit": "$ a GB-month"})
    thousand_reads: float = field(default=0.0004, metadata={"unit": "$ a thousand GET and HEAD"})
    thousand_writes: float = field(default=0.005, metadata={"unit": "$ a thousand PUT, POST and LIST"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What one job takes.

    limits: what could be in the way -> the seconds that it alone would take; those of `in_turn` add up, of the rest the
        longest counts
    tail_s: what only begins when all that is done
    """

    size: str
    limits: dict[str, float]
    in_turn: tuple[str, ...]
    tail_s: float
    bytes_in: float
    bytes_out: float
    reads: float
    writes: float
    memory: dict[str, float]
    dollars: dict[str, float]

    @property
    def seconds(self) -> float:
        """How long it takes in all."""
        turns = sum(self.limits[name] for name in self.in_turn)
        return max([turns, *(value for name, value in self.limits.items() if name not in self.in_turn)]) + self.tail_s

    @property
    def bottleneck(self) -> str:
        """What has to become faster first: the longest of the limits, or of the parts of what goes in turn."""
        turns = sum(self.limits[name] for name in self.in_turn)
        others = {name: value for name, value in self.limits.items() if name not in self.in_turn}
        if others and max(others.values()) > turns:
            return max(others, key=lambda name: others[name])
        return max(self.in_turn, key=lambda name: self.limits[name])


def waves(segments: int, cores: int) -> int:
    """Return how many segments the busiest core builds."""
    return math.ceil(segments / cores)


def chunk_readers(streams: int, batch: int, processes: int, images: int) -> float:
    """Return by how many processes a chunk of `images` images is read, on average over an epoch.

    Position p of an epoch is of stream p % streams, and goes to process (p % batch) // (batch / processes).
    """
    share = batch // processes
    counts = []
    # After so many positions everything repeats.
    for first in range(math.lcm(streams, batch)):
        places = (first + number * streams for number in range(images))
        counts.append(len({place % batch // share for place in places}))
    return sum(counts) / len(counts)


def build_estimate(unit: UnitCosts, assumed: Assumed, cores: int) -> Estimate:
    """Return what building the whole set on so many cores takes."""
    nodes = math.ceil(cores / assumed.cores_per_node)
    turns = waves(assumed.segments, cores) / assumed.segments
    frame_reads = unit.frame_index_reads + unit.frame_build_reads
    parts = assumed.frames * unit.frame_bytes_out / _PART_BYTES
    # A part of its own ends each file, and each upload in parts is begun and completed.
    writes = assumed.segments * unit.segment_writes + parts
    waits = assumed.frames * frame_reads + assumed.segments * unit.segment_reads + writes
    bytes_in, bytes_out = assumed.frames * unit.frame_bytes_in, assumed.frames * unit.frame_bytes_out
    extra_reads = 2 * assumed.segments  # of commits: by the vacuum and for the snapshot
    reads = assumed.frames * frame_reads + assumed.segments * unit.segment_reads + extra_reads
    limits = {
        "cores compute": assumed.frames * (unit.frame_index_s + unit.frame_remote_build_s) * turns,
        "cores wait for the store": (waits * assumed.latency_s + (bytes_in + bytes_out) / assumed.stream) * turns,
        "network of the nodes": max(bytes_in, bytes_out) / (nodes * assumed.network),
        "the whole store": max(bytes_in, bytes_out) / assumed.store,
        "requests of the store": reads / assumed.store_requests,
        "driver": assumed.segments * unit.segment_driver_s,
    }
    tail_s = assumed.segments * unit.segment_publish_s + extra_reads * assumed.latency_s / _PARALLEL_READS
    estimate = Estimate(
        size=f"{cores} core{'s' * (cores > 1)}",
        limits=limits,
        in_turn=("cores compute", "cores wait for the store"),
        tail_s=tail_s,
        bytes_in=bytes_in,
        bytes_out=bytes_out,
        reads=reads,
        writes=writes,
        memory={"a worker": unit.build_peak_bytes + _upload_buffers(), "all workers": 0.0},
        dollars={},
    )
    estimate.memory["all workers"] = cores * estimate.memory["a worker"]
    estimate.dollars.update(
        {
            "cores": cores * estimate.seconds / _HOUR_S * assumed.core_hour,
            "requests": _request_dollars(reads, writes, assumed),
            "a month of the lake": bytes_out / _GB * assumed.gb_month,
        }
    )
    return estimate


def training_estimate(unit: UnitCosts, assumed: Assumed, gpus: int, images_per_s: float, streams: int) -> Estimate:
    """Return what training on all images takes, on so many GPUs at an assumed rate each.

    streams: the loader's; see `chunk_readers`
    """
    nodes = math.ceil(gpus / assumed.gpus_per_node)
    batch = gpus * assumed.batch_per_gpu
    images = assumed.frames * assumed.cameras * assumed.epochs
    readers = chunk_readers(streams, batch, gpus, 2 * assumed.cameras)
    bytes_in, reads = images * unit.image_bytes * readers, images * unit.image_requests * readers
    # Around a ring, each node sends and gets its gradients twice, less one part.
    reduced = 2 * unit.student_weights * _WEIGHT_BYTES * (nodes - 1) / nodes * images / batch
    limits = {
        "GPUs": images / (gpus * images_per_s),
        "cores of the loaders": images * unit.image_load_s / (gpus * assumed.cores_per_gpu),
        "network of the nodes": (bytes_in / nodes + reduced) / assumed.network,
        "the whole store": bytes_in / assumed.store,
        "requests of the store": reads / assumed.store_requests,
    }
    processes = math.ceil(images_per_s * unit.image_load_s)
    # A process holds the chunks of its own streams; those that are asked for ahead are still compressed.
    held = math.ceil(max(streams / gpus, assumed.batch_per_gpu)) * unit.chunk_bytes
    ahead = 16 * unit.image_bytes * 2 * assumed.cameras
    estimate = Estimate(
        size=f"{gpus} GPU{'s' * (gpus > 1)}",
        limits=limits,
        in_turn=("GPUs",),
        tail_s=0.0,
        bytes_in=bytes_in,
        bytes_out=0.0,
        reads=reads,
        writes=0.0,
        memory={"loaders of a GPU": held + processes * ahead},
        dollars={},
    )
    hours = estimate.seconds / _HOUR_S
    estimate.dollars.update(
        {
            "GPUs": gpus * hours * assumed.gpu_hour,
            "requests": _request_dollars(reads, 0.0, assumed),
            "the lake meanwhile": assumed.frames * unit.frame_bytes_out / _GB * assumed.gb_month * hours / _MONTH_H,
        }
    )
    return estimate


def headroom(estimate: Estimate) -> tuple[str, float]:
    """Return the next limit behind the GPUs, and how many times faster they may become until it is reached."""
    others = {name: value for name, value in estimate.limits.items() if name not in estimate.in_turn}
    name = max(others, key=lambda one: others[one])
    return name, sum(estimate.limits[one] for one in estimate.in_turn) / others[name]


def _upload_buffers() -> float:
    """Return the bytes that the parts of a segment's six open files take, where the lake is remote."""
    return 6.0 * _PART_BYTES


def _request_dollars(reads: float, writes: float, assumed: Assumed) -> float:
    return reads / 1000 * assumed.thousand_reads + writes / 1000 * assumed.thousand_writes


def markdown(unit: UnitCosts, assumed: Assumed, options: Scale, machine: str) -> str:
    """Return the page: measured, assumed, and what follows."""
    builds = [build_estimate(unit, assumed, cores) for cores in options.cores]
    slow, fast = (
        [training_estimate(unit, assumed, gpus, rate, options.streams) for gpus in options.gpus]
        for rate in (assumed.gpu_images_per_s, assumed.fast_gpu_images_per_s)
    )
    matched = [
        training_estimate(unit, assumed, gpus, assumed.fast_gpu_images_per_s, gpus * assumed.batch_per_gpu)
        for gpus in options.gpus
    ]
    readers = [
        chunk_readers(options.streams, gpus * assumed.batch_per_gpu, gpus, 2 * assumed.cameras) for gpus in options.gpus
    ]
    busiest, average = waves(assumed.segments, options.cores[-1]), assumed.segments / options.cores[-1]
    teachers = assumed.frames * (unit.frame_lidar_s + assumed.cameras * unit.image_mask_s)
    student = assumed.frames * assumed.cameras * unit.image_student_s
    cpu_dollars = (teachers + student) / _HOUR_S * assumed.core_hour
    return "\n".join(
        [
            "# The whole Waymo perception set, on paper",
            "",
            f"Made by `python -m benchmarks.scale` on {machine}.",
            "Nothing here was run at this size, and no GPU was measured: every number is **measured** on small samples",
            "(first table), **assumed** (second), or arithmetic on these two (`benchmarks/scale.py`).",
            "",
            "## Measured here, one thread",
            "",
            f"One segment of {options.frames} full-size frames (201k points, five images), tiny ones for the driver,",
            "commits as long as real ones. Seconds are CPU seconds of one thread.",
            "",
            *_table(["what", "measured"], _measured(unit)),
            "",
            "## Assumed",
            "",
            *_table(
                ["what", "assumed"], [[_unit(item), f"{getattr(assumed, item.name):,g}"] for item in fields(assumed)]
            ),
            "",
            "## Building",
            "",
            f"{assumed.segments:,} segments, {assumed.frames:,} frames, from an object store into a lake on it. A core",
            "reads, computes and writes by turns: nothing is read ahead, so the waiting adds to the work.",
            "",
            *_comparison(builds),
            "",
            f"On {builds[-1].size} the busiest core has {busiest} segments, the average {average:.1f}: whole"
            f" segments cost {1 - average / busiest:.0%} there.",
            "",
            "## Training",
            "",
            f"{assumed.epochs} epochs over {assumed.frames * assumed.cameras:,} images with points, no local cache.",
            f"First at the paper's rate of {assumed.gpu_images_per_s:g} images/s a GPU, an **assumption**:",
            "",
            *_comparison(slow),
            "",
            f"Then at {assumed.fast_gpu_images_per_s:g} images/s a GPU, a **guess**:",
            "",
            *_comparison(fast),
            "",
            "What limits next, and how many times faster the GPUs may become until it does (below 1 it does already):",
            "",
            *_table(
                ["", *(estimate.size for estimate in slow)],
                [
                    [f"{rate:g} images/s, {name}", *(_told(*headroom(estimate)) for estimate in estimates)]
                    for rate, name, estimates in (
                        (assumed.gpu_images_per_s, f"{options.streams} streams", slow),
                        (assumed.fast_gpu_images_per_s, f"{options.streams} streams", fast),
                        (assumed.fast_gpu_images_per_s, "as many streams as images in a batch", matched),
                    )
                ],
            ),
            "",
            f"With the loader's default of {options.streams} streams a chunk is read by"
            f" {', '.join(f'{value:.1f}' for value in readers)} processes on {_words(options.gpus)} GPUs with"
            f" {assumed.batch_per_gpu} images each; the bytes and requests above have it in them. With `streams` a"
            " multiple of the global batch it is read by one;"
            f" at {assumed.fast_gpu_images_per_s:g} images/s that makes "
            + ", ".join(f"{_duration(estimate.seconds)} on {estimate.size}" for estimate in matched)
            + ". What is read more than once costs the loaders' cores more than stands above.",
            "",
            "Without any GPU, on cores as fast as one here: an epoch of the student takes"
            f" {student / _HOUR_S:,.0f} core-hours (float32), both default teachers asked once about everything"
            f" {teachers / _HOUR_S:,.0f}; together {cpu_dollars:,.0f} $. The public SPVNAS is many times larger than"
            " the default lidar teacher.",
            "",
        ]
    )


def _measured(unit: UnitCosts) -> list[list[str]]:
    rows = [
        ("frame: bytes in", f"{unit.frame_bytes_in / _MB:.2f} MB"),
        ("frame: bytes out", f"{unit.frame_bytes_out / _MB:.2f} MB"),
        ("frame: index", f"{unit.frame_index_s * 1e3:.2f} ms"),
        ("frame: parse", f"{unit.frame_parse_s * 1e3:.1f} ms"),
        ("frame: convert", f"{unit.frame_convert_s * 1e3:.1f} ms"),
        ("frame: write Parquet", f"{unit.frame_write_s * 1e3:.1f} ms"),
        ("frame: whole build, on a disk", f"{unit.frame_build_s * 1e3:.1f} ms"),
        ("frame: whole build, over HTTP", f"{unit.frame_remote_build_s * 1e3:.1f} ms"),
        ("frame: reads of the source", f"{unit.frame_index_reads:.2f} to plan, {unit.frame_build_reads:.2f} to build"),
        ("segment: other requests", f"{unit.segment_reads:.0f} reads, {unit.segment_writes:.0f} writes"),
        ("segment: driver, plan to report", f"{unit.segment_driver_s * 1e3:.2f} ms"),
        ("segment: commit", f"{unit.segment_commit_s * 1e3:.2f} ms, {unit.segment_commit_bytes:,.0f} bytes"),
        ("segment: its part of publishing a snapshot", f"{unit.segment_publish_s * 1e3:.3f} ms"),
        ("segment: its part of opening one", f"{unit.segment_open_s * 1e3:.3f} ms"),
        ("worker of a build: peak memory", f"{unit.build_peak_bytes / _MB:,.0f} MB"),
        ("image: load, over HTTP, to 384 x 256, with points", f"{unit.image_load_s * 1e3:.1f} ms"),
        ("image: bytes and requests", f"{unit.image_bytes / _MB:.2f} MB, {unit.image_requests:.2f} requests"),
        ("chunk of ten images: in memory", f"{unit.chunk_bytes / _MB:.1f} MB"),
        ("image: student's step, two branches, float32", f"{unit.image_student_s * 1e3:.0f} ms"),
        ("student: weights", f"{unit.student_weights / 1e6:.2f} M"),
        ("image: default mask teacher", f"{unit.image_mask_s * 1e3:.0f} ms"),
        ("frame: default lidar teacher, 179k points", f"{unit.frame_lidar_s * 1e3:,.0f} ms"),
    ]
    return [list(row) for row in rows]


def _comparison(estimates: Sequence[Estimate]) -> list[str]:
    """Return a table with a column for each estimate."""
    first = estimates[0]
    rows = [["time", *(_duration(estimate.seconds) for estimate in estimates)]]
    rows += [[f"- {name}", *(_duration(one.limits[name]) for one in estimates)] for name in first.limits]
    rows.append(["- in the end: vacuum, snapshot", *(_duration(one.tail_s) for one in estimates)])
    rows.append(["**first bottleneck**", *(f"**{one.bottleneck}**" for one in estimates)])
    rows.append(["bytes read", *(f"{one.bytes_in / _GB:,.0f} GB" for one in estimates)])
    rows.append(["bytes written", *(f"{one.bytes_out / _GB:,.0f} GB" for one in estimates)])
    rows.append(["reads", *(f"{one.reads:,.0f}" for one in estimates)])
    rows.append(["writes", *(f"{one.writes:,.0f}" for one in estimates)])
    rows += [[f"memory: {name}", *(f"{one.memory[name] / _GB:,.2f} GB" for one in estimates)] for name in first.memory]
    rows += [[f"cost: {name}", *(f"{one.dollars[name]:,.2f} $" for one in estimates)] for name in first.dollars]
    told = [row for row in rows if any(value.strip("0. sGB$") for value in row[1:])]
    return _table(["", *(estimate.size for estimate in estimates)], told)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _duration(seconds: float) -> str:
    if seconds >= 2 * _HOUR_S:
        return f"{seconds / _HOUR_S:,.1f} h"
    return f"{seconds / 60:,.1f} min" if seconds >= 120 else f"{seconds:,.1f} s"


def _told(name: str, times: float) -> str:
    return f"{name}, {times:,.1f} times"


def _unit(item: Any) -> str:
    return f"`{item.name}`: {item.metadata['unit']}"


def _words(numbers: Sequence[int]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


def run(options: Scale, console: Console) -> int:
    """Measure, or take what was measured, and write the page."""
    if options.measured is None:
        unit = measure(options.frames)
        machine = f"{datetime.date.today().isoformat()}, {os.cpu_count()} cores ({_processor()})"
    else:
        kept = json.loads(options.measured.read_text())
        unit, machine = UnitCosts(**kept["measured"]), kept["machine"]
    page = markdown(unit, Assumed(), options, machine)
    options.page.write_text(page)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"machine": machine, "measured": asdict(unit)}, indent=1) + "\n")
    console.print(page, markup=False, soft_wrap=True)
    return 0


def _processor() -> str:
    """Return what the machine calls its processor."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"


if __name__ == "__main__":
    sys.exit(run(tyro.cli(Scale, description=__doc__), Console()))
