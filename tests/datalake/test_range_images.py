"""Range images that are made again from a lake, beside those of the records that it was built from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from waymo_open_dataset.dataset_pb2 import MatrixFloat, MatrixInt32
from zlib_ng import zlib_ng

from datalake.build import BuildConfig
from datalake.commit import LakeError
from datalake.range_images import RangeImage, read_range_images
from datalake.schema import PointMode
from datalake.source_list import list_sources
from datalake.sources.waymo_v1.protos import dataset_pb2
from datalake.sources.waymo_v1.tfrecord import RecordFile, Slot
from tests.frames import SEGMENT, START_US, make_frame
from tests.lakes import build_files, build_frames

_LASERS = ("", "TOP", "FRONT", "SIDE_LEFT", "SIDE_RIGHT", "REAR")
_FULL_SIZE = ("waymo_v2_as_v1.tfrecord", "waymo_v2")


def matrix(compressed: bytes, kind: Any) -> np.ndarray:
    message = kind.FromString(zlib_ng.decompress(compressed))
    dtype = np.float32 if kind is MatrixFloat else np.int32
    return np.array(message.data, dtype).reshape(message.shape.dims)


def returns(record: Any) -> dict[tuple[str, int], Any]:
    """Return the messages of a record's returns that hold an image, by laser and number."""
    found = {}
    for laser in record.lasers:
        for number, message in ((1, laser.ri_return1), (2, laser.ri_return2)):
            if message.range_image_compressed:
                found[_LASERS[laser.name], number] = message
    return found


def check_equal(found: RangeImage, message: Any) -> None:
    np.testing.assert_array_equal(found.image, matrix(message.range_image_compressed, MatrixFloat))
    np.testing.assert_array_equal(found.projections, matrix(message.camera_projection_compressed, MatrixInt32))
    if message.segmentation_label_compressed:
        expected = matrix(message.segmentation_label_compressed, MatrixInt32)
        assert found.segmentation is not None
        np.testing.assert_array_equal(found.segmentation, expected * (found.image[..., :1] > 0))


@pytest.fixture(scope="module")
def record(real_data: Path) -> Any:
    """The record of the full-size pair."""
    with RecordFile(str(real_data / _FULL_SIZE[0])) as file:
        return dataset_pb2.Frame.FromString(next(file.read(slot) for slot in file.slots() if isinstance(slot, Slot)))


@pytest.mark.parametrize("source", _FULL_SIZE)
def test_range_images_are_the_records_bit_by_bit(real_data: Path, record: Any, source: str, tmp_path: Path) -> None:
    # Positions are rounded here; ranges are not.
    lake = build_files(str(tmp_path), list_sources([str(real_data / source)]), BuildConfig(max_quarantined=1.0)).lake
    found = read_range_images(lake, record.context.name, record.timestamp_micros)
    expected = returns(record)
    assert found.keys() == expected.keys()
    assert len(found) == 10
    for key, message in expected.items():
        check_equal(found[key], message)


@pytest.mark.parametrize("points", ["quantised", "lossless"])
def test_lasers_are_told_apart_and_both_returns(tmp_path: Path, points: PointMode) -> None:
    frame = make_frame(3)
    lake = build_frames(tmp_path, [frame], BuildConfig(points=points, max_quarantined=1.0)).lake
    found = read_range_images(lake, SEGMENT, frame.timestamp_micros)
    assert found
    for key, message in returns(frame).items():
        if (matrix(message.range_image_compressed, MatrixFloat)[..., 0] > 0).any():
            cells = matrix(message.range_image_compressed, MatrixFloat)
            there = cells[..., 0] > 0
            np.testing.assert_array_equal(found[key].image[..., :3][there], cells[..., :3][there])
            np.testing.assert_array_equal(found[key].image[..., 3] > 0, there & (cells[..., 3] > 0))
            assert (found[key].image[~there] == -1).all()
        else:
            assert key not in found


def test_a_frame_that_is_not_there_and_one_of_an_older_lake_are_told(tmp_path: Path) -> None:
    lake = build_frames(tmp_path, [make_frame()]).lake
    with pytest.raises(LakeError, match=f"no frame of {SEGMENT} at 17"):
        read_range_images(lake, SEGMENT, 17)
    path = lake.store.path(lake.commits[0].file_name("point"))
    pq.write_table(pq.read_table(path).drop_columns(["range_m"]), path)
    with pytest.raises(LakeError, match="built before the lake kept cells and ranges"):
        read_range_images(lake, SEGMENT, START_US)
