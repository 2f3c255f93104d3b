"""What is to be built: which records of which files make up which segment.

Sources are indexed first, by their headers and the first bytes of each record: a few kB of every frame's MBs
are read. Only then is it known that a segment is whole, however its frames are spread over files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import google_crc32c
from google.protobuf.message import DecodeError

from datalake.commit import LakeError, SourceFile
from datalake.place import file_system
from datalake.sources.waymo_v1.frame import FrameError
from datalake.sources.waymo_v1.protos import dataset_pb2
from datalake.sources.waymo_v1.segment_name import check_segment_name
from datalake.sources.waymo_v1.source_kind import HEAD_BYTES, kind_of_file, kind_of_record
from datalake.sources.waymo_v1.tfrecord import HEADER_BYTES, PEEK_BYTES, Gap, RecordError, RecordFile, Slot
from datalake.sources.waymo_v1.wire import WireError, peek_frame


@dataclass(frozen=True, slots=True)
class RecordRef:
    """One record of a segment: where it lies, and when its frame was taken."""

    source: str
    slot: Slot
    timestamp_us: int


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record, or a stretch of bytes between records, that cannot be attributed to a frame."""

    source: str
    index: int
    offset: int
    length: int
    error_type: str
    message: str


@dataclass(frozen=True, slots=True)
class SourceIndex:
    """The records of one source file by segment, and what could not be read, by the neighboring segment.

    checksums: of each segment's records, as in `SourceFile`
    cut_off_at: where the record begins inside which the file ends; None for a file that ends behind a record
    """

    uri: str
    bytes: int
    version: str
    records: dict[str, list[RecordRef]]
    bad: dict[str, list[BadRecord]]
    checksums: dict[str, str] = field(default_factory=dict)
    cut_off_at: int | None = None


@dataclass(frozen=True, slots=True)
class SegmentPlan:
    """All that one segment is built from: records by time, unreadable neighbors, and the files they lie in.

    number, supersedes: as in `Commit`, of the commit that is to be made
    """

    segment: str
    records: tuple[RecordRef, ...]
    bad: tuple[BadRecord, ...]
    sources: tuple[SourceFile, ...]
    number: int = 0
    supersedes: tuple[str, ...] = ()


@dataclass(slots=True)
class _Segments:
    """Attributes what is unreadable to the segment before it in the file or, at the file's start, behind it."""

    records: dict[str, list[RecordRef]] = field(default_factory=lambda: defaultdict(list))
    bad: dict[str, list[BadRecord]] = field(default_factory=lambda: defaultdict(list))
    current: str | None = None
    early: list[BadRecord] = field(default_factory=list)

    def add(self, segment: str, record: RecordRef) -> None:
        self.records[segment].append(record)
        self.current = segment
        self.bad[segment] += self.early
        self.early = []

    def add_bad(self, record: BadRecord) -> None:
        (self.early if self.current is None else self.bad[self.current]).append(record)


def index_source(uri: str) -> SourceIndex:
    """Walk one TFRecord file and return whose records it holds.

    Raises OSError where it cannot be read, LakeError where no record of it belongs to a segment.
    """
    fs, path = file_system(uri)
    info = fs.info(path)
    if info.get("type") == "directory":
        raise LakeError(f"{uri}: is a folder; name its files, for example {uri.rstrip('/')}/*.tfrecord")
    segments = _Segments()
    checksums: dict[str, int] = defaultdict(int)
    cut_off_at = None
    with RecordFile(uri) as file:
        for found in file.slots():
            if isinstance(found, Gap):
                bad = BadRecord(uri, found.index, found.offset, found.length, "RecordError", found.reason)
                segments.add_bad(bad)
                if found.cut_off:
                    cut_off_at = found.offset
                continue
            stated = file.stated_checksum(found)
            try:
                segment, timestamp_us = _identify(file, found, segments.current)
            except (FrameError, RecordError) as error:
                length = found.end - found.offset
                bad = BadRecord(uri, found.index, found.offset, length, type(error).__name__, str(error))
                segments.add_bad(bad)
                continue
            segments.add(segment, RecordRef(uri, found, timestamp_us))
            checksums[segment] = google_crc32c.extend(checksums[segment], stated)
        size = file.size
        if not file.is_whole and cut_off_at is None:
            # Of a compressed file, cut off where a record happens to end.
            cut_off_at = size
        if not segments.records:
            raise LakeError(f"{uri}: no record of a Waymo segment in {size} bytes: {_kind(file, segments.early)}")
    return SourceIndex(
        uri,
        size,
        _version(info),
        dict(segments.records),
        dict(segments.bad),
        {segment: f"{checksum:08x}" for segment, checksum in checksums.items()},
        cut_off_at,
    )


def plan_segments(indexes: Iterable[SourceIndex]) -> list[SegmentPlan]:
    """Return one plan per segment, sorted by name, with its records from every file, sorted by time."""
    records: dict[str, list[RecordRef]] = defaultdict(list)
    bad: dict[str, list[BadRecord]] = defaultdict(list)
    sources: dict[str, list[SourceFile]] = defaultdict(list)
    for index in sorted(indexes, key=lambda index: index.uri):
        for segment, found in index.records.items():
            records[segment] += found
            bad[segment] += index.bad.get(segment, [])
            checksum = index.checksums.get(segment, "")
            source = SourceFile(index.uri, index.bytes, index.version, len(found), checksum, index.cut_off_at)
            sources[segment].append(source)
    return [
        SegmentPlan(
            segment,
            tuple(sorted(records[segment], key=lambda ref: (ref.timestamp_us, ref.source, ref.slot.offset))),
            tuple(bad[segment]),
            tuple(sources[segment]),
        )
        for segment in sorted(records)
    ]


def _kind(file: RecordFile, bad: list[BadRecord]) -> str:
    """Return what a file is that has no record of a segment, and what to do with it."""
    if not bad:
        return "it is empty"
    if (kind := kind_of_file(file.read_range(0, HEAD_BYTES))) is not None:
        return kind
    for found in file.slots():
        if isinstance(found, Slot):
            try:
                kind = kind_of_record(file.read(found))
            except RecordError:
                continue
            if kind is not None:
                return f"it holds {kind}; name the TFRecords of Waymo perception 1.x"
            break
    return f"the first at byte {bad[0].offset}: {bad[0].message}"


def _identify(file: RecordFile, slot: Slot, current: str | None) -> tuple[str, int]:
    """Return (segment, timestamp_us) of a record; raises FrameError or RecordError where it has none."""
    try:
        segment, timestamp_us = peek_frame(file.read_range(slot.offset + HEADER_BYTES, min(PEEK_BYTES, slot.length)))
    except WireError:
        segment = None
    if segment is None or segment != current:
        # An unusual order of fields, or a name that is new in this file: only a whole, checked record may
        # open a segment, or a flipped bit in a name would found one of its own.
        payload = file.read(slot)
        try:
            frame = dataset_pb2.Frame.FromString(payload)
        except DecodeError as error:
            raise FrameError(f"payload of {len(payload)} bytes is not a Waymo Frame: {error}") from error
        segment, timestamp_us = frame.context.name, frame.timestamp_micros
    check_segment_name(segment)
    return segment, timestamp_us


def _version(info: dict[str, object]) -> str:
    for key in ("ETag", "etag", "mtime", "LastModified", "updated", "created"):
        if info.get(key) is not None:
            return str(info[key])
    return ""
