"""The Arrow schema of every table of the lake: the single source of truth.

Units are in the names (`_m`, `_px`, `_us`, `_rad`, `_mps`). Keys: `segment`, `timestamp_us`, and `camera` where a
row belongs to one. Row group g of `image`, `point`, `label`, `label_3d` and `depth` in one segment holds the same
few frames, so that the five can be read together without an index; `depth` has one row for each row of `image`.
"""

from __future__ import annotations

from typing import Literal, get_args

import pyarrow as pa

SCHEMA_VERSION = 1

# How positions are stored. `quantised` rounds x, y, z to 1/256 m (error at most 1.96 mm): the values stay plain
# float32 metres for every reader, and their empty low bits compress to about 27 bits a point.
PointMode = Literal["quantised", "lossless"]
POINT_MODES: tuple[str, ...] = get_args(PointMode)
QUANTUM_PER_M = 256

_SEGMENT = pa.field("segment", pa.string(), nullable=False)
_TIMESTAMP = pa.field("timestamp_us", pa.int64(), nullable=False)
_CAMERA = pa.field("camera", pa.string(), nullable=False)


def _list(value: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", value, nullable=False))


def _required(name: str, value: pa.DataType) -> pa.Field:
    return pa.field(name, value, nullable=False)


IMAGE = pa.schema(
    [
        _SEGMENT,
        _TIMESTAMP,
        _CAMERA,
        _required("jpeg", pa.binary()),  # the bytes of the record, never re-encoded
        _required("width", pa.int32()),
        _required("height", pa.int32()),
        pa.field("intrinsic", _list(pa.float64())),  # f_u, f_v, c_u, c_v, k1, k2, p1, p2, k3
        pa.field("camera_to_vehicle", _list(pa.float64())),  # 4 x 4, row-major
        pa.field("vehicle_to_world", _list(pa.float64())),  # 4 x 4, row-major, at this image's exposure
        pa.field("location", pa.string()),
        pa.field("time_of_day", pa.string()),
        pa.field("weather", pa.string()),
        pa.field("panoptic", pa.binary()),  # uint16 PNG: class * panoptic_divisor + instance
        pa.field("panoptic_divisor", pa.int32()),
        # Of the vehicle at the time of the pose, in the world: v_x, v_y, v_z in m/s, w_x, w_y, w_z in rad/s.
        pa.field("velocity", _list(pa.float64())),
        # Seconds since 1970: of the pose; when the camera was triggered; when its last row was read.
        pa.field("pose_time_s", pa.float64()),
        pa.field("trigger_time_s", pa.float64()),
        pa.field("readout_done_time_s", pa.float64()),
        pa.field("shutter_s", pa.float64()),  # how long the shutter was open
    ]
)

POINT = pa.schema(
    [
        _SEGMENT,
        _TIMESTAMP,
        # Vehicle frame at the frame's time, ego motion compensated.
        _required("x_m", _list(pa.float32())),
        _required("y_m", _list(pa.float32())),
        _required("z_m", _list(pa.float32())),
        _required("intensity", _list(pa.float32())),
        _required("elongation", _list(pa.float32())),
        _required("laser", _list(pa.int8())),  # 1 TOP, 2 FRONT, 3 SIDE_LEFT, 4 SIDE_RIGHT, 5 REAR
        _required("return_index", _list(pa.int8())),  # 1, 2
        _required("no_label_zone", _list(pa.bool_())),
        # The record's own projections: 1 FRONT, 2 FRONT_LEFT, 3 FRONT_RIGHT, 4 SIDE_LEFT, 5 SIDE_RIGHT, 0 none.
        _required("camera_1", _list(pa.int8())),
        _required("u_1", _list(pa.int16())),
        _required("v_1", _list(pa.int16())),
        _required("camera_2", _list(pa.int8())),
        _required("u_2", _list(pa.int16())),
        _required("v_2", _list(pa.int16())),
        pa.field("semantic_class", _list(pa.int8())),
        pa.field("instance_id", _list(pa.int32())),
        # The cell of the laser's range image.
        pa.field("range_row", _list(pa.int16())),
        pa.field("range_column", _list(pa.int16())),
        pa.field("vehicle_to_world", _list(pa.float64())),  # 4 x 4, row-major, at the frame's time
        # In that cell, to the last bit; positions of TOP are moved by poses that are not kept.
        pa.field("range_m", _list(pa.float32())),
    ]
)

LABEL = pa.schema(
    [
        _SEGMENT,
        _TIMESTAMP,
        _CAMERA,
        _required("object_id", pa.string()),
        _required("type", pa.string()),  # VEHICLE, PEDESTRIAN, SIGN, CYCLIST
        # Pixels, clipped to the image; bounds are inclusive where points are counted.
        _required("x0", pa.float32()),
        _required("y0", pa.float32()),
        _required("x1", pa.float32()),
        _required("y1", pa.float32()),
        _required("difficulty", pa.int8()),  # 0 not given, 1, 2
        # Distance from the camera's center over all returns whose projection lies in the box.
        pa.field("depth_m", pa.float32()),
        pa.field("depth_median_m", pa.float32()),
        _required("depth_points", pa.int32()),
        pa.field("tracking_difficulty", pa.int8()),  # 0 unknown, 1, 2
        pa.field("lidar_object_id", pa.string()),  # the same object in label_3d
    ]
)

LABEL_3D = pa.schema(
    [
        _SEGMENT,
        _TIMESTAMP,
        _required("object_id", pa.string()),
        _required("type", pa.string()),
        _required("center_x_m", pa.float64()),
        _required("center_y_m", pa.float64()),
        _required("center_z_m", pa.float64()),
        _required("length_m", pa.float64()),
        _required("width_m", pa.float64()),
        _required("height_m", pa.float64()),
        _required("heading_rad", pa.float64()),
        _required("speed_x_mps", pa.float64()),
        _required("speed_y_mps", pa.float64()),
        _required("lidar_points", pa.int32()),
        _required("difficulty", pa.int8()),
        pa.field("tracking_difficulty", pa.int8()),
        pa.field("top_lidar_points", pa.int32()),
        pa.field("speed_z_mps", pa.float64()),
        pa.field("acceleration_x_mps2", pa.float64()),
        pa.field("acceleration_y_mps2", pa.float64()),
        pa.field("acceleration_z_mps2", pa.float64()),
        pa.field("most_visible_camera", pa.string()),
        # The box as that camera sees it, moved to the time of its exposure: center, length, width, height, heading.
        pa.field("camera_synced_box", _list(pa.float64())),
    ]
)

DEPTH = pa.schema(
    [
        _SEGMENT,
        _TIMESTAMP,
        _CAMERA,
        _required("u", _list(pa.int16())),  # pixels
        _required("v", _list(pa.int16())),
        _required("depth_m", _list(pa.float32())),  # distance from the camera's center
        _required("point", _list(pa.int32())),  # index into the frame's point row
    ]
)

# Boxes around the projection of 3D labels, as the source has them: not clipped to the image.
PROJECTED_LABEL = pa.schema(
    [
        _SEGMENT,
        _TIMESTAMP,
        _CAMERA,
        _required("lidar_object_id", pa.string()),  # `object_id` of label_3d
        _required("type", pa.string()),
        _required("x0", pa.float64()),  # pixels
        _required("y0", pa.float64()),
        _required("x1", pa.float64()),
        _required("y1", pa.float64()),
    ]
)

KEYPOINT = pa.schema(
    [
        _SEGMENT,
        _TIMESTAMP,
        pa.field("camera", pa.string()),  # null: a keypoint of an object in label_3d
        _required("object_id", pa.string()),
        _required("keypoint", pa.int8()),  # the official enum `KeypointType`
        pa.field("u_px", pa.float64()),
        pa.field("v_px", pa.float64()),
        pa.field("occluded_2d", pa.bool_()),
        pa.field("x_m", pa.float64()),  # in the vehicle frame
        pa.field("y_m", pa.float64()),
        pa.field("z_m", pa.float64()),
        pa.field("occluded_3d", pa.bool_()),
    ]
)

# The map around a segment; records of 1.x have it in one frame.
MAP = pa.schema(
    [
        _SEGMENT,
        _required("feature_id", pa.int64()),
        _required("kind", pa.string()),  # lane, road_line, road_edge, stop_sign, crosswalk, speed_bump, driveway
        # World frame, with the frame's map_pose_offset not added.
        _required("x_m", _list(pa.float64())),
        _required("y_m", _list(pa.float64())),
        _required("z_m", _list(pa.float64())),
        _required("message", pa.binary()),  # the official `MapFeature`, serialized: types, neighbors, speed limits
    ]
)

QUARANTINE = pa.schema(
    [
        _SEGMENT,  # the segment that the record belongs to or, where it cannot be read, its neighbor in the file
        _required("source", pa.string()),
        _required("record_index", pa.int64()),
        _required("byte_offset", pa.int64()),
        _required("byte_length", pa.int64()),
        pa.field("timestamp_us", pa.int64()),
        _required("scope", pa.string()),  # `record`: nothing of it is in the lake; `part`: the rest is
        _required("stage", pa.string()),
        _required("error_type", pa.string()),
        _required("message", pa.string()),
    ]
)

CALIBRATION = pa.schema(
    [
        _SEGMENT,
        _required("kind", pa.string()),  # `camera`, `laser`
        _required("sensor", pa.string()),
        pa.field("sensor_to_vehicle", _list(pa.float64())),  # 4 x 4, row-major
        # In pixels, or of a laser in columns and rows of its range images.
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("intrinsic", _list(pa.float64())),  # as in `image`
        pa.field("rolling_shutter_direction", pa.int8()),  # the official enum
        # Of each beam, ascending; empty where beams are uniform between the lowest and the highest.
        pa.field("inclination_rad", _list(pa.float64())),
        pa.field("lowest_inclination_rad", pa.float64()),
        pa.field("highest_inclination_rad", pa.float64()),
    ]
)

TABLES: dict[str, pa.Schema] = {
    "image": IMAGE,
    "point": POINT,
    "label": LABEL,
    "label_3d": LABEL_3D,
    "depth": DEPTH,
    "quarantine": QUARANTINE,
    "calibration": CALIBRATION,
    "projected_label": PROJECTED_LABEL,
    "keypoint": KEYPOINT,
    "map": MAP,
}

# What every commit has; tables and columns that came later are missing from commits of before.
FIRST_TABLES = frozenset(TABLES) - {"calibration", "projected_label", "keypoint", "map"}
# One row group a segment, not one for a few frames.
SEGMENT_TABLES = ("quarantine", "calibration", "map")
