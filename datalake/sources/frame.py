"""What a frame holds, whatever source it comes from, as plain numpy values.

Frames of reference. Vehicle: x forward, y left, z up, metres, origin on the ground. Camera: x forward along the
optical axis, y left, z up. World: the segment's global frame. `a_to_b` maps coordinates in a to coordinates in b.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Positions are the official enum numbers (`CameraName`, `LaserName`, `Label.Type` in dataset.proto, label.proto).
CAMERAS = (None, "FRONT", "FRONT_LEFT", "FRONT_RIGHT", "SIDE_LEFT", "SIDE_RIGHT")
LASERS = (None, "TOP", "FRONT", "SIDE_LEFT", "SIDE_RIGHT", "REAR")
OBJECT_TYPES = (None, "VEHICLE", "PEDESTRIAN", "SIGN", "CYCLIST")
ALL_CAMERAS = tuple(camera for camera in CAMERAS if camera)


def camera_named(number: int) -> str | None:
    """Return the camera with this number in `CAMERAS`, None where there is none."""
    return CAMERAS[number] if 0 < number < len(CAMERAS) else None


class FrameError(ValueError):
    """What a source holds of a frame cannot become one, or a part of it cannot."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A part of a frame that could not be kept, and why; the rest of the frame goes on.

    stage: where it was found: `record`, `frame`, `image`, `lidar`, `label`
    component: the component of Waymo 2.x that has this part; a record of 1.x has the parts of all
    source: the file that it was found in, where a frame comes from several
    """

    stage: str
    error_type: str
    message: str
    component: str | None = None
    source: str | None = None


@dataclass(frozen=True, slots=True)
class CameraCalibration:
    """How one camera looks at the scene.

    width, height: of its images, in pixels
    intrinsic: float64 [9] (f_u, f_v, c_u, c_v, k1, k2, p1, p2, k3) in pixels, or None where it is missing or not finite
    camera_to_vehicle: float64 [4, 4], or None likewise
    rolling_shutter_direction: number of the official enum `RollingShutterReadOutDirection`, or None
    """

    camera: str
    width: int
    height: int
    intrinsic: NDArray[np.float64] | None
    camera_to_vehicle: NDArray[np.float64] | None
    rolling_shutter_direction: int | None = None


@dataclass(frozen=True, slots=True)
class LaserCalibration:
    """How one laser is mounted, and where its beams go.

    laser_to_vehicle: float64 [4, 4], or None where it is missing or not finite
    inclination_rad: float64 [H], of each beam, ascending; empty where beams are uniform between lowest and highest
    """

    laser: str
    laser_to_vehicle: NDArray[np.float64] | None
    inclination_rad: NDArray[np.float64]
    lowest_rad: float | None
    highest_rad: float | None


@dataclass(frozen=True, slots=True)
class Exposure:
    """When an image was taken, and how fast the vehicle then was; None where the source does not say.

    pose_time_s, trigger_time_s, readout_done_time_s: seconds since 1970, of the image's pose, of the trigger, and of
    the end of the readout
    shutter_s: how long the shutter was open
    velocity: float64 [6], v_x, v_y, v_z in m/s and w_x, w_y, w_z in rad/s
    """

    pose_time_s: float | None = None
    trigger_time_s: float | None = None
    readout_done_time_s: float | None = None
    shutter_s: float | None = None
    velocity: NDArray[np.float64] | None = None


@dataclass(frozen=True, slots=True)
class CameraImage:
    """One camera's image, with its calibration where the record has a usable one.

    jpeg: the record's own bytes
    intrinsic: float64 [9] (f_u, f_v, c_u, c_v, k1, k2, p1, p2, k3) in pixels, or None
    camera_to_vehicle: float64 [4, 4] or None
    vehicle_to_world: float64 [4, 4] at this camera's exposure, 20 to 70 ms after the frame, or None
    panoptic: uint16 PNG of class * panoptic_divisor + instance, or None
    """

    camera: str
    jpeg: bytes
    width: int
    height: int
    intrinsic: NDArray[np.float64] | None
    camera_to_vehicle: NDArray[np.float64] | None
    vehicle_to_world: NDArray[np.float64] | None
    panoptic: bytes | None
    panoptic_divisor: int | None
    exposure: Exposure = Exposure()


@dataclass(frozen=True, slots=True)
class Points:
    """N lidar returns, lasers in the order of `LASERS`, return 1 before 2, in range-image order within each.

    xyz_m: float32 [3, N], vehicle frame at the frame's time, ego motion compensated
    intensity, elongation: float32 [N], the sensor's own units
    laser: int8 [N], index into `LASERS`
    return_index: int8 [N], 1 or 2
    no_label_zone: bool [N]
    camera: int8 [2, N], index into `CAMERAS` of the two stored projections, 0 = none
    u, v: int16 [2, N], pixels, 0 where there is no projection
    semantic_class: int8 [N] (official `Segmentation.Type`; 0 = undefined), or None where nothing is labelled
    instance_id: int32 [N], or None where nothing is labelled
    range_row, range_column: int16 [N], the cell of the laser's range image, or None where there is none
    range_m: float32 [N], the range in that cell, or None likewise
    image_shapes: rows and columns of each laser's range images
    """

    xyz_m: NDArray[np.float32]
    intensity: NDArray[np.float32]
    elongation: NDArray[np.float32]
    laser: NDArray[np.int8]
    return_index: NDArray[np.int8]
    no_label_zone: NDArray[np.bool_]
    camera: NDArray[np.int8]
    u: NDArray[np.int16]
    v: NDArray[np.int16]
    semantic_class: NDArray[np.int8] | None
    instance_id: NDArray[np.int32] | None
    range_row: NDArray[np.int16] | None = None
    range_column: NDArray[np.int16] | None = None
    range_m: NDArray[np.float32] | None = None
    image_shapes: dict[str, tuple[int, int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.xyz_m.shape[1]

    @staticmethod
    def empty() -> Points:
        """Return no points: what a frame without lidar has."""
        return Points(
            xyz_m=np.zeros((3, 0), np.float32),
            intensity=np.zeros(0, np.float32),
            elongation=np.zeros(0, np.float32),
            laser=np.zeros(0, np.int8),
            return_index=np.zeros(0, np.int8),
            no_label_zone=np.zeros(0, np.bool_),
            camera=np.zeros((2, 0), np.int8),
            u=np.zeros((2, 0), np.int16),
            v=np.zeros((2, 0), np.int16),
            semantic_class=None,
            instance_id=None,
        )

    @staticmethod
    def concatenate(parts: list[Points]) -> Points:
        """Return all points in order; where only some parts are labelled, the others are class and instance 0."""
        if not parts:
            return Points.empty()
        labelled = any(part.semantic_class is not None for part in parts)
        columns: dict[str, Any] = {}
        for column in fields(Points):
            values = [getattr(part, column.name) for part in parts]
            if column.name == "image_shapes":
                columns[column.name] = {laser: shape for shapes in values for laser, shape in shapes.items()}
            elif column.name in ("semantic_class", "instance_id"):
                dtype = np.int8 if column.name == "semantic_class" else np.int32
                values = [
                    np.zeros(len(part), dtype) if value is None else value
                    for part, value in zip(parts, values, strict=True)
                ]
                columns[column.name] = np.concatenate(values) if labelled else None
            elif all(value is not None for value in values):
                columns[column.name] = np.concatenate(values, axis=-1)
        return Points(**columns)


@dataclass(frozen=True, slots=True)
class Label2D:
    """An object's box in one camera's image: x0, y0, x1, y1 in pixels, x along the image's width.

    It is clipped to the image: what lies beyond is a guess of whoever labelled it.
    """

    camera: str
    object_id: str
    type: str
    x0: float
    y0: float
    x1: float
    y1: float
    difficulty: int
    tracking_difficulty: int | None = None
    lidar_object_id: str | None = None


@dataclass(frozen=True, slots=True)
class Label3D:
    """An object's box in the vehicle frame, in metres and radians; heading turns about z, 0 along x.

    camera_synced_box: center x, y, z, length, width, height, heading at the exposure of the most visible camera
    """

    object_id: str
    type: str
    center_x_m: float
    center_y_m: float
    center_z_m: float
    length_m: float
    width_m: float
    height_m: float
    heading_rad: float
    speed_x_mps: float
    speed_y_mps: float
    lidar_points: int
    difficulty: int
    tracking_difficulty: int | None = None
    top_lidar_points: int | None = None
    speed_z_mps: float | None = None
    acceleration_x_mps2: float | None = None
    acceleration_y_mps2: float | None = None
    acceleration_z_mps2: float | None = None
    most_visible_camera: str | None = None
    camera_synced_box: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class ProjectedLabel:
    """The box in one camera's image around a projected 3D label, in pixels, as its source has it."""

    camera: str
    lidar_object_id: str
    type: str
    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True, slots=True)
class Keypoint:
    """One keypoint of a person: in an image, in the vehicle frame in metres, or both.

    camera: of the 2D label that it belongs to; None where it belongs to a 3D label
    keypoint: number of the official enum `KeypointType`
    """

    camera: str | None
    object_id: str
    keypoint: int
    u_px: float | None = None
    v_px: float | None = None
    occluded_2d: bool | None = None
    x_m: float | None = None
    y_m: float | None = None
    z_m: float | None = None
    occluded_3d: bool | None = None


@dataclass(frozen=True, slots=True)
class MapFeature:
    """A part of the map, as in the lake's table `map`: xyz_m float64 [3, n]."""

    feature_id: int
    kind: str
    xyz_m: NDArray[np.float64]
    message: bytes


@dataclass(frozen=True, slots=True)
class Frame:
    """One moment of a segment.

    faults: every part of the source that is not in the other fields, as far as the lake has a place for it
    vehicle_to_world: float64 [4, 4] at the frame's time, or None
    camera_calibrations, laser_calibrations: of all sensors that the source knows
    """

    segment: str
    timestamp_us: int
    location: str | None
    time_of_day: str | None
    weather: str | None
    images: tuple[CameraImage, ...]
    points: Points
    labels_2d: tuple[Label2D, ...]
    labels_3d: tuple[Label3D, ...]
    faults: tuple[Fault, ...]
    vehicle_to_world: NDArray[np.float64] | None = None
    camera_calibrations: tuple[CameraCalibration, ...] = ()
    laser_calibrations: tuple[LaserCalibration, ...] = ()
    projected_labels: tuple[ProjectedLabel, ...] = ()
    keypoints: tuple[Keypoint, ...] = ()
    map_features: tuple[MapFeature, ...] = ()
