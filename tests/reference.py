"""The geometry of range images, slowly: float64, one cell at a time, written from the conventions alone."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from tests.frames import rotation


def slow_point(
    row: int,
    column: int,
    range_m: float,
    *,
    ascending: NDArray[np.float64],
    columns: int,
    laser_to_vehicle: NDArray[np.float64],
    pixel_pose: NDArray[np.float32] | None = None,
    vehicle_to_world: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Return the point [3] of a cell: row 0 is the highest beam, azimuth falls with the column, both at the center.

    ascending: inclination of each beam, as a calibration lists them
    pixel_pose: (roll, pitch, yaw, x, y, z) of this cell, for a laser that has poses of its own
    """
    inclination = ascending[len(ascending) - 1 - row]
    correction = math.atan2(laser_to_vehicle[1, 0], laser_to_vehicle[0, 0])
    azimuth = math.pi * (2 * (columns - 1 - column + 0.5) / columns - 1) - correction
    in_laser = [
        range_m * math.cos(inclination) * math.cos(azimuth),
        range_m * math.cos(inclination) * math.sin(azimuth),
        range_m * math.sin(inclination),
        1.0,
    ]
    in_vehicle = laser_to_vehicle @ in_laser
    if pixel_pose is None or vehicle_to_world is None:
        return np.asarray(in_vehicle[:3])
    roll, pitch, yaw, x, y, z = pixel_pose.astype(np.float64)
    fired = np.eye(4)
    fired[:3, :3], fired[:3, 3] = rotation(roll, pitch, yaw), (x, y, z)
    return np.asarray((np.linalg.inv(vehicle_to_world) @ fired @ in_vehicle)[:3])
