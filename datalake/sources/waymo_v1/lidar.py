"""A record's lasers to points: every return ends in a row, or in a fault that says why not."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from datalake.sources.waymo_v1.frame import CAMERAS, LASERS, Fault, Points
from datalake.sources.waymo_v1.matrix import MatrixError, decode_float_matrix, decode_int_matrix
from datalake.sources.waymo_v1.protos import segmentation_pb2
from datalake.sources.waymo_v1.range_image import Rays, beam_inclinations, compensate_motion, laser_rays

# The sensors reach 75 m. Ranges beyond this and NaN are damage; zero and negative ones say that nothing returned.
MAX_RANGE_M = 500.0
# Of a return from the vehicle, along any axis: sensors sit on it, and it moves while they turn.
_FURTHEST_M = MAX_RANGE_M + 20.0
_TOP = LASERS.index("TOP")
_SEMANTIC_CLASSES = len(segmentation_pb2.Segmentation.Type.values())


class LidarError(ValueError):
    """A laser, or a part of it, cannot be turned into points."""


def read_points(record: Any, vehicle_to_world: NDArray[np.float64] | None, faults: list[Fault]) -> Points:
    """Return the points of a `dataset_pb2.Frame`; what cannot be read is appended to `faults`.

    A record whose lasers hold no bytes at all has no lidar (the test split's camera-only frames): no points,
    no fault.
    """
    carriers = [laser for laser in record.lasers if _has_bytes(laser)]
    if not carriers:
        return Points.empty()
    calibrations = {calibration.name: calibration for calibration in record.context.laser_calibrations}
    by_name: dict[int, Any] = {}
    for laser in carriers:
        if not 0 < laser.name < len(LASERS):
            faults.append(Fault("lidar", "LidarError", f"a laser has the unknown name {laser.name}"))
        elif laser.name in by_name:
            faults.append(Fault("lidar", "LidarError", f"laser {LASERS[laser.name]} appears twice; kept the first"))
        else:
            by_name[laser.name] = laser
    for name in sorted(calibrations.keys() - by_name.keys()):
        label = LASERS[name] if 0 < name < len(LASERS) else name
        faults.append(Fault("lidar", "LidarError", f"laser {label} is calibrated but absent"))

    parts: list[Points] = []
    for name in sorted(by_name):
        try:
            parts += _read_laser(by_name[name], calibrations.get(name), vehicle_to_world, faults)
        except (LidarError, MatrixError, ValueError) as error:
            faults.append(Fault("lidar", type(error).__name__, f"laser {LASERS[name]} is left out: {error}"))
    return Points.concatenate(parts)


def _has_bytes(laser: Any) -> bool:
    return bool(laser.ri_return1.range_image_compressed or laser.ri_return2.range_image_compressed)


def _read_laser(
    laser: Any, calibration: Any | None, vehicle_to_world: NDArray[np.float64] | None, faults: list[Fault]
) -> list[Points]:
    if calibration is None:
        raise LidarError("it has no calibration")
    laser_to_vehicle = read_transform(calibration.extrinsic)
    if laser_to_vehicle is None:
        raise LidarError("its extrinsic is missing or not finite")

    images: dict[int, tuple[Any, NDArray[np.float32]]] = {}
    for number, message in ((1, laser.ri_return1), (2, laser.ri_return2)):
        try:
            images[number] = message, _read_range_image(message)
        except (LidarError, MatrixError) as error:
            _fault(faults, laser, number, "is left out", error)
    if not images:
        return []
    rows, columns, _ = next(iter(images.values()))[1].shape

    uniform = calibration.HasField("beam_inclination_min") and calibration.HasField("beam_inclination_max")
    if not calibration.beam_inclinations and not uniform:
        raise LidarError("its calibration has no beam inclinations")
    with np.errstate(invalid="ignore"):
        inclination = beam_inclinations(
            np.array(calibration.beam_inclinations, np.float64),
            calibration.beam_inclination_min,
            calibration.beam_inclination_max,
            rows,
        )
    if not np.isfinite(inclination).all():
        raise LidarError("its beam inclinations are not finite")
    parts = []
    # Overflow and NaN in poses and calibrations end in positions that are not finite, which are reported below.
    with np.errstate(over="ignore", invalid="ignore"):
        rays = laser_rays(inclination, columns, laser_to_vehicle)
        if laser.name == _TOP:
            rays = compensate_motion(rays, _read_pixel_pose(laser, rows, columns), _required(vehicle_to_world))
        for number, (message, image) in images.items():
            try:
                if image.shape[:2] != (rows, columns):
                    raise LidarError(f"its range image is {image.shape[:2]}, return 1's is {(rows, columns)}")
                parts.append(_read_return(laser, number, message, image, rays, faults))
            except LidarError as error:
                _fault(faults, laser, number, "is left out", error)
    return parts


def _read_range_image(message: Any) -> NDArray[np.float32]:
    """Return float32 [H, W, 4]: range in metres, intensity, elongation, in no-label zone (1, -1)."""
    if not message.range_image_compressed:
        raise LidarError("it is missing")
    image = decode_float_matrix(message.range_image_compressed)
    if image.ndim != 3 or image.shape[2] != 4 or image.size == 0:
        raise LidarError(f"expected a range image [H, W, 4], got {list(image.shape)}")
    return image


def _read_pixel_pose(laser: Any, rows: int, columns: int) -> NDArray[np.float32]:
    compressed = laser.ri_return1.range_image_pose_compressed
    if not compressed:
        raise LidarError("it has no pixel poses, so ego motion cannot be compensated")
    pose = decode_float_matrix(compressed)
    if pose.shape != (rows, columns, 6):
        raise LidarError(f"expected pixel poses [{rows}, {columns}, 6], got {list(pose.shape)}")
    return pose


def _required(vehicle_to_world: NDArray[np.float64] | None) -> NDArray[np.float64]:
    if vehicle_to_world is None:
        raise LidarError("the frame has no pose, so ego motion cannot be compensated")
    return vehicle_to_world


def _read_return(
    laser: Any, number: int, message: Any, image: NDArray[np.float32], rays: Rays, faults: list[Fault]
) -> Points:
    flat = image.reshape(-1, 4)
    range_m = np.ascontiguousarray(flat[:, 0])
    broken = ~(range_m <= MAX_RANGE_M)  # also true for NaN
    if broken.any():
        text = f"{int(broken.sum())} of {len(range_m)} cells have a range that is NaN or beyond {MAX_RANGE_M:g} m"
        _fault(faults, laser, number, "keeps its other cells", LidarError(text))
    cells = np.flatnonzero((range_m > 0) & ~broken)
    xyz_m = rays.points(cells, range_m[cells])
    # False for NaN, too.
    if not (near := (np.abs(xyz_m) <= _FURTHEST_M).all(axis=0)).all():
        text = (
            f"{int((~near).sum())} returns have a position that is NaN or beyond {_FURTHEST_M:g} m (pixel pose or"
            " calibration)"
        )
        _fault(faults, laser, number, "keeps its other returns", LidarError(text))
        cells, xyz_m = cells[near], np.ascontiguousarray(xyz_m[:, near])
    intensity, elongation = flat[cells, 1], flat[cells, 2]
    for name, values in (("intensity", intensity), ("elongation", elongation)):
        unusable = ~np.isfinite(values)
        if unusable.any():
            values[unusable] = 0
            text = f"{int(unusable.sum())} returns have an {name} that is not finite"
            _fault(faults, laser, number, "keeps them with 0", LidarError(text))

    camera, u, v = _read_projections(laser, number, message, image.shape[:2], cells, faults)
    semantic, instance = _read_semantics(laser, number, message, image.shape[:2], cells, faults)
    return Points(
        xyz_m=xyz_m,
        intensity=intensity,
        elongation=elongation,
        laser=np.full(len(cells), laser.name, np.int8),
        return_index=np.full(len(cells), number, np.int8),
        no_label_zone=flat[cells, 3] > 0,
        camera=camera,
        u=u,
        v=v,
        semantic_class=semantic,
        instance_id=instance,
    )


def _read_projections(
    laser: Any,
    number: int,
    message: Any,
    shape: tuple[int, ...],
    cells: NDArray[np.intp],
    faults: list[Fault],
) -> tuple[NDArray[np.int8], NDArray[np.int16], NDArray[np.int16]]:
    """Return (camera int8, u int16, v int16), each [2, N]: the two slots of the record's own projections."""
    try:
        if not message.camera_projection_compressed:
            raise LidarError("they are missing")
        stored = decode_int_matrix(message.camera_projection_compressed)
        if stored.shape != (*shape, 6):
            raise LidarError(f"expected camera projections {[*shape, 6]}, got {list(stored.shape)}")
    except (LidarError, MatrixError) as error:
        _fault(faults, laser, number, "is kept without camera projections", error)
        zeros = np.zeros((2, len(cells)), np.int16)
        return zeros.astype(np.int8), zeros, zeros
    # Six contiguous rows (name, u, v of each slot): every step below is one pass over memory.
    slots = np.ascontiguousarray(stored.reshape(-1, 6)[cells].T).reshape(2, 3, -1)
    named = slots[:, 0] != 0
    if slots.size and (slots.min() < 0 or slots[:, 0].max() >= len(CAMERAS) or slots[:, 1:].max() >= 1 << 15):
        inside = ((slots >= 0) & (slots < [[len(CAMERAS)], [1 << 15], [1 << 15]])).all(axis=1)
        if outside := int((named & ~inside).sum()):
            text = f"{outside} camera projections name no camera or no pixel"
            _fault(faults, laser, number, "keeps their points without them", LidarError(text))
        named &= inside
    slots *= named[:, None]
    return slots[:, 0].astype(np.int8), slots[:, 1].astype(np.int16), slots[:, 2].astype(np.int16)


def _read_semantics(
    laser: Any,
    number: int,
    message: Any,
    shape: tuple[int, ...],
    cells: NDArray[np.intp],
    faults: list[Fault],
) -> tuple[NDArray[np.int8] | None, NDArray[np.int32] | None]:
    """Return (semantic class int8 [N], instance id int32 [N]), or None for both where nothing is labelled."""
    if not message.segmentation_label_compressed:
        return None, None
    try:
        stored = decode_int_matrix(message.segmentation_label_compressed)
        if stored.shape != (*shape, 2):
            raise LidarError(f"expected segmentation labels {[*shape, 2]}, got {list(stored.shape)}")
        instance, semantic = stored.reshape(-1, 2)[cells].T
        if ((semantic < 0) | (semantic >= _SEMANTIC_CLASSES)).any():
            raise LidarError(f"segmentation labels name classes outside 0 to {_SEMANTIC_CLASSES - 1}")
    except (LidarError, MatrixError) as error:
        _fault(faults, laser, number, "is kept without segmentation labels", error)
        return None, None
    return semantic.astype(np.int8), instance.astype(np.int32)


def _fault(faults: list[Fault], laser: Any, number: int, consequence: str, error: Exception) -> None:
    message = f"laser {LASERS[laser.name]} return {number} {consequence}: {error}"
    faults.append(Fault("lidar", type(error).__name__, message))


def read_transform(transform: Any) -> NDArray[np.float64] | None:
    """Return a proto `Transform` as float64 [4, 4], or None where it is missing or not finite."""
    values = np.array(transform.transform, np.float64)
    if values.size != 16 or not np.isfinite(values).all():
        return None
    return values.reshape(4, 4)
