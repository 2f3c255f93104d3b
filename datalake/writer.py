"""The files of one segment, written together so that row group g of every table holds the same frames."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datalake.attempt import Attempt, end_attempt
from datalake.commit import CAMERA_MARKS, DataFile
from datalake.schema import SEGMENT_TABLES, TABLES
from datalake.sources.frame import ALL_CAMERAS
from datalake.store import Sink, Store

# A row group ends at eight images, or eight frames without any: one image costs one small read, and a
# footer stays small.
_CHUNK_ROWS = 8
_ZSTD_LEVEL = 3
_DICTIONARY_BYTES = 64 << 10

# Encodings by table and column, chosen by size and time on a full-size frame. Everything else is PLAIN
# or dictionary, as Parquet's defaults have it.
_BYTE_STREAM_SPLIT = "BYTE_STREAM_SPLIT"
_DELTA = "DELTA_BINARY_PACKED"
_ENCODINGS: dict[str, dict[str, str]] = {
    "image": {"jpeg": "PLAIN", "panoptic": "PLAIN"},
    "point": {
        "x_m": _BYTE_STREAM_SPLIT,
        "y_m": _BYTE_STREAM_SPLIT,
        "z_m": _BYTE_STREAM_SPLIT,
        "intensity": _BYTE_STREAM_SPLIT,
        "u_1": _BYTE_STREAM_SPLIT,
        "v_1": _BYTE_STREAM_SPLIT,
        "u_2": _BYTE_STREAM_SPLIT,
        "v_2": _BYTE_STREAM_SPLIT,
        "range_row": _DELTA,
        "range_column": _DELTA,
    },
    "depth": {
        "u": _DELTA,
        "v": _DELTA,
        "depth_m": _BYTE_STREAM_SPLIT,
        "point": _DELTA,
    },
}
# JPEG and PNG are compressed already: zstd would only cost time, and a plain page can be read by range.
_UNCOMPRESSED = {"image": ("jpeg", "panoptic")}


class SegmentWriter:
    """Collects the rows of a segment's frames, in order, and writes them a chunk at a time.

    A chunk is a few frames with about eight images; only one is in memory. `close` finishes all files; an
    exception inside the `with` block gives them up.
    """

    def __init__(self, store: Store, attempt: Attempt, cameras: Sequence[str] = ALL_CAMERAS) -> None:
        """cameras: the names of all that images may have, in the order that the commit will have them."""
        self._marks = dict(zip(cameras, CAMERA_MARKS, strict=False))
        self._store = store
        self._attempt = attempt
        self._sinks: dict[str, Sink] = {}
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._rows = dict.fromkeys(TABLES, 0)
        self._pending: list[dict[str, pa.RecordBatch]] = []
        self._kept = False
        self.chunks: list[str] = []
        try:
            for table in TABLES:
                self._open(table)
        except OSError:
            self.discard()
            raise

    def __enter__(self) -> SegmentWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not self._kept:
            self.discard()

    def append(self, rows: dict[str, pa.RecordBatch]) -> None:
        """Add one frame's rows, by table name (every table but those of the segment)."""
        self._pending.append(rows)
        images = sum(pending["image"].num_rows for pending in self._pending)
        if max(images, len(self._pending)) >= _CHUNK_ROWS:
            self._write_chunk()

    def finish(self, tables: dict[str, pa.RecordBatch]) -> dict[str, DataFile]:
        """Write what is left and the tables of the segment, close every file, and return what each holds, by table.

        tables: the rows of each in `SEGMENT_TABLES`; one that is not given is empty
        """
        if self._pending:
            self._write_chunk()
        for table in SEGMENT_TABLES:
            self._write(table, [tables[table]] if table in tables else [])
        files = {}
        for table, sink in self._sinks.items():
            self._writers[table].close()
            sink.close()
            files[table] = DataFile(self._rows[table], sink.size, sink.sha256)
        return files

    def keep(self) -> None:
        """Leave the finished files alone, whatever happens now."""
        self._kept = True

    def discard(self) -> None:
        """Close and delete every file, and end the attempt."""
        for table, sink in self._sinks.items():
            sink.discard()
            if table in self._writers:
                self._writers[table].close()
            self._store.delete(self._attempt.file_names[table])
        end_attempt(self._store, self._attempt)

    def _open(self, table: str) -> None:
        schema, encodings = TABLES[table], _ENCODINGS.get(table, {})
        paths = {name: _leaf(schema.field(name)) for name in schema.names}
        self._sinks[table] = self._store.sink(self._attempt.file_names[table])
        self._writers[table] = pq.ParquetWriter(
            self._sinks[table],
            schema,
            compression={
                path: "none" if name in _UNCOMPRESSED.get(table, ()) else "zstd" for name, path in paths.items()
            },
            compression_level={
                path: _ZSTD_LEVEL for name, path in paths.items() if name not in _UNCOMPRESSED.get(table, ())
            },
            use_dictionary=[path for name, path in paths.items() if name not in encodings],
            column_encoding={paths[name]: encoding for name, encoding in encodings.items()},
            # A column of many values (elongation of a noisy sensor) leaves its dictionary early, not after 1 MB.
            dictionary_pagesize_limit=_DICTIONARY_BYTES,
            # Bounds of single values inside lists and images prune nothing.
            write_statistics=[path for name, path in paths.items() if path == name and name != "jpeg"],
        )

    def _write_chunk(self) -> None:
        images: Any = pa.concat_arrays([rows["image"].column("camera") for rows in self._pending])
        self.chunks.append("".join(self._marks[camera] for camera in images.to_pylist()))
        for table in self._pending[0]:
            self._write(table, [rows[table] for rows in self._pending])
        self._pending.clear()

    def _write(self, table: str, batches: list[pa.RecordBatch]) -> None:
        rows = pa.Table.from_batches(batches, TABLES[table])
        # One row group a call, also for zero rows: the groups of all tables must stay in step.
        self._writers[table].write_table(rows, row_group_size=max(1, rows.num_rows))
        self._rows[table] += rows.num_rows


def _leaf(field: pa.Field) -> str:
    return f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name
