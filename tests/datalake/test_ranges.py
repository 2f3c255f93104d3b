"""Parquet by ranges: the same rows as from a disk, whatever is here already and whatever has to be asked for."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import LocalFileSystem

from datalake.lake import Lake
from datalake.ranges import RangeFile, RangeReader, RangeTable
from datalake.store import Range, Store


class CountedReader(RangeReader):
    """A reader that writes down what it is asked for."""

    def __init__(self, data: bytes) -> None:
        super().__init__(Store("memory://ranges"), None)
        self.store.write("file", data)
        self.asked: list[Range] = []

    def read(self, ranges: Sequence[Range]) -> list[bytes]:
        self.asked += ranges
        return super().read(ranges)


def table_bytes(path: Path, groups: int, columns: int, rows: int = 5000) -> bytes:
    """Write a file of several row groups that do not compress."""
    whole = pa.table({f"c{number}": [float(row * (number + 1)) for row in range(rows)] for number in range(columns)})
    with pq.ParquetWriter(path, whole.schema, compression="none", use_dictionary=False) as writer:
        for _ in range(groups):
            writer.write_table(whole)
    return path.read_bytes()


def open_table(reader: CountedReader, size: int, groups: int) -> RangeTable:
    tail = RangeTable.tail("file", size, groups)
    return RangeTable(reader, tail, reader.read([tail])[0])


def test_columns_that_lie_close_are_one_request(tmp_path: Path) -> None:
    data = table_bytes(tmp_path / "a", groups=3, columns=6)
    reader = CountedReader(data)
    table = open_table(reader, len(data), 3)
    assert len(reader.asked) == 1
    found = table.read(1, ["c0", "c4"])
    assert found == pq.ParquetFile(tmp_path / "a").read_row_group(1, ["c0", "c4"])
    assert len(reader.asked) == 2


def test_columns_that_lie_far_apart_leave_out_what_is_between(tmp_path: Path) -> None:
    data = table_bytes(tmp_path / "a", groups=1, columns=5, rows=100_000)
    reader = CountedReader(data)
    table = open_table(reader, len(data), 1)
    reader.asked.clear()
    table.read(0, ["c0", "c4"])
    assert len(reader.asked) == 2
    assert sum(piece.stop - piece.start for piece in reader.asked) < len(data) / 2


def test_a_small_file_is_one_request_in_all(tmp_path: Path) -> None:
    data = table_bytes(tmp_path / "a", groups=2, columns=2, rows=50)
    reader = CountedReader(data)
    table = open_table(reader, len(data), 2)
    assert [table.read(group, ["c0", "c1"]).num_rows for group in range(2)] == [50, 50]
    assert reader.asked == [Range("file", 0, len(data))]


def test_a_footer_longer_than_expected_is_read_whole(tmp_path: Path) -> None:
    data = table_bytes(tmp_path / "a", groups=40, columns=40, rows=20)
    reader = CountedReader(data)
    tail = Range("file", len(data) - 100, len(data))
    table = RangeTable(reader, tail, data[-100:])
    assert table.metadata.serialized_size > 10_000
    assert table.read(39, ["c39"]) == pq.ParquetFile(tmp_path / "a").read_row_group(39, ["c39"])


def test_every_row_group_of_every_table_is_read_as_from_a_disk(drive_lake: Lake) -> None:
    for commit in drive_lake.commits[:1]:
        for table, file in commit.files.items():
            local = pq.ParquetFile(drive_lake.store.path(commit.file_name(table)))
            reader = CountedReader(Path(drive_lake.store.path(commit.file_name(table))).read_bytes())
            remote = open_table(reader, file.bytes, len(commit.chunks))
            names = local.schema_arrow.names
            for group in range(local.num_row_groups):
                asked = len(reader.asked) + len(remote.ranges(group, names))
                assert remote.read(group, names) == local.read_row_group(group)
                # Nothing that pyarrow reads lies outside of what was announced.
                assert len(reader.asked) == asked


def test_a_stream_of_ranges_is_a_file() -> None:
    data = bytes(range(256)) * 4
    reader = CountedReader(data)
    expected, stream = io.BytesIO(data), RangeFile(reader, "file", len(data), [(100, data[100:300])])
    for offset, whence, length in [
        (0, 0, 10),
        (150, 0, 20),
        (90, 0, 20),
        (5, 1, 7),
        (-9, 2, -1),
        (0, 2, 5),
        (290, 0, 10),
    ]:
        assert stream.seek(offset, whence) == expected.seek(offset, whence)
        assert bytes(stream.read(length)) == expected.read(length)
        assert stream.tell() == expected.tell()
    assert len(reader.asked) == 3


@pytest.mark.parametrize("table", ["image", "quarantine"])
def test_a_scan_of_a_remote_lake_has_the_rows_of_the_local_one(drive_lake: Lake, table: str) -> None:
    store = Store("memory://scanned")
    for name in drive_lake.store.listing(""):
        store.write(name, drive_lake.store.read(name))
    remote = Lake(store, drive_lake.snapshot, drive_lake.points_mode, drive_lake.commits)
    assert remote.scan(table).to_table() == drive_lake.scan(table).to_table()


def test_a_local_lake_is_scanned_without_the_interpreter(drive_lake: Lake) -> None:
    """Arrow's threads let go of files late; those of Python's abort a process that ends meanwhile."""
    assert isinstance(drive_lake.dataset("image").filesystem, LocalFileSystem)


# A thread like pyarrow's, slower than the end of the program: it is cut off where the interpreter does not wait.
_HELD_AT_THE_END = """
import threading, time
from datalake.ranges import RangeReader, file_system
from datalake.store import Store

store = Store("memory://held")
store.write("file", b"some")
files = [file_system(RangeReader(store, None), {"file": 4}).open_input_file(store.path("file"))]

def late():
    time.sleep(0.5)
    print("still here", flush=True)
    files.clear()

threading.Thread(target=late, daemon=True).start()
"""


@pytest.mark.integration
def test_a_process_ends_after_scans_have_let_go_of_remote_files() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _HELD_AT_THE_END], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "still here\n"
