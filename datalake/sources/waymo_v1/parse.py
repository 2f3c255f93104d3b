"""One record's payload to a `Frame`: parse what is there, name what is not."""

from __future__ import annotations

from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

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
    camera_named,
)
from datalake.sources.image import check_image, image_sizes, projected_inside
from datalake.sources.label import BOX_3D, check_label_2d, check_label_3d, synced_box
from datalake.sources.segment_name import check_segment_name
from datalake.sources.waymo_v1.details import read_keypoints, read_map, read_projected_labels
from datalake.sources.waymo_v1.lidar import read_laser_calibrations, read_points, read_transform
from datalake.sources.waymo_v1.protos import dataset_pb2

_VELOCITY = ("v_x", "v_y", "v_z", "w_x", "w_y", "w_z")


def parse_frame(payload: bytes, cameras: frozenset[str]) -> Frame:
    """Return the frame in a record's payload, with the images and 2D labels of `cameras` alone.

    Raises FrameError where no frame can be made of it at all: not a `Frame`, no usable segment name, no
    timestamp. Everything smaller ends in `Frame.faults`.
    """
    try:
        record = dataset_pb2.Frame.FromString(payload)
    except DecodeError as error:
        raise FrameError(f"payload of {len(payload)} bytes is not a Waymo Frame: {error}") from error
    check_segment_name(record.context.name)
    if record.timestamp_micros <= 0:
        raise FrameError(f"frame has no timestamp (timestamp_micros is {record.timestamp_micros})")

    faults: list[Fault] = []
    vehicle_to_world = read_transform(record.pose)
    if vehicle_to_world is None:
        faults.append(Fault("frame", "FrameError", "the frame's pose is missing or not finite"))
    stats = record.context.stats
    place = {}
    for name in ("location", "time_of_day", "weather"):
        value = getattr(stats, name)
        if not isinstance(value, str):
            faults.append(Fault("frame", "FrameError", f"the frame's {name} is not text"))
            value = ""
        place[name] = value or None
    calibrations = _read_camera_calibrations(record)
    images = _read_images(record, calibrations, cameras, faults)
    sizes = image_sizes(calibrations.values(), images)
    lasers = read_laser_calibrations(record)
    return Frame(
        segment=record.context.name,
        timestamp_us=record.timestamp_micros,
        **place,
        images=images,
        points=projected_inside(read_points(record, lasers, vehicle_to_world, faults), sizes, faults),
        labels_2d=_read_labels_2d(record, cameras, sizes, faults),
        labels_3d=_read_labels_3d(record, faults),
        projected_labels=read_projected_labels(record, cameras, faults),
        keypoints=read_keypoints(record, cameras),
        map_features=read_map(record),
        faults=tuple(faults),
        vehicle_to_world=vehicle_to_world,
        camera_calibrations=tuple(calibrations.values()),
        laser_calibrations=lasers,
    )


def _read_camera_calibrations(record: Any) -> dict[str, CameraCalibration]:
    """Return the record's calibration of each camera that is known; of several of one camera, the last."""
    calibrations = {}
    for message in record.context.camera_calibrations:
        camera, intrinsic = camera_named(message.name), np.array(message.intrinsic, np.float64)
        if camera is None:
            continue
        calibrations[camera] = CameraCalibration(
            camera=camera,
            width=message.width,
            height=message.height,
            intrinsic=intrinsic if intrinsic.shape == (9,) and np.isfinite(intrinsic).all() else None,
            camera_to_vehicle=read_transform(message.extrinsic),
            rolling_shutter_direction=_optional(message, "rolling_shutter_direction"),
        )
    return calibrations


def _read_images(
    record: Any, calibrations: dict[str, CameraCalibration], cameras: frozenset[str], faults: list[Fault]
) -> tuple[CameraImage, ...]:
    images: dict[int, CameraImage] = {}
    for message in record.images:
        camera = camera_named(message.name)
        if camera is None:
            faults.append(Fault("image", "FrameError", f"an image has the unknown camera name {message.name}"))
            continue
        if camera not in cameras:
            continue
        if message.name in images:
            faults.append(Fault("image", "FrameError", f"camera {camera} appears twice; kept the first image"))
            continue
        try:
            images[message.name] = _read_image(message, camera, calibrations.get(camera), faults)
        except FrameError as error:
            faults.append(Fault("image", "FrameError", f"image of {camera} is left out: {error}"))
    return tuple(images[name] for name in sorted(images))


def _read_image(message: Any, camera: str, calibration: CameraCalibration | None, faults: list[Fault]) -> CameraImage:
    label = message.camera_segmentation_label
    panoptic = (label.panoptic_label, label.panoptic_label_divisor) if label.panoptic_label else None
    pose = read_transform(message.pose)
    return check_image(camera, message.image, calibration, pose, panoptic, faults, exposure=_read_exposure(message))


def _read_exposure(message: Any) -> Exposure:
    velocity = np.array([getattr(message.velocity, name) for name in _VELOCITY], np.float64)
    return Exposure(
        pose_time_s=_number(message, "pose_timestamp"),
        trigger_time_s=_number(message, "camera_trigger_time"),
        readout_done_time_s=_number(message, "camera_readout_done_time"),
        shutter_s=_number(message, "shutter"),
        velocity=velocity if message.HasField("velocity") and np.isfinite(velocity).all() else None,
    )


def _number(message: Any, name: str) -> float | None:
    """Return a number of a message, or None where it is missing or not finite."""
    value: float | None = _optional(message, name)
    return value if value is not None and np.isfinite(value) else None


def _optional(message: Any, name: str) -> Any:
    """Return a field of a message, or None where it is missing: its default is nobody's measurement."""
    return getattr(message, name) if message.HasField(name) else None


def _read_labels_2d(
    record: Any, cameras: frozenset[str], sizes: dict[str, tuple[int, int]], faults: list[Fault]
) -> tuple[Label2D, ...]:
    labels = []
    for group in record.camera_labels:
        camera = camera_named(group.name)
        if camera is None and group.labels:
            text = f"{len(group.labels)} 2D labels belong to the unknown camera {group.name}"
            faults.append(Fault("label", "FrameError", text))
        if camera is None or camera not in cameras:
            continue
        for label in group.labels:
            box = _box(label.box, ("center_x", "center_y", "length", "width"))
            level = label.detection_difficulty_level
            checked = check_label_2d(
                camera,
                label.id,
                label.type,
                box,
                level,
                sizes.get(camera),
                faults,
                tracking_difficulty=_optional(label, "tracking_difficulty_level"),
                lidar_object_id=_text(label.association.laser_object_id),
            )
            if checked is not None:
                labels.append(checked)
    return tuple(sorted(labels, key=lambda label: CAMERAS.index(label.camera)))


def _read_labels_3d(record: Any, faults: list[Fault]) -> tuple[Label3D, ...]:
    labels = []
    for label in record.laser_labels:
        box, motion = _box(label.box, BOX_3D), label.metadata
        speed_mps = motion.speed_x, motion.speed_y
        level, lidar_points = label.detection_difficulty_level, label.num_lidar_points_in_box
        checked = check_label_3d(
            label.id,
            label.type,
            box,
            speed_mps,
            lidar_points,
            level,
            faults,
            tracking_difficulty=_optional(label, "tracking_difficulty_level"),
            top_lidar_points=_optional(label, "num_top_lidar_points_in_box"),
            speed_z_mps=_optional(motion, "speed_z"),
            acceleration_x_mps2=_optional(motion, "accel_x"),
            acceleration_y_mps2=_optional(motion, "accel_y"),
            acceleration_z_mps2=_optional(motion, "accel_z"),
            most_visible_camera=_text(label.most_visible_camera_name),
            camera_synced_box=synced_box(_box(label.camera_synced_box, BOX_3D)),
        )
        if checked is not None:
            labels.append(checked)
    return tuple(labels)


def _text(value: Any) -> str | None:
    """Return text, or None where there is none."""
    return value if isinstance(value, str) and value else None


def _box(message: Any, parts: tuple[str, ...]) -> dict[str, float | None]:
    return {part: _optional(message, part) for part in parts}
