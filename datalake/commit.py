"""The commit of one segment: a single object that makes all of its files part of the lake, or none."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from datalake.errors import UserError
from datalake.schema import FIRST_TABLES, POINT_MODES, SCHEMA_VERSION, TABLES, PointMode
from datalake.sources.frame import ALL_CAMERAS, FrameError
from datalake.sources.segment_name import check_segment_name

Part = TypeVar("Part")

_SPLIT_NAME = re.compile(r"[a-z0-9][a-z0-9_]{0,63}")
ATTEMPT = re.compile(r"[0-9a-f]{16}")
# Of lakes from before there were several.
DEFAULT_FORMAT = "waymo_v1"
# A camera in `Commit.chunks`: the character at its place in `Commit.camera_names`.
CAMERA_MARKS = "123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_COMMIT_DEFAULTS: dict[str, Any] = {
    "number": 0,
    "supersedes": (),
    "format": DEFAULT_FORMAT,
    "camera_names": ALL_CAMERAS,
}
_SOURCE_DEFAULTS: dict[str, Any] = {"checksum": "", "cut_off_at": None}


class LakeError(UserError):
    """A lake, or a part of it, is not what it should be."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """One Parquet file of a commit; its name follows from split, table, segment and attempt."""

    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file that a segment was built from.

    version: the store's etag where it has one, else the time of modification
    records: how many of its records belong to the segment
    checksum: CRC32C over the payload checksums that these records state, in hex; empty where that is not known
    cut_off_at: where the record begins inside which the file ends; None for a file that ends behind a record
    """

    uri: str
    bytes: int
    version: str
    records: int
    checksum: str = ""
    cut_off_at: int | None = None


@dataclass(frozen=True, slots=True)
class Commit:
    """Everything a reader has to know of one segment.

    number: the place of this commit among those of its segment, of which a new snapshot shows the last
    supersedes: the names of the commits before it
    chunks: for each row group that the tables share, the camera of each row of `image`, 0 for one that a reader has
        left out: "1212" is two frames of the first two in `camera_names`
    format: the name of the `Source` that read the files
    camera_names: all cameras that this source knows
    """

    split: str
    segment: str
    attempt: str
    created_at: str
    points_mode: PointMode
    cameras: tuple[str, ...]
    sources: tuple[SourceFile, ...]
    frames: int
    points: int
    quarantined: int
    chunks: tuple[str, ...]
    files: dict[str, DataFile]
    number: int = 0
    supersedes: tuple[str, ...] = ()
    format: str = DEFAULT_FORMAT
    camera_names: tuple[str, ...] = ALL_CAMERAS
    schema_version: int = SCHEMA_VERSION

    @property
    def name(self) -> str:
        """The name of the commit itself, relative to the lake."""
        return commit_name(self.split, self.segment, self.number)

    @property
    def is_complete(self) -> bool:
        """Whether every source ended where a record ends."""
        return all(source.cut_off_at is None for source in self.sources)

    def marks(self, cameras: Collection[str]) -> frozenset[str]:
        """Return the characters that stand for these cameras in `chunks`."""
        pairs = zip(self.camera_names, CAMERA_MARKS, strict=False)
        return frozenset(mark for camera, mark in pairs if camera in cameras)

    def file_name(self, table: str) -> str:
        """Return the name of the segment's file of `table`, relative to the lake."""
        return data_file_name(self.split, table, self.segment, self.attempt)

    def to_json(self) -> dict[str, Any]:
        """Return the commit as JSON values, without defaults that an older version of the code does not know."""
        values = asdict(self)
        for part, defaults in ((values, _COMMIT_DEFAULTS), *((each, _SOURCE_DEFAULTS) for each in values["sources"])):
            for name, default in defaults.items():
                if part[name] == default:
                    del part[name]
        return values

    @staticmethod
    def from_json(values: dict[str, Any], where: str) -> Commit:
        """Return the commit in `values`; raises LakeError naming `where` on another schema version or shape.

        What a later version has added is left out: fields, and tables.
        Every part that becomes a file name is checked, so that no commit can point out of its lake.
        """
        check_schema_version(values, where)
        try:
            commit = Commit(
                **{
                    **{field.name: values[field.name] for field in fields(Commit) if field.name in values},
                    "cameras": _listed(values, "cameras"),
                    "chunks": _listed(values, "chunks"),
                    "supersedes": _listed(values, "supersedes", ()),
                    "camera_names": _listed(values, "camera_names", ALL_CAMERAS),
                    "sources": tuple(_known(SourceFile, source) for source in values["sources"]),
                    "files": {
                        table: _known(DataFile, file) for table, file in values["files"].items() if table in TABLES
                    },
                }
            )
            check_split_name(commit.split)
            check_segment_name(commit.segment)
            is_attempt = ATTEMPT.fullmatch(commit.attempt)
            is_numbered = is_count(commit.number)
            earlier = re.compile(re.escape(f"_commits/{commit.split}/{commit.segment}") + r"(\.[0-9]+)?\.json")
            is_numbered &= all(earlier.fullmatch(name) for name in commit.supersedes)
            commit._check_values()
        except (KeyError, TypeError, AttributeError, FrameError, LakeError) as error:
            raise LakeError(f"{where}: not a commit of this lake: {' '.join(str(error).split())}") from error
        if not is_attempt or not is_numbered or not set(commit.files) >= FIRST_TABLES:
            raise LakeError(f"{where}: not a commit of this lake: bad attempt, number or tables")
        return commit

    def _check_values(self) -> None:
        """Raise LakeError where a value is not of its kind: what is read later would fail far from here."""
        for name in ("frames", "points", "quarantined"):
            if not is_count(count := getattr(self, name)):
                raise LakeError(f"{name}: expected a number of at least 0, got {count!r}")
        if self.points_mode not in POINT_MODES:
            raise LakeError(f"points_mode: expected one of {', '.join(POINT_MODES)}, got {self.points_mode!r}")
        if not all(isinstance(text, str) for text in (self.created_at, self.format, *self.cameras, *self.camera_names)):
            raise LakeError("created_at, format, cameras, camera_names: expected text")
        if len(set(self.camera_names)) < len(self.camera_names) or len(self.camera_names) > len(CAMERA_MARKS):
            raise LakeError(f"camera_names: expected at most {len(CAMERA_MARKS)}, all different")
        if not set("".join(self.chunks)) <= set(CAMERA_MARKS[: len(self.camera_names)]):
            raise LakeError(f"chunks: expected marks of {len(self.camera_names)} cameras, got {list(self.chunks)[:3]}")
        for source in self.sources:
            numbers = (source.bytes, source.records, 0 if source.cut_off_at is None else source.cut_off_at)
            texts = (source.uri, source.version, source.checksum)
            if not all(map(is_count, numbers)) or not all(isinstance(text, str) for text in texts):
                raise LakeError(f"a source is {source!r}")
        for file in self.files.values():
            check_data_file(file)


def is_count(value: Any) -> bool:
    """Return whether a JSON value is a whole number of at least 0."""
    return type(value) is int and value >= 0


def check_data_file(file: DataFile) -> None:
    """Raise LakeError unless the values read for a file are of their kinds."""
    if not is_count(file.rows) or not is_count(file.bytes) or not isinstance(file.sha256, str):
        raise LakeError(f"a file is {file!r}")


def _listed(values: dict[str, Any], name: str, default: tuple[str, ...] | None = None) -> tuple[Any, ...]:
    """Return a list of a commit; without a default it must be there."""
    if default is not None and name not in values:
        return default
    if not isinstance(found := values[name], list):
        raise LakeError(f"{name}: expected a list, got {found!r}")
    return tuple(found)


def _known(kind: Callable[..., Part], values: dict[str, Any]) -> Part:
    """Return a part of a commit, without the fields that a later version has added."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in values.items() if name in names})


def check_schema_version(values: dict[str, Any], where: str) -> None:
    """Raise LakeError unless `values` were written with this schema version."""
    found = values.get("schema_version") if isinstance(values, dict) else None
    if found != SCHEMA_VERSION:
        raise LakeError(
            f"{where}: schema version {found!r} found, this version reads and writes {SCHEMA_VERSION};"
            " build a new lake, or install the version that wrote this one"
        )


def check_split_name(split: str) -> None:
    """Raise LakeError unless `split` can be a folder of a lake."""
    if not _SPLIT_NAME.fullmatch(split):
        raise LakeError(f"split {split!r}: expected 1 to 64 of a-z, 0-9 and '_', not starting with '_'")


def data_file_name(split: str, table: str, segment: str, attempt: str) -> str:
    """Return the name of a data file relative to its lake."""
    return f"{split}/{table}/{segment}-{attempt}.parquet"


def commit_name(split: str, segment: str, number: int = 0) -> str:
    """Return the name of a segment's commit relative to its lake."""
    return f"_commits/{split}/{segment}{f'.{number}' if number else ''}.json"


def load_json(data: bytes, where: str) -> dict[str, Any]:
    """Return the JSON object in `data`; raises LakeError naming `where`."""
    try:
        values = json.loads(data)
    # The second where it is nested too deeply.
    except (ValueError, RecursionError) as error:
        raise LakeError(f"{where}: not JSON: {error}") from error
    if not isinstance(values, dict):
        raise LakeError(f"{where}: expected a JSON object, got {type(values).__name__}")
    return values
