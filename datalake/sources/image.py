"""A camera's image: the bytes of its source, checked, with what belongs to it."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datalake.sources.frame import CAMERAS, CameraCalibration, CameraImage, Exposure, Fault, FrameError, Points
from datalake.sources.panoptic import PanopticError, check_panoptic

_MAX_PIXELS = 64 << 20
_UNKNOWN = Exposure()


def check_image(
    camera: str,
    jpeg: bytes,
    calibration: CameraCalibration | None,
    vehicle_to_world: NDArray[np.float64] | None,
    panoptic: tuple[bytes, int] | None,
    faults: list[Fault],
    *,
    exposure: Exposure = _UNKNOWN,
    calibrated: bool = True,
) -> CameraImage:
    """Return the image of one camera; what of it cannot be used is appended to `faults`.

    panoptic: PNG and divisor of its label, if it has one
    calibrated: whether it is a fault that there is no calibration

    Raises FrameError where the image itself is of no use: no JPEG, cut off, or not of the size of its calibration.
    """
    width, height = _read_jpeg_size(jpeg)
    intrinsic: NDArray[np.float64] | None = None
    camera_to_vehicle: NDArray[np.float64] | None = None
    if calibration is not None:
        if (calibration.width, calibration.height) != (width, height):
            raise FrameError(
                f"the JPEG is {width}x{height}, its calibration is for {calibration.width}x{calibration.height}"
            )
        intrinsic, camera_to_vehicle = calibration.intrinsic, calibration.camera_to_vehicle
        if intrinsic is None or camera_to_vehicle is None:
            part = "intrinsic" if intrinsic is None else "extrinsic"
            text = f"the {part} of camera {camera} is missing or not finite; image kept without it"
            faults.append(Fault("image", "FrameError", text, "camera_calibration"))
    elif calibrated:
        text = f"camera {camera} has no calibration; image kept without it"
        faults.append(Fault("image", "FrameError", text, "camera_calibration"))
    if vehicle_to_world is None:
        text = f"image of {camera} has no finite pose; kept without it"
        faults.append(Fault("image", "FrameError", text, "camera_image"))
    png, divisor = _check_panoptic(panoptic, camera, (width, height), faults) or (None, None)
    return CameraImage(
        camera=camera,
        jpeg=jpeg,
        width=width,
        height=height,
        intrinsic=intrinsic,
        camera_to_vehicle=camera_to_vehicle,
        vehicle_to_world=vehicle_to_world,
        panoptic=png,
        panoptic_divisor=divisor,
        exposure=exposure,
    )


def image_sizes(calibrations: Iterable[CameraCalibration], images: Iterable[CameraImage]) -> dict[str, tuple[int, int]]:
    """Return (width, height) of the cameras: the image's or, where there is none, the calibration's."""
    sizes = {
        calibration.camera: (calibration.width, calibration.height)
        for calibration in calibrations
        if min(calibration.width, calibration.height) > 0
    }
    return sizes | {image.camera: (image.width, image.height) for image in images}


def projected_inside(points: Points, sizes: dict[str, tuple[int, int]], faults: list[Fault]) -> Points:
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
        faults.append(Fault("lidar", "FrameError", text, "lidar_camera_projection"))
    return replace(
        points,
        camera=np.where(outside, np.int8(0), points.camera),
        u=np.where(outside, np.int16(0), points.u),
        v=np.where(outside, np.int16(0), points.v),
    )


def _check_panoptic(
    panoptic: tuple[bytes, int] | None, camera: str, size: tuple[int, int], faults: list[Fault]
) -> tuple[bytes, int] | None:
    """Return the panoptic label of an image of (width, height) where it has a usable one."""
    if panoptic is None:
        return None
    png, divisor = panoptic
    try:
        if divisor < 1:
            raise PanopticError("it has no divisor")
        check_panoptic(png, size)
    except PanopticError as error:
        text = f"panoptic label of {camera} is left out: {error}"
        faults.append(Fault("image", type(error).__name__, text, "camera_segmentation"))
        return None
    return png, divisor


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
