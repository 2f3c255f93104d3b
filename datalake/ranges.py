"""Ranges of a remote lake's files: what a reader of Parquet asks for, in few requests.

A table's file is read by its end, once, and then one row group at a time: the columns that are asked for lie in a few
ranges, and all ranges of all tables are on their way at the same time. How large a file is, its commit says.
"""

from __future__ import annotations

import atexit
import io
import itertools
import time
import weakref
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileSystem, FSSpecHandler, LocalFileSystem, PyFileSystem

from datalake.cache import RangeCache
from datalake.store import Range, Store

# What a footer takes at most, usually: a schema, and the statistics of each row group. A longer one costs a request.
_FOOTER_BYTES = 16 << 10
_FOOTER_BYTES_PER_GROUP = 3 << 10
# Two ranges closer than this are one request: it takes as long to begin an answer as to send so many bytes.
_GAP_BYTES = 1 << 20

# How long the end of the process waits for pyarrow's threads to let go of files.
_LET_GO_S = 5.0

# An offset in a file, and the bytes from there on.
Piece = tuple[int, bytes]


class RangeReader:
    """Reads ranges of files that never change, from a local cache where that has them."""

    def __init__(self, store: Store, cache: RangeCache | None) -> None:
        self.store, self._cache = store, cache

    def read(self, ranges: Sequence[Range]) -> list[bytes]:
        """Return the bytes of each range; errors are those of the store."""
        found: dict[Range, bytes] = {}
        if self._cache is not None:
            kept = {piece: self._cache.get(self._key(piece), piece.stop - piece.start) for piece in ranges}
            found = {piece: data for piece, data in kept.items() if data is not None}
        missing = [piece for piece in ranges if piece not in found]
        for piece, data in zip(missing, self.store.read_ranges(missing), strict=True):
            found[piece] = data
            if self._cache is not None:
                self._cache.put(self._key(piece), data)
        return [found[piece] for piece in ranges]

    def _key(self, piece: Range) -> str:
        return f"{self.store.url}/{piece.name}:{piece.start}-{piece.stop}"


class RangeFile:
    """A file of a known size, as a stream for pyarrow: pieces that are here already, anything else on demand."""

    def __init__(self, reader: RangeReader, name: str, size: int, pieces: Sequence[Piece] = ()) -> None:
        """pieces: (offset, bytes) of what is here"""
        self._reader, self._name, self._size = reader, name, size
        self._pieces = [(start, memoryview(data)) for start, data in pieces]
        self._at = 0
        self.closed = False

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move, and return the new position."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def read(self, length: int = -1) -> memoryview:
        """Return up to `length` bytes from the position on, fewer only at the end; all that is left for -1."""
        start = self._at
        stop = self._size if length < 0 else min(self._size, start + length)
        self._at = max(start, stop)
        if stop <= start:
            return memoryview(b"")
        for offset, data in self._pieces:
            if offset <= start and stop <= offset + len(data):
                return data[start - offset : stop - offset]
        return memoryview(self._reader.read([Range(self._name, start, stop)])[0])

    def readable(self) -> bool:
        """Return True."""
        return True

    def writable(self) -> bool:
        """Return False."""
        return False

    def seekable(self) -> bool:
        """Return True."""
        return True

    def close(self) -> None:
        """Let go of the pieces."""
        self._pieces.clear()
        self.closed = True


class RangeTable:
    """One remote Parquet file: its footer, and where its row groups lie. Safe to share between threads."""

    @staticmethod
    def tail(name: str, size: int, groups: int) -> Range:
        """Return the range to make a table of: the end of a file that has so many row groups."""
        return Range(name, max(0, size - _FOOTER_BYTES - groups * _FOOTER_BYTES_PER_GROUP), size)

    def __init__(self, reader: RangeReader, tail: Range, data: bytes) -> None:
        """tail, data: the range and its bytes; where the footer is longer, the rest is read."""
        self._reader, self._name, self._size = reader, tail.name, tail.stop
        # pyarrow itself would ask for 64 kB, however much is here already.
        length = int.from_bytes(data[-8:-4], "little") + 8
        if length > len(data) and length <= self._size:
            tail = tail._replace(start=self._size - length)
            (data,) = reader.read([tail])
        self.metadata = pq.read_metadata(pa.BufferReader(data))
        rows = len(data) - length
        # A small file is here already, whole or in part.
        self._pieces: list[Piece] = [(tail.start, data[:rows])] if rows > 0 else []

    def ranges(self, group: int, columns: Sequence[str]) -> list[Range]:
        """Return what has to be read for these columns of a row group."""
        about = self.metadata.row_group(group)
        bounds = []
        for number in range(about.num_columns):
            column = about.column(number)
            if column.path_in_schema.split(".", 1)[0] in columns:
                start = column.data_page_offset if not column.has_dictionary_page else column.dictionary_page_offset
                bounds.append((start, start + column.total_compressed_size))
        merged: list[Range] = []
        for start, stop in sorted(bounds):
            if any(offset <= start and stop <= offset + len(data) for offset, data in self._pieces):
                continue
            if merged and start - merged[-1].stop <= _GAP_BYTES:
                merged[-1] = merged[-1]._replace(stop=max(stop, merged[-1].stop))
            else:
                merged.append(Range(self._name, start, stop))
        return merged

    def decode(
        self,
        group: int,
        columns: Sequence[str],
        ranges: Sequence[Range],
        answers: Sequence[bytes],
        rows: slice | None = None,
    ) -> pa.Table:
        """Return these columns of a row group, or of some of its rows, given its `ranges` and what they hold."""
        pieces = [(piece.start, data) for piece, data in zip(ranges, answers, strict=True)]
        stream = RangeFile(self._reader, self._name, self._size, [*self._pieces, *pieces])
        # Buffering would join what is here in two pieces into one that is not.
        with pq.ParquetFile(pa.PythonFile(stream, mode="r"), metadata=self.metadata, pre_buffer=False) as parquet:
            return read_rows(parquet, group, columns, rows)

    def read(self, group: int, columns: Sequence[str]) -> pa.Table:
        """Return these columns of a row group."""
        ranges = self.ranges(group, columns)
        return self.decode(group, columns, ranges, self._reader.read(ranges))


class _Handler(FSSpecHandler):
    """Opens files of known sizes by ranges; everything else is fsspec's own."""

    def __init__(self, reader: RangeReader, sizes: dict[str, int]) -> None:
        super().__init__(reader.store.fs)
        self._reader, self._sizes = reader, sizes

    def open_input_file(self, path: str) -> pa.NativeFile:
        name = path.removeprefix(f"{self._reader.store.root}/")
        stream = RangeFile(self._reader, name, self._sizes[name])
        _scanned.add(stream)
        return pa.PythonFile(stream, mode="r")


# The files that a scan has open.
_scanned: weakref.WeakSet[RangeFile] = weakref.WeakSet()


@atexit.register
def _await_scans() -> None:
    """Let pyarrow's threads finish with our files while there is an interpreter.

    They let go of a scanned file a moment after the scan has returned its table, and need the interpreter for that: one
    that comes too late aborts the process (apache/arrow#33975, #36389). A scan that was given up half way holds
    its files for good, so the wait has an end.
    """
    stop = time.monotonic() + _LET_GO_S
    while _scanned and time.monotonic() < stop:
        time.sleep(0.001)


def read_rows(parquet: pq.ParquetFile, group: int, columns: Sequence[str], rows: slice | None) -> pa.Table:
    """Return these columns of a row group, or of some of its rows; a column that the file lacks is left out.

    A column is decoded from its beginning to the last row that is wanted, and no further.
    """
    if rows is None:
        return parquet.read_row_group(group, columns=list(columns), use_threads=False)
    one_by_one = parquet.iter_batches(batch_size=1, row_groups=[group], columns=list(columns), use_threads=False)
    return pa.Table.from_batches(itertools.islice(one_by_one, rows.start, rows.stop))


def open_parquet(reader: RangeReader, name: str, size: int) -> pq.ParquetFile:
    """Open a Parquet file of `size` bytes: mapped into memory, or by ranges where the store is remote."""
    if reader.store.is_local:
        return pq.ParquetFile(reader.store.path(name), memory_map=True)
    return pq.ParquetFile(pa.PythonFile(RangeFile(reader, name, size), mode="r"), pre_buffer=True)


def file_system(reader: RangeReader, sizes: dict[str, int]) -> FileSystem:
    """Return the lake's files as pyarrow's file system.

    sizes: the size in bytes of each file that may be opened, by its name in the store
    """
    return LocalFileSystem() if reader.store.is_local else PyFileSystem(_Handler(reader, sizes))
