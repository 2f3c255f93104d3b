"""The rows of one frame to a `Frame`: parse what is there, name what is not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from datalake.sources.frame import (
    CAMERAS,
    CameraCalibration,
    CameraImage,
    Exposure,
    Fault,
    Frame,
    FrameError,
    Label2D,
    Label3D,
    LaserCalibration,
    camera_named,
)
from datalake.sources.image import check_image, image_sizes, projected_inside
from datalake.sources.label import check_label_2d, check_label_3d, synced_box
from datalake.sources.waymo_v2.component import EXPOSURE, VELOCITY
from datalake.sources.waymo_v2.component_file import Row
from datalake.sources.waymo_v2.details import box_2d, read_keypoints, read_projected_labels
from datalake.sources.waymo_v2.lidar import read_laser_calibrations, read_points, read_transform

_INTRINSIC = ("f_u", "f_v", "c_u", "c_v", "k1", "k2", "p1", "p2", "k3")


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """What holds for all frames of a segment.

    uris: the file of each component that it has
    faults: what of the calibrations cannot be used, once for the whole segment
    """

    name: str
    uris: dict[str, str]
    camera_calibrations: dict[str, CameraCalibration]
    laser_calibrations: dict[str, LaserCalibration]
    faults: tuple[Fault, ...]


def read_segment(name: str, uris: dict[str, str], rows: dict[str, list[Row]]) -> SegmentInfo:
    """Return what holds for all frames, from the rows of the components that do not belong to one."""
    faults: list[Fault] = []
    cameras = _by_camera(rows.get("camera_calibration", []), "calibration", "camera_calibration", faults)
    lasers = read_laser_calibrations(rows.get("lidar_calibration", []), faults)
    calibrations = {camera: _camera_calibration(camera, row) for camera, row in cameras.items()}
    return SegmentInfo(name, uris, calibrations, lasers, _with_files(faults, uris))


def read_frame(
    segment: SegmentInfo,
    timestamp_us: int,
    rows: dict[str, list[Row]],
    cameras: frozenset[str],
    damage: Sequence[Fault],
) -> Frame:
    """Return the frame of these rows, by component, with the images and 2D labels of `cameras` alone.

    damage: what of its rows cannot be read; it comes first among the frame's faults
    """
    faults = [*damage]
    vehicle_to_world = None
    if "vehicle_pose" in segment.uris:
        poses = [read_transform(row.array("world_from_vehicle.transform")) for row in rows["vehicle_pose"]]
        vehicle_to_world = poses[0] if poses else None
        if vehicle_to_world is None:
            text = "the frame's pose is missing or not finite"
            faults.append(Fault("frame", "FrameError", text, "vehicle_pose"))
    stats = rows.get("stats", [])
    place = {name: (stats[0].value(name) or None) if stats else None for name in ("location", "time_of_day", "weather")}
    images = _read_images(segment, rows, cameras, faults)
    sizes = image_sizes(segment.camera_calibrations.values(), images)
    points = read_points(rows, segment.laser_calibrations, vehicle_to_world, segment.uris, faults)
    points = projected_inside(points, sizes, faults)
    return Frame(
        segment=segment.name,
        timestamp_us=timestamp_us,
        location=place["location"],
        time_of_day=place["time_of_day"],
        weather=place["weather"],
        images=images,
        points=points,
        labels_2d=_read_labels_2d(rows, cameras, sizes, faults),
        labels_3d=_read_labels_3d(rows, faults),
        projected_labels=read_projected_labels(rows.get("projected_lidar_box", []), cameras, faults),
        keypoints=read_keypoints(rows.get("camera_hkp", []), rows.get("lidar_hkp", []), cameras),
        faults=_with_files(faults, segment.uris),
        vehicle_to_world=vehicle_to_world,
        camera_calibrations=tuple(segment.camera_calibrations.values()),
        laser_calibrations=tuple(segment.laser_calibrations.values()),
    )


def _read_images(
    segment: SegmentInfo, rows: dict[str, list[Row]], cameras: frozenset[str], faults: list[Fault]
) -> tuple[CameraImage, ...]:
    panoptics = _by_camera(rows.get("camera_segmentation", []), "panoptic label", "camera_segmentation", faults)
    images = {}
    for camera, row in _by_camera(rows.get("camera_image", []), "image", "camera_image", faults).items():
        if camera not in cameras:
            continue
        try:
            images[camera] = check_image(
                camera,
                row.value("image") or b"",
                segment.camera_calibrations.get(camera),
                read_transform(row.array("pose.transform")),
                _panoptic(panoptics.get(camera)),
                faults,
                exposure=_exposure(row),
                calibrated="camera_calibration" in segment.uris,
            )
        except FrameError as error:
            text = f"image of {camera} is left out: {error}"
            faults.append(Fault("image", "FrameError", text, "camera_image"))
    return tuple(images[camera] for camera in sorted(images, key=CAMERAS.index))


def _exposure(row: Row) -> Exposure:
    velocity = [row.value(name) for name in VELOCITY]
    whole = all(value is not None and np.isfinite(value) for value in velocity)
    times = {field: row.value(name) for field, name in EXPOSURE.items()}
    return Exposure(
        velocity=np.array(velocity, np.float64) if whole else None,
        **{field: time if time is not None and np.isfinite(time) else None for field, time in times.items()},
    )


def _panoptic(row: Row | None) -> tuple[bytes, int] | None:
    png = None if row is None else row.value("panoptic_label")
    return None if row is None or not png else (png, row.value("panoptic_label_divisor") or 0)


def _camera_calibration(camera: str, row: Row) -> CameraCalibration:
    values = [row.value(f"intrinsic.{name}") for name in _INTRINSIC]
    intrinsic = np.array([np.nan if value is None else value for value in values], np.float64)
    return CameraCalibration(
        camera=camera,
        width=row.value("width") or 0,
        height=row.value("height") or 0,
        intrinsic=intrinsic if np.isfinite(intrinsic).all() else None,
        camera_to_vehicle=read_transform(row.array("extrinsic.transform")),
        rolling_shutter_direction=row.value("rolling_shutter_direction"),
    )


def _by_camera(rows: Sequence[Row], what: str, component: str, faults: list[Fault]) -> dict[str, Row]:
    """Return the first row of each camera; what: a row has of its camera."""
    found: dict[str, Row] = {}
    for row in rows:
        number = row.key("camera_name") or 0
        camera = camera_named(number)
        if camera is None:
            text = f"the {what} of the unknown camera {number} is left out"
            faults.append(Fault("image", "FrameError", text, component))
        elif camera in found:
            text = f"camera {camera} appears twice; kept the first {what}"
            faults.append(Fault("image", "FrameError", text, component))
        else:
            found[camera] = row
    return found


def _read_labels_2d(
    rows: dict[str, list[Row]], cameras: frozenset[str], sizes: dict[str, tuple[int, int]], faults: list[Fault]
) -> tuple[Label2D, ...]:
    labels = []
    associated = {
        (row.key("camera_name"), row.key("camera_object_id")): row.key("laser_object_id")
        for row in rows.get("camera_to_lidar_box_association", [])
    }
    for row in rows.get("camera_box", []):
        number = row.key("camera_name") or 0
        camera = camera_named(number)
        if camera is None:
            text = f"a 2D label belongs to the unknown camera {number}"
            faults.append(Fault("label", "FrameError", text, "camera_box"))
        if camera is None or camera not in cameras:
            continue
        level = row.value("difficulty_level.detection") or 0
        object_id = row.key("camera_object_id") or ""
        label = check_label_2d(
            camera,
            object_id,
            row.value("type") or 0,
            box_2d(row),
            level,
            sizes.get(camera),
            faults,
            tracking_difficulty=row.value("difficulty_level.tracking"),
            lidar_object_id=associated.get((number, object_id)),
        )
        if label is not None:
            labels.append(label)
    return tuple(sorted(labels, key=lambda label: CAMERAS.index(label.camera)))


def _read_labels_3d(rows: dict[str, list[Row]], faults: list[Fault]) -> tuple[Label3D, ...]:
    labels = []
    synced = {row.key("laser_object_id"): row for row in rows.get("lidar_camera_synced_box", [])}
    for row in rows.get("lidar_box", []):
        object_id = row.key("laser_object_id") or ""
        seen = synced.get(object_id)
        number = 0 if seen is None else seen.value("most_visible_camera_name") or 0
        label = check_label_3d(
            object_id,
            row.value("type") or 0,
            _box_3d(row, "box"),
            (row.value("speed.x") or 0.0, row.value("speed.y") or 0.0),
            _count(row.value("num_lidar_points_in_box")) or 0,
            row.value("difficulty_level.detection") or 0,
            faults,
            tracking_difficulty=row.value("difficulty_level.tracking"),
            top_lidar_points=_count(row.value("num_top_lidar_points_in_box")),
            speed_z_mps=row.value("speed.z"),
            acceleration_x_mps2=row.value("acceleration.x"),
            acceleration_y_mps2=row.value("acceleration.y"),
            acceleration_z_mps2=row.value("acceleration.z"),
            most_visible_camera=camera_named(number),
            camera_synced_box=None if seen is None else synced_box(_box_3d(seen, "camera_synced_box")),
        )
        if label is not None:
            labels.append(label)
    return tuple(labels)


def _count(value: int | None) -> int | None:
    """Return a number of points, or None where it is missing or none that there can be."""
    return value if value is not None and 0 <= value < 1 << 31 else None


def _box_3d(row: Row, prefix: str) -> dict[str, float | None]:
    sizes = zip(("length", "width", "height"), "xyz", strict=True)
    box = {f"center_{axis}": row.value(f"{prefix}.center.{axis}") for axis in "xyz"}
    box |= {part: row.value(f"{prefix}.size.{axis}") for part, axis in sizes}
    return box | {"heading": row.value(f"{prefix}.heading")}


def _with_files(faults: Iterable[Fault], uris: dict[str, str]) -> tuple[Fault, ...]:
    """Return the faults, each with the file of its own component."""
    return tuple(replace(fault, source=uris.get(fault.component or "")) for fault in faults)
