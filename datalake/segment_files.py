"""The Parquet files of one segment, read a row group of every table at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datalake.commit import Commit
from datalake.lake import Lake
from datalake.ranges import RangeReader, RangeTable, open_parquet, read_rows
from datalake.schema import TABLES
from datalake.store import Range

_TIME = "timestamp_us"
# Some rows of a row group, by table; all of a table that is not named.
Rows = dict[str, slice]


class SegmentFiles:
    """The open Parquet files of one segment; footers are read once, when a table is first used."""

    def __init__(self, lake: Lake, commit: Commit) -> None:
        self._lake, self.commit = lake, commit
        self._open: dict[str, pq.ParquetFile] = {}
        self._remote: dict[str, RangeTable] = {}
        self._fetched: dict[tuple[int, int], dict[str, tuple[list[Range], list[bytes]]]] = {}
        self._times: dict[str, list[NDArray[np.int64]]] = {}
        self._opening = threading.Lock()
        self._reading = threading.Lock()
        self._failure: OSError | None = None

    def read(
        self, group: int, columns: dict[str, list[str]], rows: Rows | None = None, of: int | None = None
    ) -> dict[str, dict[str, Any]]:
        """Return columns, by table, of one row group: numpy arrays for numbers, Arrow arrays for everything else.

        A nullable column that the segment was built without is null.

        rows: which of the group's rows, where not all are wanted
        of: what `fetch` was told
        """
        rows = rows or {}
        if self._lake.store.is_local:
            # An open Parquet file has one position: several threads read several segments, not one.
            with self._reading:
                found = {
                    table: read_rows(self._local(table), group, names, rows.get(table))
                    for table, names in columns.items()
                }
        else:
            found = self._read_remote(group, columns, rows, of)
        return {table: {name: _column(table, found[table], name) for name in names} for table, names in columns.items()}

    def fetch(self, group: int, columns: dict[str, list[str]], of: int | None = None) -> None:
        """Have here what `read` of the same will ask a remote lake for; several threads may, for different groups.

        All tables are read at the same time: a chunk costs one round trip, the first of a segment two. Raises OSError.

        of: the row group for whose sake this one is read, where that is another
        """
        self._fetched[self._key(group, of)] = self._ask(group, columns)

    def times(self, table: str) -> list[NDArray[np.int64]]:
        """Return for each row group the times int64 [R] of its rows of a table, in microseconds; read once."""
        if table not in self._times:
            groups = range(len(self.commit.chunks))
            if self._lake.store.is_local:
                with self._reading:
                    parts = [read_rows(self._local(table), group, [_TIME], None) for group in groups]
            else:
                self._open_tables([table])
                remote = self._remote[table]
                ranges = [remote.ranges(group, [_TIME]) for group in groups]
                answers = iter(self._lake.ranges.read([piece for pieces in ranges for piece in pieces]))
                parts = [
                    remote.decode(group, [_TIME], pieces, [next(answers) for _ in pieces])
                    for group, pieces in zip(groups, ranges, strict=True)
                ]
            self._times[table] = [part.column(_TIME).to_numpy() for part in parts]
        return self._times[table]

    def frames_before(self, group: int, count: int) -> list[tuple[int, slice]]:
        """Return where the last `count` rows of `point` before a row group lie, fewer at the segment's beginning.

        Each is a row group and rows of it; in the order of time.
        """
        places: list[tuple[int, slice]] = []
        while count and group:
            group -= 1
            rows = self._group_rows("point", group)
            if taken := min(rows, count):
                places.append((group, slice(rows - taken, rows)))
                count -= taken
        return places[::-1]

    def close(self) -> None:
        """Close every file."""
        for parquet in self._open.values():
            parquet.close(force=True)
        self._open.clear()

    def _local(self, table: str) -> pq.ParquetFile:
        if table not in self._open:
            name, file = self.commit.file_name(table), self.commit.files[table]
            self._open[table] = open_parquet(self._lake.ranges, name, file.bytes)
        return self._open[table]

    def _read_remote(
        self, group: int, columns: dict[str, list[str]], rows: Rows, of: int | None
    ) -> dict[str, pa.Table]:
        fetched = self._fetched.pop(self._key(group, of), None) or self._ask(group, columns)
        return {
            table: self._remote[table].decode(group, columns[table], ranges, answers, rows.get(table))
            for table, (ranges, answers) in fetched.items()
        }

    @staticmethod
    def _key(group: int, of: int | None) -> tuple[int, int]:
        return (group, group if of is None else of)

    def _ask(self, group: int, columns: dict[str, list[str]]) -> dict[str, tuple[list[Range], list[bytes]]]:
        self._open_tables(columns)
        ranges = {table: self._remote[table].ranges(group, names) for table, names in columns.items()}
        answers = iter(self._lake.ranges.read([piece for pieces in ranges.values() for piece in pieces]))
        return {table: (pieces, [next(answers) for _ in pieces]) for table, pieces in ranges.items()}

    def _group_rows(self, table: str, group: int) -> int:
        if self._lake.store.is_local:
            with self._reading:
                metadata = self._local(table).metadata
        else:
            self._open_tables([table])
            metadata = self._remote[table].metadata
        return int(metadata.row_group(group).num_rows)

    def _open_tables(self, tables: Iterable[str]) -> None:
        """Have the footers of these tables of a remote lake here."""
        with self._opening:
            # One chunk has waited for the store to come back; the others need not do so one after the other.
            if self._failure is not None:
                raise self._failure
            try:
                self._open_remote(self._lake.ranges, [table for table in tables if table not in self._remote])
            except OSError as error:
                self._failure = error
                raise

    def _open_remote(self, reader: RangeReader, tables: list[str]) -> None:
        commit = self.commit
        tails = [
            RangeTable.tail(commit.file_name(table), commit.files[table].bytes, len(commit.chunks)) for table in tables
        ]
        for table, tail, data in zip(tables, tails, reader.read(tails), strict=True):
            self._remote[table] = RangeTable(reader, tail, data)


def _column(table: str, rows: pa.Table, name: str) -> Any:
    """Return a numeric column as numpy (nulls are NaN), anything else as it is."""
    if name not in rows.column_names:
        return pa.nulls(len(rows), TABLES[table].field(name).type)
    column = rows.column(name)
    # `combine_chunks` would copy a single one.
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if pa.types.is_integer(array.type) or pa.types.is_floating(array.type):
        return array.to_numpy(zero_copy_only=False)
    return array
