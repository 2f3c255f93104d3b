"""The files of a segment, read a row group at a time."""

from __future__ import annotations

import threading
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datalake.commit import Commit
from datalake.lake import Lake
from datalake.ranges import RangeReader, RangeTable, open_parquet
from datalake.store import Range


class SegmentFiles:
    """The open Parquet files of one segment; footers are read once, when a table is first used."""

    def __init__(self, lake: Lake, commit: Commit) -> None:
        self._lake, self.commit = lake, commit
        self._open: dict[str, pq.ParquetFile] = {}
        self._remote: dict[str, RangeTable] = {}
        self._fetched: dict[int, dict[str, tuple[list[Range], list[bytes]]]] = {}
        self._opening = threading.Lock()
        self._reading = threading.Lock()
        self._failure: OSError | None = None

    def read(self, group: int, columns: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
        """Return columns, by table, of one row group: numpy arrays for numbers, Arrow arrays for everything else."""
        if self._lake.store.is_local:
            # An open Parquet file has one position: several threads read several segments, not one.
            with self._reading:
                found = {table: self._read_local(table, group, names) for table, names in columns.items()}
        else:
            found = self._read_remote(group, columns)
        return {
            table: {name: _plain(rows.column(name).combine_chunks()) for name in columns[table]}
            for table, rows in found.items()
        }

    def fetch(self, group: int, columns: dict[str, list[str]]) -> None:
        """Have here what `read` of the same will ask a remote lake for; several threads may, for different groups.

        All tables are read at the same time: a chunk costs one round trip, the first of a segment two. Raises OSError.
        """
        reader = self._lake.ranges
        with self._opening:
            # One chunk has waited for the store to come back; the others need not do so one after the other.
            if self._failure is not None:
                raise self._failure
            try:
                self._open_remote(reader, [table for table in columns if table not in self._remote])
            except OSError as error:
                self._failure = error
                raise
        ranges = {table: self._remote[table].ranges(group, names) for table, names in columns.items()}
        answers = iter(reader.read([piece for pieces in ranges.values() for piece in pieces]))
        self._fetched[group] = {table: (pieces, [next(answers) for _ in pieces]) for table, pieces in ranges.items()}

    def close(self) -> None:
        """Close every file."""
        for parquet in self._open.values():
            parquet.close(force=True)
        self._open.clear()

    def _read_local(self, table: str, group: int, columns: list[str]) -> pa.Table:
        if table not in self._open:
            name, file = self.commit.file_name(table), self.commit.files[table]
            self._open[table] = open_parquet(self._lake.ranges, name, file.bytes)
        return self._open[table].read_row_group(group, columns=columns, use_threads=False)

    def _read_remote(self, group: int, columns: dict[str, list[str]]) -> dict[str, pa.Table]:
        if group not in self._fetched:
            self.fetch(group, columns)
        fetched = self._fetched.pop(group)
        return {
            table: self._remote[table].decode(group, columns[table], ranges, answers)
            for table, (ranges, answers) in fetched.items()
        }

    def _open_remote(self, reader: RangeReader, tables: list[str]) -> None:
        commit = self.commit
        tails = [
            RangeTable.tail(commit.file_name(table), commit.files[table].bytes, len(commit.chunks)) for table in tables
        ]
        for table, tail, data in zip(tables, tails, reader.read(tails), strict=True):
            self._remote[table] = RangeTable(reader, tail, data)


def _plain(array: pa.Array) -> Any:
    """Return a numeric column as numpy (nulls are NaN), anything else as it is."""
    if pa.types.is_integer(array.type) or pa.types.is_floating(array.type):
        return array.to_numpy(zero_copy_only=False)
    return array
