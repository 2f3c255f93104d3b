"""Waymo perception 2.x: a Parquet file for each segment and component, and in it some rows for each frame."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from datalake.commit import LakeError
from datalake.place import file_system
from datalake.sources.frame import ALL_CAMERAS, Fault, FrameError
from datalake.sources.segment_name import check_segment_name
from datalake.sources.source import (
    BadRecord,
    FrameRead,
    RecordRef,
    SegmentError,
    SegmentPlan,
    SourceIndex,
    Timed,
    check_size,
)
from datalake.sources.waymo_v2.component import COMPONENTS, FRAME_COMPONENTS, Component, component_of
from datalake.sources.waymo_v2.component_file import ComponentFile
from datalake.sources.waymo_v2.parse import SegmentInfo, read_frame, read_segment

_SUFFIX = ".parquet"


@dataclass(frozen=True, slots=True)
class WaymoV2:
    """The `Source` of the Parquet components of Waymo perception 2.x."""

    name: str = "waymo_v2"
    cameras: tuple[str, ...] = ALL_CAMERAS

    def reads(self, uri: str) -> bool:
        """Return whether the file is called as Parquet files are."""
        return uri.endswith(_SUFFIX)

    def in_folder(self, uri: str) -> list[str]:
        """Return the files in the folders of components, sorted; nothing where the folder has none of these."""
        fs, path = file_system(uri)
        files = []
        for folder in fs.ls(path, detail=False):
            if posixpath.basename(folder.rstrip("/")) in COMPONENTS:
                files += [name for name in fs.ls(folder, detail=False) if name.endswith(_SUFFIX)]
        return [fs.unstrip_protocol(name) for name in sorted(files)]

    def index(self, uri: str) -> SourceIndex:
        """Return whose frames a component's file holds, from its footer and its keys."""
        component = component_of(uri)
        if component is None:
            raise LakeError(
                f"{uri}: a file of Waymo 2.x lies in the folder of its component ({', '.join(COMPONENTS)});"
                " name the folder that has these"
            )
        with ComponentFile(uri, component) as file:
            segments = file.segments() or [posixpath.basename(uri).removesuffix(_SUFFIX)]
            if len(segments) > 1:
                raise LakeError(f"{uri}: holds {len(segments)} segments ({segments[0]}, …), Waymo 2.x has one a file")
            (segment,) = segments
            try:
                check_segment_name(segment)
            except FrameError as error:
                raise LakeError(f"{uri}: {error}") from error
            times = sorted({time for time in file.times.tolist() if time > 0})
            refs = [RecordRef(uri, place, 0, 0, time) for place, time in enumerate(times)]
            untimed = [row for row, time in enumerate(file.times.tolist()) if time <= 0]
            bad = [BadRecord(uri, row, 0, 0, "FrameError", f"row {row} has no time of a frame") for row in untimed]
            return SourceIndex(
                uri,
                file.size,
                file.version,
                {segment: refs if component.folder in FRAME_COMPONENTS else []},
                {segment: bad},
                {segment: file.checksum()},
                format=self.name,
                counts={segment: file.rows},
            )

    def order(self, refs: Sequence[RecordRef]) -> list[RecordRef]:
        """Return one reference for each time that any component has a frame of."""
        first: dict[int, RecordRef] = {}
        for ref in sorted(refs, key=lambda ref: (ref.timestamp_us, ref.source)):
            first.setdefault(ref.timestamp_us, ref)
        return [replace(ref, index=place) for place, ref in enumerate(first.values())]

    def missing(self, plan: SegmentPlan) -> list[str]:
        """Return a line for each component that the segment lacks; raises SegmentError where it has one twice."""
        present = {component.folder for _, component in _files(plan)}
        return [f"{name}: {one.absence}" for name, one in COMPONENTS.items() if name not in present]

    def frames(self, plan: SegmentPlan, cameras: frozenset[str], timed: Timed) -> Iterator[FrameRead]:
        """Yield each frame, from the rows of all components at its time."""
        size = sum(source.bytes for source in plan.sources) // max(1, len(plan.records))
        with ExitStack() as stack:
            with timed("read"):
                files = {
                    component.folder: stack.enter_context(ComponentFile(uri, component))
                    for uri, component in _files(plan)
                }
                sources = {source.uri: source for source in plan.sources}
                for file in files.values():
                    check_size(sources[file.uri], file.size)
                segment = _read_segment(plan, files)
            of_frames = {name: file for name, file in files.items() if file.component.of_frame}
            # What belongs to no frame is told once, with the first.
            strays = [*segment.faults, *_strays(plan, of_frames)]
            for ref in plan.records:
                rows, damage, strays = {}, strays, []
                with timed("read"):
                    for name, file in of_frames.items():
                        rows[name], reason = file.rows_at(ref.timestamp_us)
                        if reason:
                            damage.append(Fault("record", "ComponentError", reason, name, file.uri))
                with timed("parse"):
                    frame = read_frame(segment, ref.timestamp_us, rows, cameras, damage)
                yield FrameRead(ref, frame, bytes=size)


def _files(plan: SegmentPlan) -> Iterator[tuple[str, Component]]:
    """Yield the plan's files with their components; raises SegmentError where two are of the same."""
    seen: dict[str, str] = {}
    for source in plan.sources:
        component = component_of(source.uri)
        if component is None:
            continue
        if (other := seen.setdefault(component.folder, source.uri)) != source.uri:
            raise SegmentError(f"{other} and {source.uri} both are its {component.folder}; name one of them")
        yield source.uri, component


def _read_segment(plan: SegmentPlan, files: dict[str, ComponentFile]) -> SegmentInfo:
    if not plan.records:
        raise SegmentError(f"none of {', '.join(FRAME_COMPONENTS)} has a frame of it; name these components as well")
    try:
        rows = {name: file.all_rows() for name, file in files.items() if not file.component.of_frame}
    except LakeError as error:
        raise SegmentError(str(error)) from error
    return read_segment(plan.segment, {name: file.uri for name, file in files.items()}, rows)


def _strays(plan: SegmentPlan, files: dict[str, ComponentFile]) -> list[Fault]:
    """Return a fault for each component with rows of a time at which there is no frame."""
    times = {ref.timestamp_us for ref in plan.records}
    faults = []
    for file in files.values():
        strays = [time for time in file.times.tolist() if time > 0 and time not in times]
        if strays:
            text = f"{len(strays)} rows are of a time at which there is no frame (first: {strays[0]})"
            faults.append(Fault("frame", "ComponentError", text, file.component.folder, file.uri))
    return faults
