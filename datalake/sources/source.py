"""What a lake is built from: the interface of a format, and the values it passes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from datalake.commit import DEFAULT_FORMAT, SourceFile
from datalake.sources.frame import Fault, Frame

# Adds the time spent inside its block to a stage: `read`, `parse`.
Timed = Callable[[str], AbstractContextManager[None]]


class SegmentError(Exception):
    """The segment must not be committed; the message is the reason."""


@dataclass(frozen=True, slots=True)
class RecordRef:
    """One frame of a segment: where it lies, or the first part of it, and when it was taken.

    index: its place among the records of its source
    offset, length: the bytes of the record, framing included; 0 where a record is no stretch of bytes
    """

    source: str
    index: int
    offset: int
    length: int
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
    """The frames of one source file by segment, and what could not be read, by the neighboring segment.

    checksums: of each segment's records, as in `SourceFile`
    cut_off_at: where the record begins inside which the file ends; None for a file that ends behind a record
    format: the name of the `Source` that reads it
    counts: records of each segment, where they are not as many as its frames
    """

    uri: str
    bytes: int
    version: str
    records: dict[str, list[RecordRef]]
    bad: dict[str, list[BadRecord]]
    checksums: dict[str, str] = field(default_factory=dict)
    cut_off_at: int | None = None
    format: str = DEFAULT_FORMAT
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SegmentPlan:
    """All that one segment is built from: frames by time, unreadable neighbors, and the files they lie in.

    number, supersedes: as in `Commit`, of the commit that is to be made
    format: the name of the `Source` that reads the files
    """

    segment: str
    records: tuple[RecordRef, ...]
    bad: tuple[BadRecord, ...]
    sources: tuple[SourceFile, ...]
    number: int = 0
    supersedes: tuple[str, ...] = ()
    format: str = DEFAULT_FORMAT


@dataclass(frozen=True, slots=True)
class FrameRead:
    """What became of one frame of a plan.

    frame: None where nothing of it can be used; its own faults then are empty
    faults: why there is no frame
    bytes: how much of the sources was read for it
    """

    ref: RecordRef
    frame: Frame | None
    faults: tuple[Fault, ...] = ()
    bytes: int = 0


def check_size(source: SourceFile, size: int) -> None:
    """Raise SegmentError unless a source still has the bytes that it had when it was indexed."""
    if size != source.bytes:
        raise SegmentError(
            f"{source.uri} has {size} bytes, and had {source.bytes} when it was indexed: somebody is writing it; run"
            " the same command again when it is complete"
        )


class Source(Protocol):
    """One format of data sets, as files that hold frames of segments.

    name: as commits have it
    cameras: the cameras it knows; the first is number 1 in `Points.camera`
    """

    @property
    def name(self) -> str: ...
    @property
    def cameras(self) -> tuple[str, ...]: ...

    def reads(self, uri: str) -> bool:
        """Return whether a file of this name is of this format; nothing is opened."""

    def in_folder(self, uri: str) -> list[str]:
        """Return the files of this format that a folder stands for, for formats that come as folders."""

    def index(self, uri: str) -> SourceIndex:
        """Return whose frames a file holds, having read as little of it as that takes.

        Raises OSError where it cannot be read, LakeError where it holds no frame of this format.
        """

    def order(self, refs: Sequence[RecordRef]) -> list[RecordRef]:
        """Return a segment's frames by time, from what its files hold of them."""

    def missing(self, plan: SegmentPlan) -> list[str]:
        """Return what the segment's files lack that others of this format have, each with what that means.

        Raises SegmentError where two of them hold the same.
        """

    def frames(self, plan: SegmentPlan, cameras: frozenset[str], timed: Timed) -> Iterator[FrameRead]:
        """Yield what becomes of each frame of the plan, in its order, with images and 2D labels of `cameras` alone.

        Little more than one frame is in memory at a time. Raises SegmentError where the segment cannot be built,
        OSError where a file cannot be read.
        """
