"""The lasers of a record, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datalake.sources.frame import LASERS, Fault, LaserCalibration, Points
from datalake.sources.lidar import Laser, LidarError, laser_points
from datalake.sources.waymo_v1.matrix import decode_float_matrix, decode_int_matrix


@dataclass(frozen=True, slots=True)
class _Return:
    """A `RangeImage` message as a `LaserReturn`."""

    message: Any

    def range_image(self) -> NDArray[np.float32]:
        if not self.message.range_image_compressed:
            raise LidarError("it is missing")
        return decode_float_matrix(self.message.range_image_compressed)

    def projections(self) -> NDArray[np.int32]:
        if not self.message.camera_projection_compressed:
            raise LidarError("they are missing")
        return decode_int_matrix(self.message.camera_projection_compressed)

    def segmentation(self) -> NDArray[np.int32] | None:
        if not self.message.segmentation_label_compressed:
            return None
        return decode_int_matrix(self.message.segmentation_label_compressed)

    def pixel_pose(self) -> NDArray[np.float32]:
        if not self.message.range_image_pose_compressed:
            raise LidarError("it has no pixel poses, so ego motion cannot be compensated")
        return decode_float_matrix(self.message.range_image_pose_compressed)


def read_points(
    record: Any,
    calibrations: Sequence[LaserCalibration],
    vehicle_to_world: NDArray[np.float64] | None,
    faults: list[Fault],
) -> Points:
    """Return the points of a `dataset_pb2.Frame`; what cannot be read is appended to `faults`.

    calibrations: the record's own; of several of one laser the last counts

    A record whose lasers hold no bytes at all has no lidar (the test split's camera-only frames): no points,
    no fault.
    """
    carriers = [laser for laser in record.lasers if _has_bytes(laser)]
    if not carriers:
        return Points.empty()
    by_name: dict[int, Any] = {}
    for laser in carriers:
        if not 0 < laser.name < len(LASERS):
            faults.append(Fault("lidar", "LidarError", f"a laser has the unknown name {laser.name}"))
        elif laser.name in by_name:
            faults.append(Fault("lidar", "LidarError", f"laser {LASERS[laser.name]} appears twice; kept the first"))
        else:
            by_name[laser.name] = laser
    for name in sorted({calibration.name for calibration in record.context.laser_calibrations} - by_name.keys()):
        label = LASERS[name] if 0 < name < len(LASERS) else name
        faults.append(Fault("lidar", "LidarError", f"laser {label} is calibrated but absent"))
    by_laser = {calibration.laser: calibration for calibration in calibrations}
    lasers = [_laser(by_name[name], by_laser.get(LASERS[name] or "")) for name in sorted(by_name)]
    return laser_points(lasers, vehicle_to_world, faults)


def read_laser_calibrations(record: Any) -> tuple[LaserCalibration, ...]:
    """Return the calibration of each laser that is known."""
    messages = record.context.laser_calibrations
    return tuple(_calibration(message) for message in messages if 0 < message.name < len(LASERS))


def read_transform(transform: Any) -> NDArray[np.float64] | None:
    """Return a proto `Transform` as float64 [4, 4], or None where it is missing or not finite."""
    values = np.array(transform.transform, np.float64)
    if values.size != 16 or not np.isfinite(values).all():
        return None
    return values.reshape(4, 4)


def _has_bytes(laser: Any) -> bool:
    return bool(laser.ri_return1.range_image_compressed or laser.ri_return2.range_image_compressed)


def _laser(message: Any, calibration: LaserCalibration | None) -> Laser:
    first, second = _Return(message.ri_return1), _Return(message.ri_return2)
    return Laser(
        number=message.name,
        calibration=calibration,
        returns={1: first, 2: second},
        pixel_pose=first.pixel_pose,
    )


def _calibration(message: Any) -> LaserCalibration:
    return LaserCalibration(
        laser=LASERS[message.name] or "",
        laser_to_vehicle=read_transform(message.extrinsic),
        inclination_rad=np.array(message.beam_inclinations, np.float64),
        lowest_rad=message.beam_inclination_min if message.HasField("beam_inclination_min") else None,
        highest_rad=message.beam_inclination_max if message.HasField("beam_inclination_max") else None,
    )
