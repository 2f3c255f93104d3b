"""The lasers of a frame, from the rows of their components."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datalake.sources.frame import LASERS, Fault, LaserCalibration, Points
from datalake.sources.lidar import TOP, Laser, LidarError, laser_points
from datalake.sources.waymo_v2.component_file import Row

# What positions of TOP take, and those of every laser.
_OF_TOP, _OF_ALL = ("lidar_pose", "vehicle_pose"), ("lidar", "lidar_calibration")


@dataclass(frozen=True, slots=True)
class _Return:
    """One return of a laser as a `LaserReturn`.

    projection, segmentation: the rows of this laser in those components
    projected: whether the segment has projections at all
    """

    number: int
    image: Row
    projection: Row | None
    segmented: Row | None
    projected: bool

    def range_image(self) -> NDArray[np.float32]:
        matrix = read_matrix(self.image, self.number)
        if matrix is None:
            raise LidarError("it is missing")
        return matrix.astype(np.float32, copy=False)

    def projections(self) -> NDArray[Any] | None:
        if not self.projected:
            return None
        matrix = None if self.projection is None else read_matrix(self.projection, self.number)
        if matrix is None:
            raise LidarError("they are missing")
        return matrix

    def segmentation(self) -> NDArray[Any] | None:
        return None if self.segmented is None else read_matrix(self.segmented, self.number)


def read_points(
    rows: dict[str, list[Row]],
    calibrations: dict[str, LaserCalibration],
    vehicle_to_world: NDArray[np.float64] | None,
    present: Collection[str],
    faults: list[Fault],
) -> Points:
    """Return the points of a frame; what cannot be read is appended to `faults`.

    rows: of the frame, by component
    present: the components that the segment has; what others would add is left out without a fault
    """
    if not all(component in present for component in _OF_ALL):
        return Points.empty()
    images = _by_laser([row for row in rows["lidar"] if _has_values(row)], "lidar", faults)
    if not images:
        return Points.empty()
    for laser in sorted(calibrations.keys() - {LASERS[number] for number in images}):
        faults.append(Fault("lidar", "LidarError", f"laser {laser} is calibrated but absent", "lidar"))
    if not all(component in present for component in _OF_TOP):
        images.pop(TOP, None)
    poses, projections, segmentations = (
        _by_laser(rows.get(component, []), component, faults)
        for component in ("lidar_pose", "lidar_camera_projection", "lidar_segmentation")
    )
    projected = "lidar_camera_projection" in present
    lasers = [
        Laser(
            number=number,
            calibration=calibrations.get(LASERS[number] or ""),
            returns={
                index: _Return(index, image, projections.get(number), segmentations.get(number), projected)
                for index in (1, 2)
            },
            pixel_pose=lambda number=number: _read_pixel_pose(poses.get(number)),  # type: ignore[misc]
        )
        for number, image in sorted(images.items())
    ]
    return laser_points(lasers, vehicle_to_world, faults)


def read_matrix(row: Row, number: int) -> NDArray[Any] | None:
    """Return the range image of a return as [H, W, C]; None where there is none.

    Raises LidarError where it has another number of values than its shape.
    """
    values, shape = (row.array(f"range_image_return{number}.{part}") for part in ("values", "shape"))
    if values is None or shape is None or len(values) == 0:
        return None
    sizes = [int(size) for size in shape]
    if math.prod(sizes) != len(values) or min(sizes) < 0:
        raise LidarError(f"expected {math.prod(sizes)} values for shape {sizes}, got {len(values)}")
    return values.reshape(sizes)


def read_transform(values: NDArray[Any] | None) -> NDArray[np.float64] | None:
    """Return 16 numbers as float64 [4, 4], or None where some are missing or not finite."""
    if values is None or values.size != 16 or not np.isfinite(values).all():
        return None
    return values.astype(np.float64).reshape(4, 4)


def read_laser_calibrations(rows: Sequence[Row], faults: list[Fault]) -> dict[str, LaserCalibration]:
    """Return the calibration of each laser of a segment."""
    calibrations = {}
    for number, row in _by_laser(rows, "lidar_calibration", faults).items():
        laser, declared = LASERS[number] or "", row.array("beam_inclination.values")
        calibrations[laser] = LaserCalibration(
            laser=laser,
            laser_to_vehicle=read_transform(row.array("extrinsic.transform")),
            inclination_rad=np.zeros(0) if declared is None else declared.astype(np.float64),
            lowest_rad=row.value("beam_inclination.min"),
            highest_rad=row.value("beam_inclination.max"),
        )
    return calibrations


def _by_laser(rows: Sequence[Row], component: str, faults: list[Fault]) -> dict[int, Row]:
    found: dict[int, Row] = {}
    for row in rows:
        number = row.key("laser_name") or 0
        if not 0 < number < len(LASERS):
            faults.append(Fault("lidar", "LidarError", f"a laser has the unknown name {number}", component))
        elif number in found:
            text = f"laser {LASERS[number]} appears twice; kept the first"
            faults.append(Fault("lidar", "LidarError", text, component))
        else:
            found[number] = row
    return found


def _has_values(row: Row) -> bool:
    return any(row.array(f"range_image_return{number}.values") is not None for number in (1, 2))


def _read_pixel_pose(row: Row | None) -> NDArray[np.float32]:
    pose = None if row is None else read_matrix(row, 1)
    if pose is None:
        raise LidarError("it has no pixel poses, so ego motion cannot be compensated")
    return pose.astype(np.float32, copy=False)
