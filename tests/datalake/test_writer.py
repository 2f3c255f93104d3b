"""The files of a segment: in step with each other, hashed as they lie, and gone when given up."""

from __future__ import annotations

import gc
import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake.attempt import Attempt
from datalake.convert import frame_rows
from datalake.schema import QUARANTINE, SEGMENT_TABLES, TABLES
from datalake.sources.frame import CAMERAS
from datalake.sources.waymo_v1.parse import parse_frame
from datalake.store import Store
from datalake.writer import SegmentWriter
from tests.frames import make_frame

_ATTEMPT = "0123456789abcdef"
_RECORD = Attempt("train", "segment_a", _ATTEMPT, tuple(TABLES), "_commits/train/segment_a.json")
_ALL = frozenset(camera for camera in CAMERAS if camera)
_NOTHING = pa.RecordBatch.from_pylist([], QUARANTINE)
_SHARED = tuple(table for table in TABLES if table not in SEGMENT_TABLES)


def _rows(frame: Any) -> dict[str, pa.RecordBatch]:
    return frame_rows(parse_frame(frame.SerializeToString(), _ALL), "quantised")


def _uneven_frames() -> list[Any]:
    """Return frames with 2, 1 and 0 images, in turn, some of them without labels or points."""
    frames = []
    for index in range(21):
        frame = make_frame(index, lidar=index % 4 != 0)
        del frame.images[2 - index % 3 :]
        if index < 12:
            del frame.camera_labels[:], frame.laser_labels[:]
        frames.append(frame)
    return frames


def _write(store: Store, frames: list[Any]) -> SegmentWriter:
    with SegmentWriter(store, _RECORD) as writer:
        for frame in frames:
            writer.append(_rows(frame))
        writer.finish({"quarantine": _NOTHING})
    return writer


def _open(store: Store, table: str) -> pq.ParquetFile:
    return pq.ParquetFile(store.path(f"train/{table}/segment_a-{_ATTEMPT}.parquet"))


def _times(file: pq.ParquetFile, group: int) -> set[int]:
    return set(file.read_row_group(group, ["timestamp_us"])["timestamp_us"].to_pylist())


def test_row_group_of_every_table_holds_the_same_frames(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    _write(store, _uneven_frames())
    files = {table: _open(store, table) for table in _SHARED}
    counts = {file.num_row_groups for file in files.values()}
    assert len(counts) == 1
    seen: set[int] = set()
    for group in range(counts.pop()):
        frames = _times(files["point"], group)
        assert all(_times(files[table], group) <= frames for table in _SHARED)
        assert not frames & seen
        seen |= frames
    assert len(seen) == 21


def test_depth_has_a_row_for_each_row_of_image(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    _write(store, _uneven_frames())
    keys = ["timestamp_us", "camera"]
    image, depth = _open(store, "image"), _open(store, "depth")
    for group in range(image.num_row_groups):
        assert depth.read_row_group(group, keys).equals(image.read_row_group(group, keys))


def test_row_group_is_closed_at_eight_images_or_eight_frames(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with_images = [make_frame(index) for index in range(6)]
    without = [make_frame(index, lidar=False) for index in range(6, 18)]
    for frame in without:
        del frame.images[:]
    _write(store, with_images + without)
    file = _open(store, "point")
    # 4 frames of 2 images; 2 of 2 images and 6 of none; the last 6.
    assert [len(_times(file, group)) for group in range(file.num_row_groups)] == [4, 8, 6]


def test_chunks_name_the_camera_of_each_image_row(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    writer = _write(store, _uneven_frames())
    image = _open(store, "image")
    found = [
        "".join(str(CAMERAS.index(camera)) for camera in image.read_row_group(group)["camera"].to_pylist())
        for group in range(image.num_row_groups)
    ]
    assert writer.chunks == found


def test_finish_reports_rows_size_and_checksum_of_what_lies_there(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with SegmentWriter(store, _RECORD) as writer:
        writer.append(_rows(make_frame()))
        files = writer.finish({"quarantine": _NOTHING})
    assert set(files) == set(TABLES)
    for table, file in files.items():
        data = store.read(f"train/{table}/segment_a-{_ATTEMPT}.parquet")
        assert (file.bytes, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert _open(store, table).metadata.num_rows == file.rows


def test_jpeg_lies_in_the_file_as_it_is(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    frame = make_frame()
    _write(store, [frame])
    data = store.read(f"train/image/segment_a-{_ATTEMPT}.parquet")
    assert all(image.image in data for image in frame.images)


def test_equal_frames_make_equal_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        _write(Store(str(tmp_path / name)), _uneven_frames())
    for table in TABLES:
        name = f"train/{table}/segment_a-{_ATTEMPT}.parquet"
        assert Store(str(tmp_path / "one")).read(name) == Store(str(tmp_path / "two")).read(name)


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", ["disk", "s3"])
def test_error_deletes_every_file(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    store = Store(str(tmp_path) if kind == "disk" else request.getfixturevalue("s3_lake"))

    def fail() -> None:
        with SegmentWriter(store, _RECORD) as writer:
            for index in range(9):
                writer.append(_rows(make_frame(index)))
            raise RuntimeError("the source is gone")

    with pytest.raises(RuntimeError):
        fail()
    gc.collect()
    assert store.listing("train") == {}


def test_discard_deletes_finished_files(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    _write(store, [make_frame()]).discard()
    assert store.listing("train") == {}


def test_files_that_are_kept_survive_an_error(tmp_path: Path) -> None:
    store = Store(str(tmp_path))

    def fail() -> None:
        with SegmentWriter(store, _RECORD) as writer:
            writer.append(_rows(make_frame()))
            writer.finish({"quarantine": _NOTHING})
            writer.keep()
            raise RuntimeError("the commit's answer was lost")

    with pytest.raises(RuntimeError):
        fail()
    assert len(store.listing("train")) == len(TABLES)
