"""The same full-size frames from records of Waymo 1.x and from components of 2.x, built in turn on one core.

    python -m benchmarks.waymo_versions

Needs the pair in `../shared/data` that the official classes wrote; each segment repeats that frame.
"""

from __future__ import annotations

import json
import resource
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tyro
from rich.console import Console
from rich.table import Table

from datalake.build import BuildConfig, build_segment
from datalake.lake import prepare_lake
from datalake.plan import plan_segments
from datalake.source_list import list_sources
from datalake.sources.formats import index_source
from datalake.sources.waymo_v1.protos import dataset_pb2
from datalake.sources.waymo_v1.tfrecord import RecordFile, Slot, write_records
from datalake.sources.waymo_v2.component import COMPONENTS, TIME_KEY
from datalake.store import Store

_DATA = Path(__file__).resolve().parents[2] / "shared/data"
_STEP_US = 100_000


@dataclass(frozen=True, kw_only=True)
class WaymoVersions:
    """Measure builds from both versions."""

    frames: int = 20
    rounds: int = 3
    # Frames in a row group of the components.
    group_frames: int = 10
    out: Path = Path("out/bench/waymo_versions.json")


@dataclass(frozen=True, slots=True)
class Built:
    """One build: milliseconds of CPU and of time a frame, bytes read and written a frame, peak memory in MB."""

    cpu_ms: float
    wall_ms: float
    bytes_in: int
    bytes_out: int
    peak_mb: float


def write_v1(path: Path, frames: int) -> None:
    """Write the frame as so many records."""
    with RecordFile(str(_DATA / "waymo_v2_as_v1.tfrecord")) as file:
        record = next(file.read(slot) for slot in file.slots() if isinstance(slot, Slot))

    def payload(index: int) -> bytes:
        frame = dataset_pb2.Frame.FromString(record)
        frame.timestamp_micros += index * _STEP_US
        data: bytes = frame.SerializeToString()
        return data

    write_records(str(path), (payload(index) for index in range(frames)))


def write_v2(folder: Path, frames: int, group_frames: int) -> None:
    """Write the frame as so many frames of each component that is read."""
    for component in COMPONENTS.values():
        (source,) = (_DATA / "waymo_v2" / component.folder).glob("*.parquet")
        table = pq.read_table(source)
        path = folder / component.folder / source.name
        path.parent.mkdir(parents=True)
        with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
            if not component.of_frame:
                writer.write_table(table)
                continue
            place, kind = table.column_names.index(TIME_KEY), table.schema.field(TIME_KEY)
            for start in range(0, frames, group_frames):
                parts = [
                    table.set_column(place, kind, pc.add(table[TIME_KEY], index * _STEP_US).cast(kind.type))
                    for index in range(start, min(frames, start + group_frames))
                ]
                group = pa.concat_tables(parts)
                writer.write_table(group, row_group_size=len(group))


def build(source: str, lake: str) -> Built:
    """Build a lake of one segment in this process."""
    pa.set_cpu_count(1)
    wall, cpu = time.perf_counter(), time.process_time()
    prepare_lake(Store(lake), "quantised")
    (plan,) = plan_segments([index_source(uri) for uri in list_sources([source])])
    report = build_segment(plan, lake, BuildConfig())
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    if report.outcome != "committed":
        raise RuntimeError(report.reason)
    return Built(
        1e3 * cpu / report.frames,
        1e3 * wall / report.frames,
        report.bytes_in // report.frames,
        report.bytes_out // report.frames,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


def main(config: WaymoVersions) -> None:
    """Build in turn, print the best of each, and write all of them."""
    folder = Path(tempfile.mkdtemp(prefix="waymo_versions_"))
    results: dict[str, list[Built]] = {"1.x": [], "2.x": []}
    try:
        write_v1(folder / "v1.tfrecord", config.frames)
        write_v2(folder / "v2", config.frames, config.group_frames)
        for attempt in range(config.rounds):
            for version, source in (("1.x", folder / "v1.tfrecord"), ("2.x", folder / "v2")):
                # A process each: peak memory is that of one build.
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                    lake = folder / f"lake_{version}_{attempt}"
                    results[version].append(pool.submit(build, str(source), str(lake)).result())
                    shutil.rmtree(lake)
    finally:
        shutil.rmtree(folder)
    Console().print(table_of(results, config.frames))
    config.out.parent.mkdir(parents=True, exist_ok=True)
    values = {version: [asdict(one) for one in built] for version, built in results.items()}
    config.out.write_text(json.dumps({"frames": config.frames, "builds": values}, indent=1))


def table_of(results: dict[str, list[Built]], frames: int) -> Table:
    """Return the best of the rounds for each version, a frame."""
    table = Table("source", "CPU ms", "wall ms", "MB in", "MB out", "peak MB", title=f"a frame of {frames}")
    for version, built in results.items():
        best = min(built, key=lambda one: one.cpu_ms)
        sizes = f"{best.bytes_in / 1e6:.2f}", f"{best.bytes_out / 1e6:.2f}"
        table.add_row(version, f"{best.cpu_ms:.0f}", f"{best.wall_ms:.0f}", *sizes, f"{best.peak_mb:.0f}")
    return table


if __name__ == "__main__":
    main(tyro.cli(WaymoVersions))
