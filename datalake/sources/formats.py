"""The formats that a lake can be built from."""

from __future__ import annotations

from datalake.commit import LakeError
from datalake.sources.source import Source, SourceIndex
from datalake.sources.waymo_v1.source import WaymoV1
from datalake.sources.waymo_v2.source import WaymoV2

# A file belongs to the first that reads it.
SOURCES: tuple[Source, ...] = (WaymoV2(), WaymoV1())


def source_named(name: str) -> Source:
    """Return the source of this name; raises LakeError where there is none."""
    for source in SOURCES:
        if source.name == name:
            return source
    raise LakeError(f"no format {name!r}, there are: {', '.join(source.name for source in SOURCES)}")


def files_in_folder(url: str) -> list[str]:
    """Return the files that a folder stands for; none where it has the form of no format."""
    return [file for source in SOURCES for file in source.in_folder(url)]


def index_source(uri: str) -> SourceIndex:
    """Return whose frames a source file holds, whatever its format.

    Raises OSError where it cannot be read, LakeError where it holds no frame.
    """
    return next(source for source in SOURCES if source.reads(uri)).index(uri)
