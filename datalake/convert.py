"""One frame to its rows in every table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datalake.schema import DEPTH, IMAGE, KEYPOINT, LABEL, LABEL_3D, POINT, PROJECTED_LABEL, QUANTUM_PER_M, PointMode
from datalake.sources.frame import ALL_CAMERAS, Frame, Label2D, Points


@dataclass(frozen=True, slots=True)
class CameraPoints:
    """The n returns that the record projects into one camera.

    point: int32 [n], ascending indices into the frame's points
    u, v: int16 [n], pixels
    depth_m: float32 [n], distance from the camera's center
    """

    point: NDArray[np.int32]
    u: NDArray[np.int16]
    v: NDArray[np.int16]
    depth_m: NDArray[np.float32]


def frame_rows(frame: Frame, mode: PointMode, cameras: Sequence[str] = ALL_CAMERAS) -> dict[str, pa.RecordBatch]:
    """Return the frame's rows by table name; depths are taken from the positions before any rounding.

    cameras: all that the frame's source knows
    """
    by_camera = {
        image.camera: camera_points(frame.points, image.camera, image.camera_to_vehicle, cameras)
        for image in frame.images
        if image.camera_to_vehicle is not None
    }
    return {
        "image": _image_rows(frame),
        "point": _point_row(frame, mode),
        "label": _label_rows(frame, by_camera),
        "label_3d": _value_rows(LABEL_3D, frame, frame.labels_3d),
        "depth": _depth_rows(frame, by_camera),
        "projected_label": _value_rows(PROJECTED_LABEL, frame, frame.projected_labels),
        "keypoint": _value_rows(KEYPOINT, frame, frame.keypoints),
    }


def calibration_rows(frame: Frame) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the rows of `calibration` that the frame's source has, by kind and sensor."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for camera in frame.camera_calibrations:
        rows["camera", camera.camera] = {
            "sensor_to_vehicle": _flat(camera.camera_to_vehicle),
            "width": camera.width,
            "height": camera.height,
            "intrinsic": _flat(camera.intrinsic),
            "rolling_shutter_direction": camera.rolling_shutter_direction,
        }
    for laser in frame.laser_calibrations:
        height, width = frame.points.image_shapes.get(laser.laser, (None, None))
        rows["laser", laser.laser] = {
            "sensor_to_vehicle": _flat(laser.laser_to_vehicle),
            "width": width,
            "height": height,
            "inclination_rad": laser.inclination_rad.tolist(),
            "lowest_inclination_rad": laser.lowest_rad,
            "highest_inclination_rad": laser.highest_rad,
        }
    keys = {(kind, sensor): {"segment": frame.segment, "kind": kind, "sensor": sensor} for kind, sensor in rows}
    return {key: keys[key] | row for key, row in rows.items()}


def map_rows(frame: Frame) -> list[dict[str, Any]]:
    """Return the rows of `map` that the frame has."""
    return [
        {
            "segment": frame.segment,
            "feature_id": feature.feature_id,
            "kind": feature.kind,
            **dict(zip(("x_m", "y_m", "z_m"), feature.xyz_m.tolist(), strict=True)),
            "message": feature.message,
        }
        for feature in frame.map_features
    ]


def camera_points(
    points: Points, camera: str, camera_to_vehicle: NDArray[np.float64], cameras: Sequence[str] = ALL_CAMERAS
) -> CameraPoints:
    """Return the points seen by `camera`, in either of their two projection slots, with their depth.

    Depth is the Euclidean distance from the camera's center in metres, both returns: it equals the official
    depth image (`third_party/camera/ops`, `range_image_utils.build_camera_depth_image`) within 1e-5 m.
    """
    number = cameras.index(camera) + 1
    first = points.camera[0] == number
    index = np.flatnonzero(first | (points.camera[1] == number))
    slot = np.where(first[index], 0, 1)
    center = camera_to_vehicle[:3, 3:].astype(np.float32)
    away = points.xyz_m[:, index] - center
    return CameraPoints(
        point=index.astype(np.int32),
        u=points.u[slot, index],
        v=points.v[slot, index],
        depth_m=np.sqrt(np.einsum("ij,ij->j", away, away)),
    )


def label_depth(label: Label2D, seen: CameraPoints) -> tuple[float | None, float | None, int]:
    """Return (mean depth in metres, median, number of points) inside a 2D box, bounds inclusive."""
    inside = (seen.u >= label.x0) & (seen.u <= label.x1) & (seen.v >= label.y0) & (seen.v <= label.y1)
    depth_m = seen.depth_m[inside]
    if len(depth_m) == 0:
        return None, None, 0
    return float(depth_m.mean(dtype=np.float64)), float(np.median(depth_m)), len(depth_m)


def _image_rows(frame: Frame) -> pa.RecordBatch:
    images = frame.images
    return _batch(
        IMAGE,
        frame,
        [
            [image.camera for image in images],
            [image.jpeg for image in images],
            [image.width for image in images],
            [image.height for image in images],
            [_flat(image.intrinsic) for image in images],
            [_flat(image.camera_to_vehicle) for image in images],
            [_flat(image.vehicle_to_world) for image in images],
            [frame.location] * len(images),
            [frame.time_of_day] * len(images),
            [frame.weather] * len(images),
            [image.panoptic for image in images],
            [image.panoptic_divisor for image in images],
            [_flat(image.exposure.velocity) for image in images],
            [image.exposure.pose_time_s for image in images],
            [image.exposure.trigger_time_s for image in images],
            [image.exposure.readout_done_time_s for image in images],
            [image.exposure.shutter_s for image in images],
        ],
    )


def _flat(matrix: NDArray[np.float64] | None) -> list[float] | None:
    return None if matrix is None else matrix.ravel().tolist()


def _point_row(frame: Frame, mode: PointMode) -> pa.RecordBatch:
    points = frame.points
    xyz_m = points.xyz_m
    if mode == "quantised":
        xyz_m = np.rint(xyz_m * np.float32(QUANTUM_PER_M))
        xyz_m *= np.float32(1 / QUANTUM_PER_M)
        xyz_m += np.float32(0)  # -0.0 becomes 0.0
    columns = [
        *xyz_m,
        points.intensity,
        points.elongation,
        points.laser,
        points.return_index,
        points.no_label_zone,
        *(column[slot] for slot in (0, 1) for column in (points.camera, points.u, points.v)),
        points.semantic_class,
        points.instance_id,
        points.range_row,
        points.range_column,
        None if frame.vehicle_to_world is None else frame.vehicle_to_world.ravel(),
        points.range_m,
    ]
    return _batch(POINT, frame, [_one_list(values) for values in columns], rows=1)


def _one_list(values: NDArray[Any] | None) -> pa.ListArray | list[None]:
    """Return one row that holds `values` as a list, or one null."""
    return [None] if values is None else _lists([values])


def _lists(rows: Sequence[NDArray[Any]]) -> pa.ListArray:
    """Return one row per array, without a Python object per value."""
    offsets = np.cumsum([0, *(len(row) for row in rows)], dtype=np.int32)
    values = pa.array(rows[0] if len(rows) == 1 else np.concatenate(rows))
    return pa.ListArray.from_arrays(
        pa.array(offsets), values, type=pa.list_(pa.field("element", values.type, nullable=False))
    )


def _label_rows(frame: Frame, by_camera: dict[str, CameraPoints]) -> pa.RecordBatch:
    labels = frame.labels_2d
    depths = [
        label_depth(label, by_camera[label.camera]) if label.camera in by_camera else (None, None, 0)
        for label in labels
    ]
    names = ("camera", "object_id", "type", "x0", "y0", "x1", "y1", "difficulty")
    return _batch(
        LABEL,
        frame,
        [[getattr(label, name) for label in labels] for name in names]
        + [[depth[part] for depth in depths] for part in range(3)]
        + [[getattr(label, name) for label in labels] for name in ("tracking_difficulty", "lidar_object_id")],
    )


def _value_rows(schema: pa.Schema, frame: Frame, values: Sequence[Any]) -> pa.RecordBatch:
    """Return a row a value, whose fields are called like the columns behind the keys."""
    return _batch(schema, frame, [[getattr(value, name) for value in values] for name in schema.names[2:]])


def _depth_rows(frame: Frame, by_camera: dict[str, CameraPoints]) -> pa.RecordBatch:
    nothing = CameraPoints(np.zeros(0, np.int32), np.zeros(0, np.int16), np.zeros(0, np.int16), np.zeros(0, np.float32))
    seen = [by_camera.get(image.camera, nothing) for image in frame.images]
    lists: list[Any] = [[], [], [], []]
    if seen:
        lists = [_lists([getattr(row, name) for row in seen]) for name in ("u", "v", "depth_m", "point")]
    return _batch(DEPTH, frame, [[image.camera for image in frame.images], *lists])


def _batch(schema: pa.Schema, frame: Frame, columns: list[Any], rows: int | None = None) -> pa.RecordBatch:
    """Return a batch of `schema` from the columns behind its two keys."""
    count = len(columns[0]) if rows is None else rows
    keys = [[frame.segment] * count, [frame.timestamp_us] * count]
    arrays = [
        column if isinstance(column, pa.Array) else pa.array(column, field.type)
        for column, field in zip([*keys, *columns], schema, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
