"""One segment, from its records to its commit: the unit of work of a build."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from datalake.attempt import begin_attempt, end_attempt
from datalake.commit import Commit, LakeError, check_split_name, commit_name
from datalake.convert import calibration_rows, frame_rows, map_rows
from datalake.lake import now, write_commit
from datalake.schema import CALIBRATION, MAP, QUARANTINE, TABLES, PointMode
from datalake.sources.formats import source_named
from datalake.sources.frame import ALL_CAMERAS, Fault
from datalake.sources.source import BadRecord, RecordRef, SegmentError, SegmentPlan, Source
from datalake.store import Store
from datalake.writer import SegmentWriter


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """How segments become rows."""

    split: str = "train"
    cameras: tuple[str, ...] = ALL_CAMERAS
    points: PointMode = "quantised"
    # A segment fails when a larger share of its records is quarantined, whole or in part.
    max_quarantined: float = 0.1
    # A segment is built also of sources that end inside a record.
    allow_truncated: bool = False


@dataclass(slots=True)
class SegmentReport:
    """What became of one segment.

    outcome: `committed` by this attempt, `present` (another attempt committed it first), or `failed`
    reason: why it failed, in one line
    incomplete: whether a source of it ends inside a record
    superseding: whether it was in the lake before, in another form
    missing: what its files lack that others of their format have
    seconds: time per stage (read, parse, convert, write, commit)
    """

    segment: str
    outcome: Literal["committed", "present", "failed"] = "failed"
    reason: str = ""
    incomplete: bool = False
    superseding: bool = False
    missing: list[str] = field(default_factory=list)
    frames: int = 0
    points: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    quarantined: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time spent inside the block to `stage`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start


def build_segment(plan: SegmentPlan, lake_url: str, config: BuildConfig) -> SegmentReport:
    """Build one segment and commit it; whatever happens, the lake has all of it or none.

    Bad input ends in the quarantine, or in a report whose outcome is `failed`. Raises OSError where a source or
    the lake cannot be read or written: another attempt may succeed.
    """
    check_split_name(config.split)
    source = source_named(plan.format)
    if unknown := sorted(set(config.cameras) - set(source.cameras)):
        raise LakeError(f"no camera {', '.join(unknown)}, there are: {', '.join(source.cameras)}")
    store = Store(lake_url)
    report = SegmentReport(
        plan.segment,
        incomplete=any(file.cut_off_at is not None for file in plan.sources),
        superseding=bool(plan.supersedes),
    )
    quarantine = [_bad_row(plan.segment, bad) for bad in plan.bad]
    sensors: dict[tuple[str, str], dict[str, Any]] = {}
    features: dict[int, dict[str, Any]] = {}
    target = commit_name(config.split, plan.segment, plan.number)
    attempt = begin_attempt(store, config.split, plan.segment, tuple(TABLES), target)
    with SegmentWriter(store, attempt, source.cameras) as writer:
        try:
            _check_complete(plan, config)
            report.missing = source.missing(plan)
            affected = _write_frames(plan, source, config, writer, quarantine, sensors, features, report)
            _check_quarantine(plan, config, affected, quarantine, report)
        except SegmentError as failure:
            writer.discard()
            name = f"_failed/{config.split}/{plan.segment}.json"
            store.write(name, json.dumps({"reason": str(failure), "quarantine": quarantine}, indent=1).encode())
            report.reason = f"{failure}; every bad record is listed in {store.url}/{name}"
            return report
        with report.timed("write"):
            files = writer.finish(
                {
                    "quarantine": pa.RecordBatch.from_pylist(quarantine, QUARANTINE),
                    "calibration": pa.RecordBatch.from_pylist([sensors[key] for key in sorted(sensors)], CALIBRATION),
                    "map": pa.RecordBatch.from_pylist([features[key] for key in sorted(features)], MAP),
                }
            )
        commit = Commit(
            split=config.split,
            segment=plan.segment,
            attempt=attempt.attempt,
            created_at=now(),
            points_mode=config.points,
            cameras=config.cameras,
            sources=plan.sources,
            frames=report.frames,
            points=report.points,
            quarantined=len(quarantine),
            chunks=tuple(writer.chunks),
            files=files,
            number=plan.number,
            supersedes=plan.supersedes,
            format=source.name,
            camera_names=source.cameras,
        )
        with report.timed("commit"):
            try:
                won = write_commit(store, commit)
            except BaseException:
                # The commit may exist, so its files must stay; a later build sweeps them if it does not.
                writer.keep()
                raise
        if won:
            # A record that stays would be swept; it must not make a failure of a segment that is committed.
            with suppress(OSError):
                end_attempt(store, attempt)
        else:
            writer.discard()
    report.outcome = "committed" if won else "present"
    report.bytes_out = sum(file.bytes for file in files.values())
    return report


def _check_complete(plan: SegmentPlan, config: BuildConfig) -> None:
    if config.allow_truncated:
        return
    for source in plan.sources:
        if source.cut_off_at is not None:
            raise SegmentError(
                f"{source.uri} ends inside the record that begins at byte {source.cut_off_at}, as a download does that"
                " broke off; fetch it again, or build of what is there with --allow-truncated"
            )


def _write_frames(
    plan: SegmentPlan,
    source: Source,
    config: BuildConfig,
    writer: SegmentWriter,
    quarantine: list[dict[str, Any]],
    sensors: dict[tuple[str, str], dict[str, Any]],
    features: dict[int, dict[str, Any]],
    report: SegmentReport,
) -> int:
    """Write every frame of the plan, and return how many are not there, or not whole.

    quarantine, sensors, features: take the rows of `quarantine`, `calibration` and `map`; of a sensor, or a feature of
    the map, the first that a frame has counts
    """
    affected = 0
    for read in source.frames(plan, frozenset(config.cameras), report.timed):
        report.bytes_in += read.bytes
        faults = read.faults if read.frame is None else read.frame.faults
        scope = "record" if read.frame is None else "part"
        quarantine += [_row(plan.segment, read.ref, scope, fault) for fault in faults]
        affected += bool(faults)
        if read.frame is None:
            continue
        with report.timed("convert"):
            rows = frame_rows(read.frame, config.points, source.cameras)
            for key, row in calibration_rows(read.frame).items():
                # A laser's size is known from the first frame that has its range images.
                if key not in sensors or sensors[key]["height"] is None:
                    sensors[key] = row
            for row in map_rows(read.frame):
                features.setdefault(row["feature_id"], row)
        with report.timed("write"):
            writer.append(rows)
        report.frames += 1
        report.points += len(read.frame.points)
    return affected


def _check_quarantine(
    plan: SegmentPlan, config: BuildConfig, affected: int, quarantine: list[dict[str, Any]], report: SegmentReport
) -> None:
    affected += len(plan.bad)
    records = len(plan.records) + len(plan.bad)
    # A gap may have held many records: it counts for as many of the segment's average size as it is long.
    size = sum(ref.length for ref in plan.records) / len(plan.records)
    hidden = sum(max(0, round(bad.length / size) - 1) for bad in plan.bad if bad.length)
    report.quarantined = len(quarantine)
    if report.frames == 0:
        raise SegmentError(f"none of its {records} records is a usable frame ({quarantine[0]['message']})")
    if affected + hidden > config.max_quarantined * (records + hidden):
        raise SegmentError(
            f"{affected + hidden} of {records + hidden} records are quarantined in whole or in part, more than the"
            f" share of {config.max_quarantined:g} allowed (first: {quarantine[0]['message']});"
            " raise --max-quarantined to accept"
        )


def _bad_row(segment: str, bad: BadRecord) -> dict[str, Any]:
    return {
        "segment": segment,
        "source": bad.source,
        "record_index": bad.index,
        "byte_offset": bad.offset,
        "byte_length": bad.length,
        "timestamp_us": None,
        "scope": "record",
        "stage": "framing" if bad.error_type == "RecordError" else "frame",
        "error_type": bad.error_type,
        "message": bad.message,
    }


def _row(segment: str, ref: RecordRef, scope: str, fault: Fault) -> dict[str, Any]:
    return {
        "segment": segment,
        "source": fault.source or ref.source,
        "record_index": ref.index,
        "byte_offset": ref.offset,
        "byte_length": ref.length,
        # The first bytes of a damaged frame may claim anything, also what no int64 holds.
        "timestamp_us": ref.timestamp_us if 0 <= ref.timestamp_us < 1 << 63 else None,
        "scope": scope,
        "stage": fault.stage,
        "error_type": fault.error_type,
        "message": fault.message,
    }
