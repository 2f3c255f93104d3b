"""Segments that cost nothing to build: what is left is the work of the driver, the commit log and the snapshot.

The plans and commits are as large as real ones; the data files hold a few bytes, which nobody reads.
"""

from __future__ import annotations

import hashlib

from datalake.build import BuildConfig, SegmentReport
from datalake.commit import Commit, DataFile, SourceFile
from datalake.lake import now, write_commit
from datalake.schema import TABLES
from datalake.sources.frame import ALL_CAMERAS
from datalake.sources.source import RecordRef, SegmentPlan, SourceIndex
from datalake.store import Store

_RECORD_BYTES = 5_000_000
_STEP_US = 100_000
_CONTENT = b"nobody reads this"


def segment_name(number: int) -> str:
    """Return a name as long as those of Waymo's segments."""
    return f"{number:020d}_1000_000_1020_000"


def source_url(number: int, frames: int) -> str:
    """Return the URL of a source that is not there; `index_tiny` understands it."""
    return f"file:///tiny/{frames}/segment-{segment_name(number)}.tfrecord"


def index_tiny(uri: str) -> SourceIndex:
    """Return the index of a source with one segment, from its URL alone; in place of `index_source`."""
    _, frames, name = uri.rsplit("/", 2)
    segment = name.removeprefix("segment-").removesuffix(".tfrecord")
    records = [
        RecordRef(uri, index, index * _RECORD_BYTES, _RECORD_BYTES, index * _STEP_US) for index in range(int(frames))
    ]
    return SourceIndex(uri, int(frames) * _RECORD_BYTES, "1.0", {segment: records}, {})


def build_tiny(plan: SegmentPlan, lake_url: str, config: BuildConfig) -> SegmentReport:
    """Commit a segment whose tables hold a few bytes each; in place of `build_segment`."""
    store = Store(lake_url)
    commit = tiny_commit(plan.segment, plan.sources, len(plan.records), config)
    for table in TABLES:
        store.write(commit.file_name(table), _CONTENT)
    won = write_commit(store, commit)
    return SegmentReport(plan.segment, "committed" if won else "present", frames=commit.frames)


def tiny_commit(
    segment: str, sources: tuple[SourceFile, ...], frames: int, config: BuildConfig, writer: str = ""
) -> Commit:
    """Return a commit as large as that of a segment of `frames` frames of five images.

    writer: who makes the attempt, where several do
    """
    digest = hashlib.sha256(f"{segment}{writer}".encode()).hexdigest()
    return Commit(
        split=config.split,
        segment=segment,
        attempt=digest[:16],
        created_at=now(),
        points_mode=config.points,
        cameras=ALL_CAMERAS,
        sources=sources,
        frames=frames,
        points=frames * 200_000,
        quarantined=0,
        # Two frames of five images are a chunk.
        chunks=("1234512345",) * (frames // 2) + ("12345",) * (frames % 2),
        files={table: DataFile(frames, len(_CONTENT), hashlib.sha256(_CONTENT).hexdigest()) for table in TABLES},
    )
