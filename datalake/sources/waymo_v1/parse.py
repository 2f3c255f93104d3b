"""One record's payload to a `Frame`: parse what is there, name what is not."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from PIL import Image

from datalake.sources.waymo_v1.frame import (
    CAMERAS,
    OBJECT_TYPES,
    CameraImage,
    Fault,
    Frame,
    FrameError,
    Label2D,
    Label3D,
    Points,
)
from datalake.sources.waymo_v1.lidar import read_points, read_transform
from datalake.sources.waymo_v1.panoptic import PanopticError, check_panoptic
from datalake.sources.waymo_v1.protos import dataset_pb2
from datalake.sources.waymo_v1.segment_name import check_segment_name

_MAX_PIXELS = 64 << 20
# Pixels or metres; far below what a float32 can hold.
_MAX_COORDINATE = 1e9


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
    images = _read_images(record, cameras, faults)
    sizes = _image_sizes(record, images)
    return Frame(
        segment=record.context.name,
        timestamp_us=record.timestamp_micros,
        **place,
        images=images,
        points=_projected_inside(read_points(record, vehicle_to_world, faults), sizes, faults),
        labels_2d=_read_labels_2d(record, cameras, sizes, faults),
        labels_3d=_read_labels_3d(record, faults),
        faults=tuple(faults),
    )


def _read_images(record: Any, cameras: frozenset[str], faults: list[Fault]) -> tuple[CameraImage, ...]:
    calibrations = {calibration.name: calibration for calibration in record.context.camera_calibrations}
    images: dict[int, CameraImage] = {}
    for message in record.images:
        if not 0 < message.name < len(CAMERAS):
            faults.append(Fault("image", "FrameError", f"an image has the unknown camera name {message.name}"))
            continue
        camera = CAMERAS[message.name]
        if camera not in cameras:
            continue
        if message.name in images:
            faults.append(Fault("image", "FrameError", f"camera {camera} appears twice; kept the first image"))
            continue
        try:
            images[message.name] = _read_image(message, camera, calibrations.get(message.name), faults)
        except FrameError as error:
            faults.append(Fault("image", "FrameError", f"image of {camera} is left out: {error}"))
    return tuple(images[name] for name in sorted(images))


def _read_image(message: Any, camera: str, calibration: Any | None, faults: list[Fault]) -> CameraImage:
    width, height = _read_jpeg_size(message.image)
    intrinsic: NDArray[np.float64] | None = None
    camera_to_vehicle: NDArray[np.float64] | None = None
    if calibration is None:
        faults.append(Fault("image", "FrameError", f"camera {camera} has no calibration; image kept without it"))
    else:
        if (calibration.width, calibration.height) != (width, height):
            raise FrameError(
                f"the JPEG is {width}x{height}, its calibration is for {calibration.width}x{calibration.height}"
            )
        values = np.array(calibration.intrinsic, np.float64)
        camera_to_vehicle = read_transform(calibration.extrinsic)
        if values.shape == (9,) and np.isfinite(values).all():
            intrinsic = values
        if intrinsic is None or camera_to_vehicle is None:
            part = "intrinsic" if intrinsic is None else "extrinsic"
            text = f"the {part} of camera {camera} is missing or not finite; image kept without it"
            faults.append(Fault("image", "FrameError", text))
    vehicle_to_world = read_transform(message.pose)
    if vehicle_to_world is None:
        text = f"image of {camera} has no finite pose; kept without it"
        faults.append(Fault("image", "FrameError", text))
    panoptic = _read_panoptic(message.camera_segmentation_label, camera, (width, height), faults)
    return CameraImage(
        camera=camera,
        jpeg=message.image,
        width=width,
        height=height,
        intrinsic=intrinsic,
        camera_to_vehicle=camera_to_vehicle,
        vehicle_to_world=vehicle_to_world,
        panoptic=None if panoptic is None else panoptic.panoptic_label,
        panoptic_divisor=None if panoptic is None else panoptic.panoptic_label_divisor,
    )


def _read_panoptic(label: Any, camera: str, size: tuple[int, int], faults: list[Fault]) -> Any | None:
    """Return the panoptic label of an image of (width, height) where it has a usable one."""
    if not label.panoptic_label:
        return None
    try:
        if label.panoptic_label_divisor < 1:
            raise PanopticError("it has no divisor")
        check_panoptic(label.panoptic_label, size)
    except PanopticError as error:
        faults.append(Fault("image", type(error).__name__, f"panoptic label of {camera} is left out: {error}"))
        return None
    return label


def _read_jpeg_size(jpeg: bytes) -> tuple[int, int]:
    """Return (width, height) from the header, having checked that the image has an end; decodes nothing."""
    if not jpeg:
        raise FrameError("it has no bytes")
    try:
        with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
            width, height = image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise FrameError(f"its JPEG header cannot be read ({type(error).__name__})") from error
    if not 0 < width * height <= _MAX_PIXELS:
        raise FrameError(f"its JPEG header claims {width}x{height} pixels")
    # Behind the last scan there may be padding; a thumbnail with a scan and an end of its own stands in a segment.
    scan = _first_scan(jpeg)
    if scan is None or jpeg.rfind(b"\xff\xd9") < jpeg.rfind(b"\xff\xda", scan):
        raise FrameError("its JPEG is cut off (no end-of-image marker)")
    return width, height


def _first_scan(jpeg: bytes) -> int | None:
    """Return where the image's first start-of-scan marker stands, None where the segments end before it."""
    position = 2
    while position + 4 <= len(jpeg):
        marker = jpeg[position + 1]
        if marker == 0xDA:
            return position
        # Fill bytes in front of a marker.
        position += 1 if marker == 0xFF else 2 + int.from_bytes(jpeg[position + 2 : position + 4], "big")
    return None


def _image_sizes(record: Any, images: tuple[CameraImage, ...]) -> dict[str, tuple[int, int]]:
    """Return (width, height) of the cameras: the image's or, where there is none, the calibration's."""
    sizes = {
        str(CAMERAS[calibration.name]): (calibration.width, calibration.height)
        for calibration in record.context.camera_calibrations
        if 0 < calibration.name < len(CAMERAS) and min(calibration.width, calibration.height) > 0
    }
    return sizes | {image.camera: (image.width, image.height) for image in images}


def _projected_inside(points: Points, sizes: dict[str, tuple[int, int]], faults: list[Fault]) -> Points:
    """Return the points without the projections that lie outside of their images of (width, height)."""
    most = np.iinfo(np.int16).max
    # Beyond the largest pixel where the size is not known; the first row is that of no camera.
    known = [sizes.get(str(camera), (most, most)) for camera in CAMERAS]
    width, height = np.array(known).clip(max=most).astype(np.int16).T
    outside = (points.camera > 0) & ((points.u >= width[points.camera]) | (points.v >= height[points.camera]))
    if not outside.any():
        return points
    for number in np.unique(points.camera[outside]):
        camera = str(CAMERAS[number])
        mine = points.camera == number
        text = (
            f"{int((outside & mine).sum())} of {int(mine.sum())} projections into {camera} lie outside of its image of"
            f" {sizes[camera][0]}x{sizes[camera][1]} (scaled without them?); points kept without these"
        )
        faults.append(Fault("lidar", "FrameError", text))
    return replace(
        points,
        camera=np.where(outside, np.int8(0), points.camera),
        u=np.where(outside, np.int16(0), points.u),
        v=np.where(outside, np.int16(0), points.v),
    )


def _read_labels_2d(
    record: Any, cameras: frozenset[str], sizes: dict[str, tuple[int, int]], faults: list[Fault]
) -> tuple[Label2D, ...]:
    labels = []
    for group in record.camera_labels:
        camera = CAMERAS[group.name] if 0 < group.name < len(CAMERAS) else None
        if camera is None and group.labels:
            text = f"{len(group.labels)} 2D labels belong to the unknown camera {group.name}"
            faults.append(Fault("label", "FrameError", text))
        if camera is None or camera not in cameras:
            continue
        for label in group.labels:
            try:
                kind = _check_label(label, ("center_x", "center_y", "length", "width"))
                x0, y0, x1, y1 = _read_box(label.box, sizes.get(camera))
            except FrameError as error:
                text = f"2D label {label.id[:40]!r} of {camera} is left out: {error}"
                faults.append(Fault("label", "FrameError", text))
                continue
            labels.append(
                Label2D(
                    camera=camera,
                    object_id=label.id,
                    type=kind,
                    x0=x0,
                    y0=y0,
                    x1=x1,
                    y1=y1,
                    difficulty=label.detection_difficulty_level,
                )
            )
    return tuple(sorted(labels, key=lambda label: CAMERAS.index(label.camera)))


def _read_box(box: Any, size: tuple[int, int] | None) -> tuple[float, float, float, float]:
    """Return x0, y0, x1, y1 in pixels, clipped to the image of (width, height) if that is known.

    Raises FrameError where nothing of the box lies inside.
    """
    x0, x1 = box.center_x - box.length / 2, box.center_x + box.length / 2
    y0, y1 = box.center_y - box.width / 2, box.center_y + box.width / 2
    if size is None:
        return x0, y0, x1, y1
    width, height = size
    inside = max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
    # As the lake stores them: a sliver may vanish in rounding.
    left, top, right, bottom = np.array(inside, np.float32)
    if not (left < right and top < bottom):
        raise FrameError(
            f"its box, x {x0:g} to {x1:g} and y {y0:g} to {y1:g}, lies outside of the image of {width}x{height}"
        )
    return inside


def _read_labels_3d(record: Any, faults: list[Fault]) -> tuple[Label3D, ...]:
    labels = []
    for label in record.laser_labels:
        box = label.box
        try:
            kind = _check_label(label, ("center_x", "center_y", "center_z", "length", "width", "height", "heading"))
        except FrameError as error:
            text = f"3D label {label.id[:40]!r} is left out: {error}"
            faults.append(Fault("label", "FrameError", text))
            continue
        labels.append(
            Label3D(
                object_id=label.id,
                type=kind,
                center_x_m=box.center_x,
                center_y_m=box.center_y,
                center_z_m=box.center_z,
                length_m=box.length,
                width_m=box.width,
                height_m=box.height,
                heading_rad=box.heading,
                speed_x_mps=label.metadata.speed_x,
                speed_y_mps=label.metadata.speed_y,
                lidar_points=label.num_lidar_points_in_box,
                difficulty=label.detection_difficulty_level,
            )
        )
    return tuple(labels)


def _check_label(label: Any, parts: tuple[str, ...]) -> str:
    """Return the label's type; raises FrameError unless its type is known and its box whole."""
    if not isinstance(label.id, str):
        raise FrameError("its id is not text")
    if not 0 < label.type < len(OBJECT_TYPES):
        raise FrameError(f"its type {label.type} is unknown")
    for part in parts:
        if not label.box.HasField(part) or not abs(getattr(label.box, part)) <= _MAX_COORDINATE:
            raise FrameError(f"its box has no finite {part}")
    if not (label.box.length > 0 and label.box.width > 0):
        raise FrameError(f"its box has no area ({label.box.length:g} x {label.box.width:g})")
    return OBJECT_TYPES[label.type] or ""
