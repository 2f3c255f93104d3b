"""A table that is added to a lake after its build, segment by segment: what somebody computed from its images.

    <lake>/_derived/<table>/<split>/<segment>.json   created only if absent: the commit of the table's part for a
                                                     segment; `.<n>.json` for the segment's commit number n
    <lake>/<split>/<table>/<segment>-<attempt>.parquet

Its row groups are in step with the chunks of the table `image`. A table `teacher_<name>` has one row for each row of
`image`, a table `autolabel_<name>` one for each box. As in the rest of the lake, a part appears whole or not at all,
never changes, and readers find it by name. Each part says what it was made from: the build of its segment, a version of
whatever made it, and the settings.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from datalake.attempt import begin_attempt, end_attempt
from datalake.commit import (
    ATTEMPT,
    Commit,
    DataFile,
    LakeError,
    check_data_file,
    check_schema_version,
    check_split_name,
    data_file_name,
    load_json,
)
from datalake.lake import Lake, now
from datalake.ranges import file_system, open_parquet
from datalake.schema import SCHEMA_VERSION
from datalake.sources.frame import FrameError
from datalake.sources.segment_name import check_segment_name
from datalake.store import Store

TEACHER, AUTOLABEL = "teacher_", "autolabel_"
_TABLE_NAME = re.compile(f"(?:{TEACHER}|{AUTOLABEL})" + r"[a-z0-9_]{1,56}")
# What makes a table, by what its name begins with.
_MAKERS = {
    TEACHER: ("cache_targets.py", "--teacher FOLDER"),
    AUTOLABEL: ("autolabel.py", "--teachers NAME=FOLDER …"),
}
_FOLDER = "_derived"
# Where version 0.1 kept these commits; they are read, and new ones go to the folder of now.
_OLD_FOLDER = "_side"
_PARALLEL_READS = 16
# An open file holds its footer and a descriptor; a shuffled epoch visits about this many segments by turns.
_OPEN_FILES = 64


@dataclass(frozen=True, slots=True)
class Origin:
    """What a derived table is made with; every segment's part must say the same.

    version: the maker's own, e.g. the SHA-256 of its weights
    settings: plain JSON values that the rows depend on as well
    """

    table: str
    version: str
    settings: dict[str, Any]

    def __post_init__(self) -> None:
        _check_table_name(self.table)


@dataclass(frozen=True, slots=True)
class DerivedCommit:
    """Everything a reader has to know of one segment's part of a derived table.

    base_attempt: the attempt whose `image` rows it belongs to
    """

    split: str
    segment: str
    base_attempt: str
    attempt: str
    created_at: str
    origin: Origin
    file: DataFile
    schema_version: int = SCHEMA_VERSION

    @property
    def file_name(self) -> str:
        """The name of the file of rows, relative to the lake."""
        return data_file_name(self.split, self.origin.table, self.segment, self.attempt)

    def to_json(self) -> dict[str, Any]:
        """Return the commit as JSON values."""
        values = asdict(self)
        return {**values, **values.pop("origin")}

    @staticmethod
    def from_json(values: dict[str, Any], where: str) -> DerivedCommit:
        """Return the commit in `values`; raises LakeError naming `where` on another schema version or shape."""
        check_schema_version(values, where)
        try:
            rest = dict(values)
            origin = Origin(*(rest.pop(name) for name in ("table", "version", "settings")))
            commit = DerivedCommit(**{**rest, "origin": origin, "file": DataFile(**rest["file"])})
            check_split_name(commit.split)
            check_segment_name(commit.segment)
            check_data_file(commit.file)
            is_attempt = ATTEMPT.fullmatch(commit.attempt)
        except (KeyError, TypeError, AttributeError, FrameError, LakeError) as error:
            raise LakeError(f"{where}: not a commit of a derived table: {' '.join(str(error).split())}") from error
        if not is_attempt:
            raise LakeError(f"{where}: not a commit of a derived table: bad attempt")
        return commit


class DerivedTable:
    """A derived table of one split, complete for the snapshot's segments and open for reading.

    Not to be shared between threads: open one for each.
    """

    def __init__(self, lake: Lake, commits: Sequence[DerivedCommit]) -> None:
        """Open the parts, one for each segment of the split, all of the same origin."""
        self.origin = commits[0].origin
        self._lake = lake
        self._commits = {commit.segment: commit for commit in commits}
        self._open: OrderedDict[str, pq.ParquetFile] = OrderedDict()

    @property
    def segments(self) -> tuple[str, ...]:
        """The segments that the table has rows for."""
        return tuple(self._commits)

    @property
    def bytes(self) -> int:
        """The size of all files."""
        return sum(commit.file.bytes for commit in self._commits.values())

    @property
    def sha256(self) -> str:
        """A checksum of all rows, which no attempt's name changes."""
        parts = sorted((commit.segment, commit.file.sha256) for commit in self._commits.values())
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def dataset(self) -> ds.Dataset:
        """Return the table as a pyarrow dataset; a filter on `segment` prunes whole files."""
        file_format = ds.ParquetFileFormat()
        sizes = {commit.file_name: commit.file.bytes for commit in self._commits.values()}
        filesystem = file_system(self._lake.ranges, sizes)
        fragments = [
            file_format.make_fragment(
                self._lake.store.path(commit.file_name),
                filesystem,
                partition_expression=ds.field("segment") == commit.segment,
            )
            for commit in self._commits.values()
        ]
        return ds.FileSystemDataset(fragments, fragments[0].physical_schema, file_format, filesystem)

    def read(self, segment: str, group: int | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of a segment, or of one of its row groups; raises LakeError for an unknown segment."""
        names = columns and list(columns)
        if group is None:
            return self._file(segment).read(names, use_threads=False)
        return self._file(segment).read_row_group(group, names, use_threads=False)

    def group_rows(self, segment: str) -> list[int]:
        """Return how many rows each row group of a segment has; raises LakeError for an unknown segment."""
        footer = self._file(segment).metadata
        return [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]

    def close(self) -> None:
        """Close every file; the next read opens them again."""
        while self._open:
            self._open.popitem()[1].close(force=True)

    def _file(self, segment: str) -> pq.ParquetFile:
        if segment not in self._commits:
            raise LakeError(f"{self._lake.store.url}: table {self.origin.table} has no segment {segment}")
        if segment not in self._open:
            commit = self._commits[segment]
            self._open[segment] = open_parquet(self._lake.ranges, commit.file_name, commit.file.bytes)
            if len(self._open) > _OPEN_FILES:
                self._open.popitem(last=False)[1].close(force=True)
        self._open.move_to_end(segment)
        return self._open[segment]


def open_derived_table(lake: Lake, table: str, split: str, version: str | None = None) -> DerivedTable:
    """Open `table` for the snapshot's segments of `split`, where `version` made all of it; None: one, whichever.

    Raises LakeError, in one line, where a segment's part is missing, or was made with another version, other settings
    than the rest, or from another build of the segment.
    """
    _check_table_name(table)
    bases = lake.in_split(split)
    found = read_derived_commits(lake.store, table, bases)
    parts = [part for part in found if part is not None]
    if len(parts) < len(bases):
        missing = [base.segment for base, part in zip(bases, found, strict=True) if part is None]
        prefix = _prefix(table)
        command, teachers = _MAKERS[prefix]
        raise LakeError(
            f"{lake.store.url}: table {table} lacks {len(missing)} of {len(bases)} segments of split {split!r} (first:"
            f" {missing[0]}); run python pipelines/{command} --lake {lake.store.url} --split {split}"
            f" --name {table.removeprefix(prefix)} {teachers}"
        )
    expected = replace(parts[0].origin, version=version or parts[0].origin.version)
    for base, part in zip(bases, parts, strict=True):
        _check(lake.store, base, part, expected)
    return DerivedTable(lake, parts)


def missing_segments(lake: Lake, split: str, origin: Origin) -> list[Commit]:
    """Return the snapshot's segments of `split` that the table has no part for yet.

    Raises LakeError where one has a part of another origin, or from another build of the segment.
    """
    bases = lake.in_split(split)
    missing = []
    for base, part in zip(bases, read_derived_commits(lake.store, origin.table, bases), strict=True):
        if part is None:
            missing.append(base)
        else:
            _check(lake.store, base, part, origin)
    return missing


def write_derived_segment(
    store: Store, base: Commit, origin: Origin, schema: pa.Schema, groups: Iterable[pa.RecordBatch]
) -> DerivedCommit | None:
    """Write a segment's part of a derived table and commit it; return None where another attempt did so first.

    groups: the rows of each chunk of `base`, in order; they are taken one at a time

    Raises LakeError where the groups are not in step with the segment, or the other attempt was of another origin.
    Whatever happens, the lake has all of the part or none.
    """
    commit_object = _commit_name(origin.table, base)
    attempt = begin_attempt(store, base.split, base.segment, [origin.table], commit_object)
    name = attempt.file_names[origin.table]
    sink = store.sink(name)
    paths = {field.name: _leaf(field) for field in schema}
    # Numbers with a fraction hardly repeat: a dictionary is lost on them, equal high bytes side by side are not.
    noisy = {paths[field.name] for field in schema if pa.types.is_floating(_value_type(field))}
    writer = pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        use_dictionary=[path for path in paths.values() if path not in noisy],
        column_encoding=dict.fromkeys(noisy, "BYTE_STREAM_SPLIT"),
        # Bounds of single values inside lists prune nothing.
        write_statistics=[path for column, path in paths.items() if path == column],
    )
    won = keep = False
    try:
        rows = _write_groups(writer, base, origin.table, schema, groups)
        writer.close()
        sink.close()
        commit = DerivedCommit(
            split=base.split,
            segment=base.segment,
            base_attempt=base.attempt,
            attempt=attempt.attempt,
            created_at=now(),
            origin=origin,
            file=DataFile(rows, sink.size, sink.sha256),
        )
        content = json.dumps(commit.to_json(), separators=(",", ":")).encode() + b"\n"
        # Until it is known that the commit does not exist its file must stay; a vacuum sweeps it then.
        keep = True
        won = keep = store.create(commit_object, content)
    finally:
        if not keep:
            sink.discard()
            writer.close()
            store.delete(name)
            end_attempt(store, attempt)
    if won:
        # A record that stays would be swept; it must not make a failure of a part that is committed.
        with suppress(OSError):
            end_attempt(store, attempt)
        return commit
    (winner,) = read_derived_commits(store, origin.table, [base])
    if winner is not None:
        _check(store, base, winner, origin)
    return None


def read_derived_commits(store: Store, table: str, bases: Sequence[Commit]) -> list[DerivedCommit | None]:
    """Return the commit of the table's part for each segment, None where there is none."""

    def read(base: Commit) -> DerivedCommit | None:
        return read_from(_commit_name(table, base), base) or read_from(_commit_name(table, base, _OLD_FOLDER), base)

    def read_from(name: str, base: Commit) -> DerivedCommit | None:
        where = f"{store.url}/{name}"
        try:
            commit = DerivedCommit.from_json(load_json(store.read(name), where), where)
        except FileNotFoundError:
            return None
        found = commit.origin.table, commit.split, commit.segment
        if found != (table, base.split, base.segment):
            raise LakeError(f"{where}: is the commit of {'/'.join(found)}, under another name")
        return commit

    with ThreadPoolExecutor(_PARALLEL_READS) as pool:
        return list(pool.map(read, bases))


def list_derived_tables(store: Store) -> list[str]:
    """Return the names of the derived tables that have a commit."""
    names = {*store.folders(_FOLDER), *store.folders(_OLD_FOLDER)}
    return sorted(name for name in names if _TABLE_NAME.fullmatch(name))


def derived_commits_folders(table: str, split: str) -> tuple[str, str]:
    """Return the folders in which the table's commits of a split may be, relative to the lake."""
    return f"{_FOLDER}/{table}/{split}", f"{_OLD_FOLDER}/{table}/{split}"


def _commit_name(table: str, base: Commit, folder: str = _FOLDER) -> str:
    return f"{folder}/{table}/{base.split}/{base.name.rsplit('/', 1)[-1]}"


def in_step(table: str, base: Commit, group_rows: Sequence[int]) -> bool:
    """Return whether row groups of so many rows are in step with the segment's."""
    images = [len(chunk) for chunk in base.chunks]
    return len(group_rows) == len(images) if _prefix(table) == AUTOLABEL else list(group_rows) == images


def _prefix(table: str) -> str:
    return AUTOLABEL if table.startswith(AUTOLABEL) else TEACHER


def _check_table_name(table: str) -> None:
    if not _TABLE_NAME.fullmatch(table):
        raise LakeError(
            f"table {table!r}: expected '{_prefix(table)}' and 1 to 56 of a-z, 0-9 and '_'; choose another --name"
        )


def _check(store: Store, base: Commit, part: DerivedCommit, expected: Origin) -> None:
    """Raise LakeError unless `part` was made from `base` by what is `expected`."""
    where = f"{store.url}: table {expected.table}, segment {part.segment}"
    if part.origin.version != expected.version:
        raise LakeError(
            f"{where}: made with weights {part.origin.version[:12]}…, not {expected.version[:12]}…;"
            " use the teacher that made it, or keep this one under another --name"
        )
    if part.origin.settings != expected.settings:
        made, wanted = part.origin.settings, expected.settings
        names = sorted(key for key in made.keys() | wanted.keys() if made.get(key) != wanted.get(key))
        raise LakeError(
            f"{where}: made with other settings: {', '.join(f'{n} {made.get(n)}, not {wanted.get(n)}' for n in names)};"
            " use these, or keep this under another --name"
        )
    if part.base_attempt != base.attempt:
        raise LakeError(
            f"{where}: made from another build of the segment ({part.base_attempt}, here {base.attempt});"
            " keep this under another --name"
        )


def _write_groups(
    writer: pq.ParquetWriter, base: Commit, table: str, schema: pa.Schema, groups: Iterable[pa.RecordBatch]
) -> int:
    sizes = []
    for batch in groups:
        sizes.append(batch.num_rows)
        # One row group a call, also for zero rows: the groups must stay in step with those of `image`.
        writer.write_table(pa.Table.from_batches([batch], schema), row_group_size=max(1, batch.num_rows))
    if not in_step(table, base, sizes):
        expected = [len(chunk) for chunk in base.chunks]
        raise LakeError(
            f"table {table}, segment {base.segment}: {len(sizes)} row groups of {sum(sizes)} rows, expected"
            f" {len(expected)} of {sum(expected)}, as in the table image"
        )
    return sum(sizes)


def _value_type(field: pa.Field) -> pa.DataType:
    return field.type.value_type if pa.types.is_list(field.type) else field.type


def _leaf(field: pa.Field) -> str:
    return f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name
