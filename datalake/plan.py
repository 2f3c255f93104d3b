"""What is to be built: which records of which files make up which segment.

Sources are indexed first, a few kB of every frame's MBs. Only then is it known that a segment is whole, however its
frames are spread over files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from datalake.commit import LakeError, SourceFile
from datalake.sources.formats import source_named
from datalake.sources.source import BadRecord, RecordRef, SegmentPlan, SourceIndex


def plan_segments(indexes: Iterable[SourceIndex]) -> list[SegmentPlan]:
    """Return one plan per segment, sorted by name, with its frames from every file, sorted by time.

    Raises LakeError where files of two formats hold the same segment.
    """
    records: dict[str, list[RecordRef]] = defaultdict(list)
    bad: dict[str, list[BadRecord]] = defaultdict(list)
    sources: dict[str, list[SourceFile]] = defaultdict(list)
    formats: dict[str, tuple[str, str]] = {}
    for index in sorted(indexes, key=lambda index: index.uri):
        for segment, found in index.records.items():
            name, uri = formats.setdefault(segment, (index.format, index.uri))
            if name != index.format:
                raise LakeError(
                    f"{index.uri} ({index.format}) and {uri} ({name}) both hold segment {segment}; name one of them"
                )
            records[segment] += found
            bad[segment] += index.bad.get(segment, [])
            checksum, count = index.checksums.get(segment, ""), index.counts.get(segment, len(found))
            source = SourceFile(index.uri, index.bytes, index.version, count, checksum, index.cut_off_at)
            sources[segment].append(source)
    return [
        SegmentPlan(
            segment,
            tuple(source_named(formats[segment][0]).order(records[segment])),
            tuple(bad[segment]),
            tuple(sources[segment]),
            format=formats[segment][0],
        )
        for segment in sorted(records)
    ]
