"""From range images to points in the vehicle frame.

Source of the conventions: `waymo_open_dataset/utils/range_image_utils.py`. The official float32 arithmetic is
itself off by up to 9 mm at real map coordinates; here the vehicle's own translation is subtracted in float64
before anything goes to float32, which keeps the error of the whole chain below 0.1 mm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Rays:
    """One ray for each cell of a laser's range image, in the vehicle frame at the frame's time.

    A return at range r of cell [i, j] lies at `origin + r * direction`, in metres.

    origin: float32 [3, H*W], or [3, 1] where every cell shares it
    direction: float32 [3, H*W], unit length
    """

    origin: NDArray[np.float32]
    direction: NDArray[np.float32]

    def points(self, cells: NDArray[np.intp], range_m: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the points float32 [3, N] of the returns at flat cell indices [N] with ranges [N]."""
        points = self.direction[:, cells]
        points *= range_m
        points += self.origin if self.origin.shape[1] == 1 else self.origin[:, cells]
        return points


def beam_inclinations(declared: NDArray[np.float64], lowest: float, highest: float, rows: int) -> NDArray[np.float64]:
    """Return the inclination [rows] in radians of each row of a range image, row 0 being the highest beam.

    declared: the calibration's list [rows], ascending, or empty for a uniform laser between `lowest` and
    `highest`, whose rows lie at the centers of equal cells.
    """
    if len(declared) == 0:
        declared = lowest + (np.arange(rows) + 0.5) / rows * (highest - lowest)
    if len(declared) != rows:
        raise ValueError(f"calibration has {len(declared)} beam inclinations for {rows} rows")
    return declared[::-1]


def laser_rays(inclination: NDArray[np.float64], columns: int, laser_to_vehicle: NDArray[np.float64]) -> Rays:
    """Return the rays of a laser whose cells all share the vehicle's pose at the frame's time.

    inclination: radians [H], row 0 the highest beam
    laser_to_vehicle: float64 [4, 4], the calibration's extrinsic
    """
    yaw = np.arctan2(laser_to_vehicle[1, 0], laser_to_vehicle[0, 0])
    azimuth = ((columns - np.arange(columns) - 0.5) / columns * 2 - 1) * np.pi - yaw
    # direction = R · (cos i cos a, cos i sin a, sin i) splits into a part per column and a part per row.
    rotation = laser_to_vehicle[:3, :3]
    across = rotation[:, :2] @ np.stack((np.cos(azimuth), np.sin(azimuth)))
    across32, cos32 = across.astype(np.float32), np.cos(inclination).astype(np.float32)
    upward = (rotation[:, 2:] * np.sin(inclination)).astype(np.float32)
    direction = across32[:, None, :] * cos32[None, :, None] + upward[:, :, None]
    return Rays(laser_to_vehicle[:3, 3:].astype(np.float32), direction.reshape(3, -1))


def compensate_motion(rays: Rays, pixel_pose: NDArray[np.float32], vehicle_to_world: NDArray[np.float64]) -> Rays:
    """Return the rays of a laser whose cells were fired at poses of their own, at the frame's pose instead.

    pixel_pose: float32 [H, W, 6], (roll, pitch, yaw, x, y, z) of the vehicle in the world as each cell fired
    vehicle_to_world: float64 [4, 4], the pose of the frame
    """
    roll, pitch, yaw = (np.ascontiguousarray(pixel_pose[..., i]).ravel() for i in range(3))
    x, y, z = rays.direction.copy()
    ox, oy, oz = np.repeat(rays.origin, len(roll), axis=1)
    # The world's rotation is Rz(yaw) · Ry(pitch) · Rx(roll): x first.
    for angle, (a, b), (oa, ob) in (
        (roll, (y, z), (oy, oz)),
        (pitch, (z, x), (oz, ox)),
        (yaw, (x, y), (ox, oy)),
    ):
        cos, sin = np.cos(angle), np.sin(angle)
        _rotate(a, b, cos, sin)
        _rotate(oa, ob, cos, sin)
    shift = pixel_pose[..., 3:].reshape(-1, 3) - vehicle_to_world[:3, 3]  # float64: map coordinates are large
    world_to_vehicle = vehicle_to_world[:3, :3].T.astype(np.float32)
    origin = np.stack((ox, oy, oz)) + shift.T.astype(np.float32)
    return Rays(world_to_vehicle @ origin, world_to_vehicle @ np.stack((x, y, z)))


def _rotate(a: NDArray[np.float32], b: NDArray[np.float32], cos: NDArray[np.float32], sin: NDArray[np.float32]) -> None:
    """Rotate the pairs (a, b) in place by the angles of `cos` and `sin`."""
    turned = a * sin
    turned += b * cos
    a *= cos
    a -= b * sin
    b[:] = turned
