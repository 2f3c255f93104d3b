"""One lidar scan, the way the network was trained to see it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datalake.sources.frame import LASERS, Points

# KITTI's lidar sits 1.73 m above the road and is the origin of its coordinates (Geiger et al. 2013); Waymo's vehicle
# frame has its origin on the road.
KITTI_SENSOR_HEIGHT_M = 1.73
# KITTI's intensity is a reflectance within 0 … 1; Waymo's is unbounded, with most returns below 1 and retroreflectors
# far above. tanh keeps the small values as they are and folds the tail into KITTI's range.
WAYMO_INTENSITY_SCALE = 1.0
_TOP = LASERS.index("TOP")
NOT_FINITE = "a scan has points that are NaN or infinite; drop them first"


class ScanError(ValueError):
    """A file or an array is not a lidar scan."""


@dataclass(frozen=True, slots=True)
class Scan:
    """P points of one scan.

    xyz_m: float32 [P, 3], metres, in the frame of KITTI's lidar: x forward, y left, z up, origin at the sensor
    intensity: float32 [P], within 0 … 1
    source: int64 [P], the row of each point in what the scan was made from
    """

    xyz_m: NDArray[np.float32]
    intensity: NDArray[np.float32]
    source: NDArray[np.int64]

    def __post_init__(self) -> None:
        points = len(self.xyz_m)
        if self.xyz_m.shape != (points, 3) or self.intensity.shape != (points,) or self.source.shape != (points,):
            raise ScanError(
                f"Expected xyz_m [P, 3], intensity [P], source [P], got: {self.xyz_m.shape}, {self.intensity.shape}, "
                f"{self.source.shape}"
            )
        if not np.isfinite(self.xyz_m).all() or not np.isfinite(self.intensity).all():
            raise ScanError(NOT_FINITE)

    def __len__(self) -> int:
        return len(self.xyz_m)

    @staticmethod
    def from_semantickitti(path: str | Path) -> Scan:
        """Read a .bin of SemanticKITTI: float32 x, y, z, intensity. Raises ScanError for a file of another size."""
        values = np.fromfile(path, np.float32)
        if len(values) % 4:
            raise ScanError(f"{path}: expected four float32 a point, got {len(values)} values")
        points = values.reshape(-1, 4)
        return Scan(points[:, :3].copy(), points[:, 3].copy(), np.arange(len(points)))

    @staticmethod
    def from_waymo(points: Points) -> Scan:
        """Return the returns of a Waymo frame's TOP laser; `source` says which of `points` they are.

        The other lasers reach 20 m and see the car's own flanks: KITTI's sensor has nothing like them.
        """
        source = np.flatnonzero(points.laser == _TOP)
        xyz_m = points.xyz_m[:, source].T.astype(np.float32)
        xyz_m[:, 2] -= KITTI_SENSOR_HEIGHT_M
        intensity = np.tanh(points.intensity[source] / np.float32(WAYMO_INTENSITY_SCALE)).astype(np.float32)
        return Scan(np.ascontiguousarray(xyz_m), intensity, source)


def waymo_points(points: Tensor) -> Tensor:
    """Return float32 [P, 4], x, y, z and intensity as `Scan.from_waymo` has them, up to rounding of the last.

    points: float32 [4, P] of a TOP laser, rows x, y, z in metres (vehicle frame) and intensity, on any device

    What is NaN or infinite stays so, for `voxelize` to find.
    """
    shifted = points[2:3] - KITTI_SENSOR_HEIGHT_M
    intensity = (points[3:] / WAYMO_INTENSITY_SCALE).tanh().where(points[3:].isfinite(), torch.nan)
    return torch.cat([points[:2], shifted, intensity]).t().contiguous()
