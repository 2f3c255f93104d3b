"""How fast, how lean and how small: full-size frames from TFRecord bytes to committed tables.

    python -m benchmarks.build_speed [--official-python PATH]

Per frame on one core: the build, its floor in the same run (protobuf parse, inflating every range image, and
encoding the finished tables as Parquet into memory: what no converter can avoid), and, given an interpreter that
has it, the official package's parse and conversion. Then two workers against one, the peak memory of a 200-frame
segment, and bytes out against bytes in for both point modes.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.fullsize import SOURCE, write_fullsize_segment
from datalake.attempt import begin_attempt
from datalake.build import BuildConfig, SegmentReport, build_segment
from datalake.convert import frame_rows
from datalake.lake import prepare_lake
from datalake.plan import plan_segments
from datalake.schema import TABLES, PointMode
from datalake.sources.formats import index_source
from datalake.sources.frame import ALL_CAMERAS
from datalake.sources.source import SegmentPlan
from datalake.sources.waymo_v1.matrix import decode_float_matrix, decode_int_matrix
from datalake.sources.waymo_v1.parse import parse_frame
from datalake.sources.waymo_v1.protos import dataset_pb2
from datalake.sources.waymo_v1.source import slot_of
from datalake.sources.waymo_v1.tfrecord import RecordFile
from datalake.store import Store
from datalake.writer import SegmentWriter

_OFFICIAL = Path(__file__).with_name("official_decoder.py")
# What is promised.
_FRAME_MS, _TWO_WORKERS, _MEMORY_BYTES, _BYTES = 120.0, 1.8, 1e9, {"quantised": 0.75, "lossless": 1.0}


@dataclass(frozen=True, kw_only=True)
class BuildSpeed:
    """Measure the build of full-size segments."""

    frames: int = 40
    rounds: int = 3
    memory_frames: int = 200
    # An interpreter with TensorFlow and the official package; without it that line is left out, and said to be.
    official_python: str | None = None
    out: Path = Path("out/bench/build_speed.json")


def plan_of(path: Path) -> SegmentPlan:
    """Return the plan of a file's only segment."""
    (plan,) = plan_segments([index_source(str(path))])
    return plan


def build(plan: SegmentPlan, lake: Path, mode: PointMode = "quantised") -> SegmentReport:
    """Build a segment into a fresh lake; raises RuntimeError unless it is committed with no fault."""
    shutil.rmtree(lake, ignore_errors=True)
    prepare_lake(Store(str(lake)), mode)
    report = build_segment(plan, str(lake), BuildConfig(points=mode))
    if report.outcome != "committed" or report.quarantined:
        raise RuntimeError(f"{report.outcome}: {report.reason}, {report.quarantined} quarantined")
    return report


def floor_ms(path: Path, plan: SegmentPlan) -> float:
    """Return the milliseconds per frame of parse, inflate and Parquet encoding alone."""
    with RecordFile(str(path)) as file:
        payloads = [file.read(slot_of(ref)) for ref in plan.records]
    rows = [frame_rows(parse_frame(payload, frozenset(ALL_CAMERAS)), "quantised") for payload in payloads]
    begun = time.perf_counter()
    for payload in payloads:
        for laser in dataset_pb2.Frame.FromString(payload).lasers:
            for message in (laser.ri_return1, laser.ri_return2):
                decode_float_matrix(message.range_image_compressed)
                decode_int_matrix(message.camera_projection_compressed)
                if message.range_image_pose_compressed:
                    decode_float_matrix(message.range_image_pose_compressed)
    store = Store("memory://floor")
    with SegmentWriter(store, begin_attempt(store, "train", plan.segment, tuple(TABLES), "")) as writer:
        for frame in rows:
            writer.append(frame)
        writer.finish({})
    return (time.perf_counter() - begun) / len(payloads) * 1e3


def two_workers(folder: Path, frames: int) -> float:
    """Return the throughput of two processes, a segment each, over that of one with one of the segments."""
    plans = [plan_of(folder / f"segment-{number}.tfrecord") for number in range(2)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        # Start both and let them import before anything is timed.
        list(pool.map(_timed_build, plans, [folder / "lake-a", folder / "lake-b"]))
        alone_s = min(pool.submit(_timed_build, plans[0], folder / "lake-a").result() for _ in range(3))
        together_s = []
        for _ in range(3):
            begun = time.perf_counter()
            list(pool.map(_timed_build, plans, [folder / "lake-a", folder / "lake-b"]))
            together_s.append(time.perf_counter() - begun)
    return (2 * frames / min(together_s)) / (frames / alone_s)


def _timed_build(plan: SegmentPlan, lake: Path) -> float:
    begun = time.perf_counter()
    build(plan, lake)
    return time.perf_counter() - begun


def _memory(path: Path, lake: Path) -> int:
    build(plan_of(path), lake)
    # getrusage would also count what the parent had in memory when it forked.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def peak_memory(path: Path, lake: Path) -> int:
    """Return the peak resident bytes of a fresh process that builds the segment, imports included."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_memory, path, lake).result()


def run(config: BuildSpeed, console: Console) -> int:
    """Measure, print the table, and return exit status 0 only if every bound is kept."""
    metrics: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(2):
            write_fullsize_segment(str(folder / f"segment-{number}.tfrecord"), config.frames, seed=number)
        path = folder / "segment-0.tfrecord"
        plan = plan_of(path)
        build_ms, floors_ms = [], []
        for _ in range(config.rounds):
            begun = time.perf_counter()
            report = build(plan, folder / "lake")
            build_ms.append((time.perf_counter() - begun) / config.frames * 1e3)
            floors_ms.append(floor_ms(path, plan))
        metrics["frame_ms"], metrics["floor_ms"] = min(build_ms), min(floors_ms)
        metrics["stages_ms"] = {stage: spent / config.frames * 1e3 for stage, spent in report.seconds.items()}
        if config.official_python:
            metrics["official_ms"] = _official_ms(config.official_python, folder)
        metrics["two_workers"] = two_workers(folder, config.frames)
        for mode in get_args(PointMode):
            original = build(plan_of(SOURCE), folder / "lake", mode)
            drive = build(plan, folder / "lake", mode)
            metrics[f"bytes_{mode}"] = original.bytes_out / original.bytes_in
            metrics[f"bytes_{mode}_drive"] = drive.bytes_out / drive.bytes_in
        long = folder / "long.tfrecord"
        write_fullsize_segment(str(long), config.memory_frames, seed=2)
        metrics["peak_bytes"] = peak_memory(long, folder / "lake")

    kept = _print(metrics, config, console)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    config.out.write_text(json.dumps(metrics, indent=1))
    return 0 if kept else 1


def _official_ms(python: str, folder: Path) -> float:
    few = folder / "few.tfrecord"
    write_fullsize_segment(str(few), 4)
    done = subprocess.run([python, str(_OFFICIAL), str(few)], check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1])["frame_ms"])


def _print(metrics: dict[str, Any], config: BuildSpeed, console: Console) -> bool:
    table = Table("figure", "measured", "bound", title="full-size frames: 201k points, five images", min_width=90)
    frame_ms, kept = metrics["frame_ms"], True

    def add(name: str, text: str, bound: str = "", holds: bool = True) -> None:
        nonlocal kept
        kept &= holds
        table.add_row(name, text if holds else f"[red]{text}", bound)

    add("bytes to committed tables, one core", f"{frame_ms:.1f} ms", f"≤ {_FRAME_MS:g} ms", frame_ms <= _FRAME_MS)
    add("  by stage", ", ".join(f"{stage} {ms:.1f}" for stage, ms in metrics["stages_ms"].items()))
    add("floor: parse, inflate, encode", f"{metrics['floor_ms']:.1f} ms")
    add("build / floor", f"{frame_ms / metrics['floor_ms']:.2f}")
    if "official_ms" in metrics:
        add("official parse + convert", f"{metrics['official_ms']:.0f} ms")
        add("official / build", f"{metrics['official_ms'] / frame_ms:.1f}")
    else:
        add("official parse + convert", "not measured: no --official-python")
    workers = metrics["two_workers"]
    add("two workers / one", f"{workers:.2f}", f"≥ {_TWO_WORKERS}", workers >= _TWO_WORKERS)
    peak = metrics["peak_bytes"]
    add(f"peak memory, {config.memory_frames} frames", f"{peak / 1e6:,.0f} MB", "≤ 1,000 MB", peak <= _MEMORY_BYTES)
    for mode, bound in _BYTES.items():
        for suffix, what in (("", "the one real-sized record"), ("_drive", f"{config.frames} frames of a drive")):
            ratio = metrics[f"bytes_{mode}{suffix}"]
            add(f"{mode} bytes out / in, {what}", f"{ratio:.3f}", f"≤ {bound}", ratio <= bound)
    console.print(table)
    return kept


if __name__ == "__main__":
    # One core means one thread, also in the libraries' own pools.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(run(tyro.cli(BuildSpeed, description=__doc__), Console()))
