"""A lake from a few hand-made frames, by the same calls that a real build makes, and its rows as dictionaries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datalake.build import BuildConfig, SegmentReport, build_segment
from datalake.lake import Lake, open_lake, prepare_lake, publish_snapshot
from datalake.plan import plan_segments
from datalake.sources.formats import index_source
from datalake.sources.source import SegmentPlan
from datalake.store import Store
from tests.frames import write_frames

# Tests of bad input want to see every row, not a failed segment.
LENIENT = BuildConfig(max_quarantined=1.0, allow_truncated=True)


@dataclass(frozen=True)
class Built:
    """What a build reported, and the lake that it left."""

    reports: list[SegmentReport]
    lake: Lake

    @property
    def report(self) -> SegmentReport:
        """The report of the only segment."""
        (only,) = self.reports
        return only

    def rows(self, table: str) -> list[dict[str, Any]]:
        """Return all rows of a table."""
        rows: list[dict[str, Any]] = self.lake.scan(table).to_table().to_pylist()
        return rows

    @property
    def timestamps(self) -> list[int]:
        """The times of the frames in the lake."""
        return [row["timestamp_us"] for row in self.rows("point")]

    @property
    def faults(self) -> list[tuple[str, str, str]]:
        """(scope, stage, message) of each row of the quarantine."""
        return [(row["scope"], row["stage"], row["message"]) for row in self.rows("quarantine")]


def plan_files(sources: Sequence[str]) -> list[SegmentPlan]:
    """Return the plans of all segments in these files."""
    return plan_segments([index_source(source) for source in sources])


def build_files(lake_url: str, sources: Sequence[str], config: BuildConfig = LENIENT) -> Built:
    """Build every segment of these files into a lake, publish it, and open it."""
    store = Store(lake_url)
    prepare_lake(store, config.points)
    reports = [build_segment(plan, lake_url, config) for plan in plan_files(sources)]
    publish_snapshot(store)
    return Built(reports, open_lake(lake_url))


def build_frames(folder: Path, frames: Sequence[Any], config: BuildConfig = LENIENT) -> Built:
    """Write the frames to one file below `folder` and build a lake of it there."""
    source = write_frames(folder / "source.tfrecord", frames)
    return build_files(str(folder / "lake"), [source], config)


def write_bytes(path: Path, data: bytes) -> str:
    """Write a file as it is; return its URL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path.absolute().as_uri()
