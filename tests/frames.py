"""Tiny Waymo frames made by hand: two cameras of 16x16 pixels, two lasers of 4x8 cells, a few labels.

Everything a test wants broken is a field of the returned message: change it there, then `write_frames`.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datalake.sources.waymo_v1.protos import dataset_pb2
from datalake.sources.waymo_v1.tfrecord import write_records

SEGMENT = "segment_a"
START_US = 1_553_735_853_462_203
STEP_US = 100_000
FRONT, FRONT_LEFT, FRONT_RIGHT, SIDE_LEFT, SIDE_RIGHT = range(1, 6)
TOP, FRONT_LASER = 1, 2
ROWS, COLUMNS = 4, 8
WIDTH, HEIGHT = 16, 16
# Real poses have map coordinates like these, at which a float32 is off by millimetres.
MAP_ORIGIN_M = (22_531.75, -13_044.5, 41.25)


def rotation(roll: float, pitch: float, yaw: float) -> NDArray[np.float64]:
    """Return Rz(yaw) · Ry(pitch) · Rx(roll)."""
    (cx, cy, cz), (sx, sy, sz) = np.cos([roll, pitch, yaw]), np.sin([roll, pitch, yaw])
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def transform(
    roll: float = 0, pitch: float = 0, yaw: float = 0, at: Sequence[float] = (0, 0, 0)
) -> NDArray[np.float64]:
    """Return a rigid transform [4, 4]."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation(roll, pitch, yaw)
    matrix[:3, 3] = at
    return matrix


def jpeg(width: int = WIDTH, height: int = HEIGHT, shade: int = 90) -> bytes:
    """Return a gray JPEG."""
    stream = io.BytesIO()
    Image.new("RGB", (width, height), (shade, shade, shade)).save(stream, "JPEG")
    return stream.getvalue()


def panoptic_png(code: NDArray[Any]) -> bytes:
    """Return `code`, uint16 [H, W] for a valid panoptic label, as PNG."""
    stream = io.BytesIO()
    Image.fromarray(code).save(stream, "PNG")
    return stream.getvalue()


def float_matrix(values: NDArray[Any]) -> bytes:
    """Return `values` as the official compressed `MatrixFloat`."""
    return _compressed(dataset_pb2.MatrixFloat(), values)


def int_matrix(values: NDArray[Any]) -> bytes:
    """Return `values` as the official compressed `MatrixInt32`."""
    return _compressed(dataset_pb2.MatrixInt32(), values)


def _compressed(message: Any, values: NDArray[Any]) -> bytes:
    message.data.extend(values.ravel().tolist())
    message.shape.dims.extend(values.shape)
    return zlib.compress(message.SerializeToString())


def make_frame(index: int = 0, segment: str = SEGMENT, lidar: bool = True) -> Any:
    """Return the `index`-th frame of a segment as a `dataset_pb2.Frame`; equal arguments give equal frames."""
    random = np.random.default_rng(index)
    frame = dataset_pb2.Frame()
    frame.context.name = segment
    frame.timestamp_micros = START_US + index * STEP_US
    frame.context.stats.location = "location_sf"
    frame.context.stats.time_of_day = "Day"
    frame.context.stats.weather = "sunny"
    pose = transform(0.01, -0.02, 0.7 + 0.01 * index, np.add(MAP_ORIGIN_M, [1.5 * index, 0.5 * index, 0]).tolist())
    frame.pose.transform.extend(pose.ravel())

    _add_camera(frame, FRONT, transform(at=(1.5, 0.0, 2.1)), pose, 90 + index)
    _add_camera(frame, SIDE_LEFT, transform(yaw=np.pi / 2, at=(1.4, 0.1, 2.1)), pose, 30 + index)
    if lidar:
        _add_laser(frame, TOP, transform(0.01, 0.02, 2.6, at=(1.43, 0.0, 2.18)), random)
        poses = np.tile([0.011, -0.019, 0.701 + 0.01 * index, *pose[:3, 3]], (ROWS, COLUMNS, 1))
        poses += random.normal(0, 0.01, poses.shape)
        top = frame.lasers[0].ri_return1
        top.range_image_pose_compressed = float_matrix(poses.astype(np.float32))
        frame.context.laser_calibrations[0].beam_inclinations.extend([-0.3, -0.15, -0.05, 0.04])
        _add_laser(frame, FRONT_LASER, transform(0.0, 0.03, 0.1, at=(4.07, 0.0, 0.69)), random)

    group = frame.camera_labels.add(name=FRONT)
    for number, box in enumerate([(8.0, 8.0, 16.0, 16.0), (2.0, 2.0, 0.5, 0.5)]):
        label = group.labels.add(id=f"box-{number}", type=1 + number, detection_difficulty_level=number)
        label.box.center_x, label.box.center_y, label.box.length, label.box.width = box
    solid = frame.laser_labels.add(id="solid-0", type=4, num_lidar_points_in_box=3)
    solid.box.center_x, solid.box.center_y, solid.box.center_z = 10.0, 2.0, 1.0
    solid.box.length, solid.box.width, solid.box.height, solid.box.heading = 1.8, 0.6, 1.7, 0.3
    solid.metadata.speed_x, solid.metadata.speed_y = 4.0, -1.0
    return frame


def _add_camera(
    frame: Any, name: int, camera_to_vehicle: NDArray[np.float64], vehicle_to_world: NDArray[np.float64], shade: int
) -> None:
    calibration = frame.context.camera_calibrations.add(name=name, width=WIDTH, height=HEIGHT)
    calibration.intrinsic.extend([20.0, 20.0, 8.0, 8.0, 0.01, -0.01, 0.0, 0.0, 0.0])
    calibration.extrinsic.transform.extend(camera_to_vehicle.ravel())
    image = frame.images.add(name=name, image=jpeg(shade=shade))
    image.pose.transform.extend((vehicle_to_world @ transform(at=(0.4, 0, 0))).ravel())


def _add_laser(frame: Any, name: int, laser_to_vehicle: NDArray[np.float64], random: np.random.Generator) -> None:
    calibration = frame.context.laser_calibrations.add(name=name)
    calibration.beam_inclination_min, calibration.beam_inclination_max = -0.6, 0.3
    calibration.extrinsic.transform.extend(laser_to_vehicle.ravel())
    laser = frame.lasers.add(name=name)
    for message, share in ((laser.ri_return1, 0.8), (laser.ri_return2, 0.3)):
        message.range_image_compressed = float_matrix(make_range_image(random, share))
        message.camera_projection_compressed = int_matrix(make_projections(random))


def make_range_image(random: np.random.Generator, share: float) -> NDArray[np.float32]:
    """Return float32 [ROWS, COLUMNS, 4] in which about `share` of the cells hold a return, the first one surely."""
    image = np.full((ROWS, COLUMNS, 4), -1, np.float32)
    hit = random.random((ROWS, COLUMNS)) < share
    hit[0, 0] = True
    image[hit, 0] = random.uniform(2, 70, hit.sum())
    image[hit, 1:3] = random.random((hit.sum(), 2))
    image[hit, 3] = np.where(random.random(hit.sum()) < 0.2, 1, -1)
    return image


def make_projections(random: np.random.Generator) -> NDArray[np.int32]:
    """Return int32 [ROWS, COLUMNS, 6]: most cells in FRONT, some of them or others in SIDE_LEFT as well."""
    stored = np.zeros((ROWS, COLUMNS, 6), np.int32)
    for slot, (camera, share) in enumerate(((FRONT, 0.7), (SIDE_LEFT, 0.3))):
        named = random.random((ROWS, COLUMNS)) < share
        stored[named, 3 * slot] = camera
        stored[named, 3 * slot + 1 : 3 * slot + 3] = random.integers(0, WIDTH, (named.sum(), 2))
    return stored


def read_float_matrix(compressed: bytes) -> NDArray[np.float32]:
    """Return a compressed `MatrixFloat` by way of the official message, to change it and put it back."""
    message = dataset_pb2.MatrixFloat.FromString(zlib.decompress(compressed))
    return np.array(message.data, np.float32).reshape(message.shape.dims)


def read_int_matrix(compressed: bytes) -> NDArray[np.int32]:
    """Return a compressed `MatrixInt32` by way of the official message, to change it and put it back."""
    message = dataset_pb2.MatrixInt32.FromString(zlib.decompress(compressed))
    return np.array(message.data, np.int32).reshape(message.shape.dims)


def make_frames(count: int, segment: str = SEGMENT) -> list[Any]:
    """Return the first `count` frames of a segment."""
    return [make_frame(index, segment) for index in range(count)]


def write_frames(path: Path, frames: Iterable[Any]) -> str:
    """Write the frames as one TFRecord file; return its URL."""
    url = path.absolute().as_uri()
    write_records(url, (frame.SerializeToString() for frame in frames))
    return url
