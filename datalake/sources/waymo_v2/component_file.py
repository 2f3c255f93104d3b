"""One component of one segment: a Parquet file, read a few rows at a time."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Generator
from types import TracebackType
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datalake.commit import LakeError
from datalake.place import file_system, file_version
from datalake.sources.source import SegmentError
from datalake.sources.waymo_v2.component import SEGMENT_KEY, TIME_KEY, Component

# What is read of a column chunk at once; there are a handful of large columns.
_BUFFER_BYTES = 4 << 20
# Rows may wait for their frame where a file is not in order of time.
_MOST_WAITING_BYTES = 1 << 30
_FOOTER_END_BYTES = 8
_NO_TIME = -1


class Row:
    """One row of a component.

    timestamp_us: of its frame, -1 where it belongs to a segment
    bytes: about what it takes in memory
    """

    __slots__ = ("_batch", "_component", "_index", "bytes", "timestamp_us")

    def __init__(self, batch: pa.RecordBatch, index: int, component: Component, timestamp_us: int, size: int) -> None:
        self._batch, self._index, self._component = batch, index, component
        self.timestamp_us, self.bytes = timestamp_us, size

    def key(self, name: str) -> Any:
        """Return a key beside segment and time; None where it is null."""
        return self._batch.column(f"key.{name}")[self._index].as_py()

    def value(self, name: str) -> Any:
        """Return a column of the component; None where it is null, or the file has no such column."""
        scalar = self._scalar(name)
        return None if scalar is None else scalar.as_py()

    def array(self, name: str) -> NDArray[Any] | None:
        """Return a list of numbers, without a copy where none of them is null (then it is NaN); None likewise."""
        scalar = self._scalar(name)
        if scalar is None or not scalar.is_valid:
            return None
        return scalar.values.to_numpy(zero_copy_only=False)

    def _scalar(self, name: str) -> Any:
        place = self._batch.schema.get_field_index(self._component.column(name))
        return None if place < 0 else self._batch.column(place)[self._index]


class ComponentFile:
    """The file of one component.

    size, version: as in `SourceFile`
    times: int64 [rows], the time of each row's frame, -1 where it has none; empty for a component of segments
    """

    def __init__(self, uri: str, component: Component) -> None:
        """Open `uri`; raises OSError where that fails, LakeError where it is no file of this component."""
        self.uri, self.component = uri, component
        fs, path = file_system(uri)
        info = fs.info(path)
        self.size, self.version = int(info["size"]), file_version(info)
        self._stream: Any = fs.open(path, "rb", cache_type="none")
        try:
            self._parquet = pq.ParquetFile(self._stream, buffer_size=_BUFFER_BYTES, pre_buffer=False)
            self._check_columns()
            self.times = self._read_times()
        except BaseException as error:
            self._stream.close()
            if not _is_damage(error):
                raise
            text = " ".join(str(error).split())
            raise LakeError(f"{uri}: cannot be read as a Parquet file ({text}); fetch it again") from error
        self._counts = Counter(self.times.tolist())
        self._lost: Counter[int] = Counter()
        self._reasons: dict[int, str] = {}
        self._waiting: dict[int, list[Row]] = defaultdict(list)
        self._waiting_bytes = 0
        self._batches = self._read()

    def __enter__(self) -> ComponentFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._batches.close()
        self._stream.close()

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return int(self._parquet.metadata.num_rows)

    def checksum(self) -> str:
        """Return the CRC32C of the footer, in hex: it has the sizes, offsets and bounds of all pages."""
        self._stream.seek(self.size - _FOOTER_END_BYTES)
        length = int.from_bytes(self._stream.read(4), "little")
        self._stream.seek(self.size - _FOOTER_END_BYTES - length)
        return f"{google_crc32c.value(self._stream.read(length)):08x}"

    def segments(self) -> list[str]:
        """Return the names of the segments that rows belong to."""
        try:
            names = self._parquet.read(columns=[SEGMENT_KEY], use_threads=False).column(0).unique().to_pylist()
        except Exception as error:
            if not _is_damage(error):
                raise
            raise LakeError(
                f"{self.uri}: the names of its segments cannot be read ({error}); fetch it again"
            ) from error
        return sorted(str(name) for name in names)

    def all_rows(self) -> list[Row]:
        """Return every row, of a component of segments; raises LakeError where the file is damaged."""
        rows = [row for batch in self._batches for row in batch]
        if self._lost:
            raise LakeError(next(iter(self._reasons.values())))
        return rows

    def rows_at(self, timestamp_us: int) -> tuple[list[Row], str | None]:
        """Return the rows of a frame, and why some of them are missing, if any are.

        Asked for in the order of the file, each row is read once, and few are in memory. Raises SegmentError where the
        file is so far out of order of time that too many would be.
        """
        there = self._waiting[timestamp_us]
        while len(there) + self._lost[timestamp_us] < self._counts[timestamp_us]:
            for row in next(self._batches, ()):
                self._waiting[row.timestamp_us].append(row)
                self._waiting_bytes += row.bytes
            if self._waiting_bytes > _MOST_WAITING_BYTES:
                raise SegmentError(
                    f"{self.uri}: its rows are out of order, and more than {_MOST_WAITING_BYTES >> 20} MiB of them"
                    f" would wait for their frames; sort them by {TIME_KEY}"
                )
        del self._waiting[timestamp_us]
        self._waiting_bytes -= sum(row.bytes for row in there)
        return there, self._reasons.get(timestamp_us)

    def _read(self) -> Generator[list[Row], None, None]:
        """Yield all rows that can be read, a few at a time; tell of the others in `_lost` and `_reasons`."""
        component, at = self.component, 0
        wanted = [*component.required, *(component.column(name) for name in component.optional)]
        columns = [name for name in self._parquet.schema_arrow.names if name in wanted]
        for group in range(self._parquet.num_row_groups):
            stop = at + self._parquet.metadata.row_group(group).num_rows
            text = "it ends early"
            try:
                for batch in self._parquet.iter_batches(
                    component.batch_rows, row_groups=[group], columns=columns, use_threads=False
                ):
                    times, size = self._times_of(at, at + len(batch)), batch.nbytes // max(1, len(batch))
                    at += len(batch)
                    yield [
                        Row(batch, index, component, time, size)
                        for index, time in enumerate(times)
                        if time != _NO_TIME or not component.of_frame
                    ]
            except Exception as error:
                if not _is_damage(error):
                    raise
                text = " ".join(str(error).split())
            for time in self._times_of(at, stop):
                self._lost[time] += 1
                self._reasons[time] = (
                    f"{self.uri}: {stop - at} rows of row group {group} cannot be read ({text}); fetch it again"
                )
            at = stop

    def _times_of(self, start: int, stop: int) -> list[int]:
        times: list[int] = self.times[start:stop].tolist() if self.component.of_frame else [_NO_TIME] * (stop - start)
        return times

    def _check_columns(self) -> None:
        names = set(self._parquet.schema_arrow.names)
        if missing := [name for name in self.component.required if name not in names]:
            raise LakeError(
                f"{self.uri}: has no column {missing[0]}, as files of {self.component.folder} have;"
                " fetch it again, or move it to the folder of its component"
            )

    def _read_times(self) -> NDArray[np.int64]:
        if not self.component.of_frame:
            return np.zeros(0, np.int64)
        column = self._parquet.read(columns=[TIME_KEY], use_threads=False).column(0)
        times = column.cast(pa.int64()).fill_null(_NO_TIME).to_numpy()
        return np.where(times > 0, times, _NO_TIME)


def _is_damage(error: BaseException) -> bool:
    """Return whether the bytes are bad, and not the store that they come from, or this process."""
    if isinstance(error, (MemoryError, pa.ArrowCancelled)):
        return False
    return isinstance(error, pa.ArrowException) or (type(error) is OSError and error.errno is None)
