"""TFRecords of Waymo perception 1.x: one frame a record."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import google_crc32c
from google.protobuf.message import DecodeError

from datalake.commit import LakeError
from datalake.place import file_system, file_version
from datalake.sources.frame import ALL_CAMERAS, Fault, Frame, FrameError
from datalake.sources.segment_name import check_segment_name
from datalake.sources.source import BadRecord, FrameRead, RecordRef, SegmentPlan, SourceIndex, Timed, check_size
from datalake.sources.waymo_v1.parse import parse_frame
from datalake.sources.waymo_v1.protos import dataset_pb2
from datalake.sources.waymo_v1.source_kind import HEAD_BYTES, kind_of_file, kind_of_record
from datalake.sources.waymo_v1.tfrecord import (
    FOOTER_BYTES,
    HEADER_BYTES,
    PEEK_BYTES,
    Gap,
    RecordError,
    RecordFile,
    Slot,
)
from datalake.sources.waymo_v1.wire import WireError, peek_frame


@dataclass(frozen=True, slots=True)
class WaymoV1:
    """The `Source` of TFRecords of Waymo perception 1.x."""

    name: str = "waymo_v1"
    cameras: tuple[str, ...] = ALL_CAMERAS

    def reads(self, uri: str) -> bool:  # noqa: ARG002
        """Return True: what TFRecords are called is anybody's choice."""
        return True

    def in_folder(self, uri: str) -> list[str]:  # noqa: ARG002
        """Return nothing: which files of a folder are meant, a glob says."""
        return []

    def index(self, uri: str) -> SourceIndex:
        """Walk one TFRecord file and return whose records it holds; a few kB of each record's MBs are read."""
        return index_records(uri)

    def order(self, refs: Sequence[RecordRef]) -> list[RecordRef]:
        """Return the records by time; two of one time are left for the build to tell of."""
        return sorted(refs, key=lambda ref: (ref.timestamp_us, ref.source, ref.offset))

    def missing(self, plan: SegmentPlan) -> list[str]:  # noqa: ARG002
        """Return nothing: a record has all of its frame."""
        return []

    def frames(self, plan: SegmentPlan, cameras: frozenset[str], timed: Timed) -> Iterator[FrameRead]:
        """Yield what becomes of each record: read, checked and parsed."""
        seen: set[int] = set()
        files: dict[str, RecordFile] = {}
        sources = {source.uri: source for source in plan.sources}
        with ExitStack() as stack:
            for ref in plan.records:
                if ref.source not in files:
                    files[ref.source] = file = stack.enter_context(RecordFile(ref.source))
                    check_size(sources[ref.source], file.size)
                try:
                    with timed("read"):
                        payload = files[ref.source].read(slot_of(ref))
                    with timed("parse"):
                        frame = parse_frame(payload, cameras)
                        _check_identity(frame, plan, ref, seen)
                except (RecordError, FrameError) as error:
                    stage = "framing" if isinstance(error, RecordError) else "frame"
                    yield FrameRead(ref, None, (Fault(stage, type(error).__name__, str(error)),), ref.length)
                    continue
                seen.add(frame.timestamp_us)
                yield FrameRead(ref, frame, bytes=ref.length)


def slot_of(ref: RecordRef) -> Slot:
    """Return where a record lies."""
    return Slot(ref.index, ref.offset, ref.length - HEADER_BYTES - FOOTER_BYTES)


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


def index_records(uri: str) -> SourceIndex:
    """Walk one TFRecord file and return whose records it holds.

    Raises OSError where it cannot be read, LakeError where no record of it belongs to a segment.
    """
    fs, path = file_system(uri)
    info = fs.info(path)
    if info.get("type") == "directory":
        raise LakeError(
            f"{uri}: is a folder; name its files, for example {uri.rstrip('/')}/*.tfrecord, or of Waymo 2.x the folder"
            " in which those of the components are"
        )
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
            segments.add(segment, RecordRef(uri, found.index, found.offset, found.end - found.offset, timestamp_us))
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
        file_version(info),
        dict(segments.records),
        dict(segments.bad),
        {segment: f"{checksum:08x}" for segment, checksum in checksums.items()},
        cut_off_at,
    )


def _check_identity(frame: Frame, plan: SegmentPlan, ref: RecordRef, seen: set[int]) -> None:
    """Raise FrameError unless the frame is the one that was planned, and the only one of its time."""
    if (frame.segment, frame.timestamp_us) != (plan.segment, ref.timestamp_us):
        raise FrameError(
            f"frame is {frame.segment} at {frame.timestamp_us}, but its first bytes say"
            f" {plan.segment} at {ref.timestamp_us}"
        )
    if frame.timestamp_us in seen:
        raise FrameError(f"a frame with timestamp_us {frame.timestamp_us} is in this segment already; kept the first")


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
