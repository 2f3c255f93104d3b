"""Lasers to points: every return ends in a row, or in a fault that says why not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from datalake.sources.frame import CAMERAS, LASERS, Fault, LaserCalibration, Points
from datalake.sources.range_image import Rays, beam_inclinations, compensate_motion, laser_rays

# The sensors reach 75 m. Ranges beyond this and NaN are damage; zero and negative ones say that nothing returned.
MAX_RANGE_M = 500.0
# Of a return from the vehicle, along any axis: sensors sit on it, and it moves while they turn.
_FURTHEST_M = MAX_RANGE_M + 20.0
TOP = LASERS.index("TOP")
# How many classes `Segmentation.Type` of the official segmentation.proto has, 0 being UNDEFINED.
SEMANTIC_CLASSES = 23


class LidarError(ValueError):
    """A laser, or a part of it, cannot be turned into points.

    component: as in `Fault`
    """

    def __init__(self, message: str, component: str = "lidar") -> None:
        super().__init__(message)
        self.component = component


class LaserReturn(Protocol):
    """One return of a laser, as its source stores it; each part is decoded when it is asked for.

    The parts raise LidarError where they are missing or damaged.
    """

    def range_image(self) -> NDArray[np.float32]:
        """Return [H, W, 4]: range in metres, intensity, elongation, in no-label zone (1, -1)."""

    def projections(self) -> NDArray[Any] | None:
        """Return [H, W, 6]: camera, u, v of two projections; None where the source has none of any laser."""

    def segmentation(self) -> NDArray[Any] | None:
        """Return [H, W, 2]: instance and semantic class; None where nothing is labelled."""


@dataclass(frozen=True, slots=True)
class Laser:
    """One laser of a frame.

    number: index into `LASERS`
    pixel_pose: returns float32 [H, W, 6], roll, pitch, yaw, x, y, z of the vehicle in the world as each cell of TOP
    fired; raises LidarError where it is missing or damaged
    """

    number: int
    calibration: LaserCalibration | None
    returns: Mapping[int, LaserReturn]
    pixel_pose: Callable[[], NDArray[np.float32]]


def laser_points(lasers: Sequence[Laser], vehicle_to_world: NDArray[np.float64] | None, faults: list[Fault]) -> Points:
    """Return the points of a frame's lasers, which are sorted; what cannot be read is appended to `faults`."""
    parts: list[Points] = []
    for laser in lasers:
        try:
            parts += _read_laser(laser, vehicle_to_world, faults)
        except ValueError as error:
            text = f"laser {LASERS[laser.number]} is left out: {error}"
            component = error.component if isinstance(error, LidarError) else "lidar"
            faults.append(Fault("lidar", type(error).__name__, text, component))
    return Points.concatenate(parts)


def _read_laser(laser: Laser, vehicle_to_world: NDArray[np.float64] | None, faults: list[Fault]) -> list[Points]:
    calibration = laser.calibration
    if calibration is None:
        raise LidarError("it has no calibration", "lidar_calibration")
    laser_to_vehicle = calibration.laser_to_vehicle
    if laser_to_vehicle is None:
        raise LidarError("its extrinsic is missing or not finite", "lidar_calibration")

    images: dict[int, NDArray[np.float32]] = {}
    for number, stored in laser.returns.items():
        try:
            images[number] = _read_range_image(stored)
        except LidarError as error:
            _fault(faults, laser, number, "is left out", error)
    if not images:
        return []
    rows, columns, _ = next(iter(images.values())).shape

    lowest, highest = calibration.lowest_rad, calibration.highest_rad
    if len(calibration.inclination_rad) == 0 and (lowest is None or highest is None):
        raise LidarError("its calibration has no beam inclinations", "lidar_calibration")
    with np.errstate(invalid="ignore"):
        inclination = beam_inclinations(calibration.inclination_rad, lowest or 0.0, highest or 0.0, rows)
    if not np.isfinite(inclination).all():
        raise LidarError("its beam inclinations are not finite", "lidar_calibration")
    parts = []
    # Overflow and NaN in poses and calibrations end in positions that are not finite, which are reported below.
    with np.errstate(over="ignore", invalid="ignore"):
        rays = laser_rays(inclination, columns, laser_to_vehicle)
        if laser.number == TOP:
            rays = compensate_motion(rays, _read_pixel_pose(laser, rows, columns), _required(vehicle_to_world))
        for number, image in images.items():
            try:
                if image.shape[:2] != (rows, columns):
                    raise LidarError(f"its range image is {image.shape[:2]}, return 1's is {(rows, columns)}")
                parts.append(_read_return(laser, number, image, rays, faults))
            except LidarError as error:
                _fault(faults, laser, number, "is left out", error)
    return parts


def _read_range_image(stored: LaserReturn) -> NDArray[np.float32]:
    """Return float32 [H, W, 4]: range in metres, intensity, elongation, in no-label zone (1, -1)."""
    image = stored.range_image()
    if image.ndim != 3 or image.shape[2] != 4 or image.size == 0:
        raise LidarError(f"expected a range image [H, W, 4], got {list(image.shape)}")
    return image


def _read_pixel_pose(laser: Laser, rows: int, columns: int) -> NDArray[np.float32]:
    try:
        pose = laser.pixel_pose()
        if pose.shape != (rows, columns, 6):
            raise LidarError(f"expected pixel poses [{rows}, {columns}, 6], got {list(pose.shape)}")
    except LidarError as error:
        error.component = "lidar_pose"
        raise
    return pose


def _required(vehicle_to_world: NDArray[np.float64] | None) -> NDArray[np.float64]:
    if vehicle_to_world is None:
        raise LidarError("the frame has no pose, so ego motion cannot be compensated", "vehicle_pose")
    return vehicle_to_world


def _read_return(laser: Laser, number: int, image: NDArray[np.float32], rays: Rays, faults: list[Fault]) -> Points:
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

    camera, u, v = _read_projections(laser, number, image.shape[:2], cells, faults)
    semantic, instance = _read_semantics(laser, number, image.shape[:2], cells, faults)
    return Points(
        xyz_m=xyz_m,
        intensity=intensity,
        elongation=elongation,
        laser=np.full(len(cells), laser.number, np.int8),
        return_index=np.full(len(cells), number, np.int8),
        no_label_zone=flat[cells, 3] > 0,
        camera=camera,
        u=u,
        v=v,
        semantic_class=semantic,
        instance_id=instance,
        range_row=(cells // image.shape[1]).astype(np.int16),
        range_column=(cells % image.shape[1]).astype(np.int16),
        range_m=range_m[cells],
        image_shapes={LASERS[laser.number] or "": (image.shape[0], image.shape[1])},
    )


def _read_projections(
    laser: Laser,
    number: int,
    shape: tuple[int, ...],
    cells: NDArray[np.intp],
    faults: list[Fault],
) -> tuple[NDArray[np.int8], NDArray[np.int16], NDArray[np.int16]]:
    """Return (camera int8, u int16, v int16), each [2, N]: the two slots of the record's own projections."""
    try:
        stored = laser.returns[number].projections()
        if stored is not None and stored.shape != (*shape, 6):
            raise LidarError(f"expected camera projections {[*shape, 6]}, got {list(stored.shape)}")
    except LidarError as error:
        _fault(faults, laser, number, "is kept without camera projections", error, "lidar_camera_projection")
        stored = None
    if stored is None:
        zeros = np.zeros((2, len(cells)), np.int16)
        return zeros.astype(np.int8), zeros, zeros
    # Six contiguous rows (name, u, v of each slot): every step below is one pass over memory.
    slots = np.ascontiguousarray(stored.reshape(-1, 6)[cells].T).astype(np.int32, copy=False).reshape(2, 3, -1)
    named = slots[:, 0] != 0
    if slots.size and (slots.min() < 0 or slots[:, 0].max() >= len(CAMERAS) or slots[:, 1:].max() >= 1 << 15):
        inside = ((slots >= 0) & (slots < [[len(CAMERAS)], [1 << 15], [1 << 15]])).all(axis=1)
        if outside := int((named & ~inside).sum()):
            beyond = LidarError(f"{outside} camera projections name no camera or no pixel")
            _fault(faults, laser, number, "keeps their points without them", beyond, "lidar_camera_projection")
        named &= inside
    slots *= named[:, None]
    return slots[:, 0].astype(np.int8), slots[:, 1].astype(np.int16), slots[:, 2].astype(np.int16)


def _read_semantics(
    laser: Laser,
    number: int,
    shape: tuple[int, ...],
    cells: NDArray[np.intp],
    faults: list[Fault],
) -> tuple[NDArray[np.int8] | None, NDArray[np.int32] | None]:
    """Return (semantic class int8 [N], instance id int32 [N]), or None for both where nothing is labelled."""
    try:
        stored = laser.returns[number].segmentation()
        if stored is None:
            return None, None
        if stored.shape != (*shape, 2):
            raise LidarError(f"expected segmentation labels {[*shape, 2]}, got {list(stored.shape)}")
        instance, semantic = stored.reshape(-1, 2)[cells].T
        if ((semantic < 0) | (semantic >= SEMANTIC_CLASSES)).any():
            raise LidarError(f"segmentation labels name classes outside 0 to {SEMANTIC_CLASSES - 1}")
    except LidarError as error:
        _fault(faults, laser, number, "is kept without segmentation labels", error, "lidar_segmentation")
        return None, None
    return semantic.astype(np.int8), instance.astype(np.int32)


def _fault(
    faults: list[Fault], laser: Laser, number: int, consequence: str, error: LidarError, component: str = "lidar"
) -> None:
    message = f"laser {LASERS[laser.number]} return {number} {consequence}: {error}"
    faults.append(Fault("lidar", type(error).__name__, message, component))
