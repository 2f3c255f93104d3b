"""Cameras: where they sit, which ray every pixel sees along, and which pixels a solid may cover."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from datalake.sources.waymo_v1.protos import dataset_pb2
from datalake.synthetic.motion import rotation_from_euler
from datalake.synthetic.primitives import EDGES, Primitives
from datalake.synthetic.visibility import Rays, Windows

# Name -> yaw (rad) and position (m) in the vehicle frame, and how long after the frame it exposes (s): the
# lidar's sweep starts at the frame's time, turns clockwise from behind, and passes each camera in turn.
_MOUNTS = {
    "FRONT": (0.0, (1.54, 0.0, 2.12), 0.045),
    "FRONT_LEFT": (np.pi / 4, (1.5, 0.1, 2.12), 0.035),
    "FRONT_RIGHT": (-np.pi / 4, (1.5, -0.1, 2.12), 0.055),
    "SIDE_LEFT": (np.pi / 2, (1.43, 0.12, 2.12), 0.025),
    "SIDE_RIGHT": (-np.pi / 2, (1.43, -0.12, 2.12), 0.065),
}
CAMERA_NAMES = tuple(_MOUNTS)
_HALF_VIEW_RAD = np.radians(25.0)
_SIDE_HEIGHT = 886 / 1280
_DISTORTION = (-0.03, 0.012, 0.0006, -0.0004, 0.0)
# Points whose ray is this much farther out than the image's border are never in it: the distortion's
# polynomial folds far outside.
_GUARD = 1.25
_NEAR_M = 0.1


@dataclass(frozen=True, slots=True)
class Camera:
    """One camera. Its frame: x along the optical axis, y left, z up. Pixel (u, v) covers [u, u+1) x [v, v+1)."""

    name: str
    width: int
    height: int
    intrinsic: tuple[float, ...]
    """f_u, f_v, c_u, c_v, k1, k2, p1, p2, k3."""
    camera_to_vehicle: np.ndarray
    """float64 [4, 4]."""
    exposure_s: float
    """Exposure after the frame's time."""

    @staticmethod
    def mount(name: str, width: int, height: int) -> Camera:
        """Return the camera of this Waymo name for images of FRONT size `width` x `height`."""
        yaw, position, exposure = _MOUNTS[name]
        if name.startswith("SIDE"):
            height = max(round(height * _SIDE_HEIGHT), 1)
        focal = width / 2 / np.tan(_HALF_VIEW_RAD)
        transform = np.eye(4)
        transform[:3, :3] = rotation_from_euler(0.003, 0.012, yaw)
        transform[:3, 3] = position
        intrinsic = (focal, focal * 1.001, 0.503 * width, 0.497 * height, *_DISTORTION)
        return Camera(name, width, height, tuple(float(v) for v in intrinsic), transform, exposure)

    @property
    def enum(self) -> int:
        """The value of Waymo's `CameraName`."""
        return int(dataset_pb2.CameraName.Name.Value(self.name))

    def _distort(self, right: np.ndarray, down: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Apply the Brown model to normalized image coordinates."""
        k1, k2, p1, p2, k3 = self.intrinsic[4:]
        r2 = right**2 + down**2
        radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
        return (
            right * radial + 2 * p1 * right * down + p2 * (r2 + 2 * right**2),
            down * radial + p1 * (r2 + 2 * down**2) + 2 * p2 * right * down,
        )

    def pixels(self, right: np.ndarray, down: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return u, v of normalized image coordinates `right` = -y/x and `down` = -z/x."""
        f_u, f_v, c_u, c_v = self.intrinsic[:4]
        right, down = self._distort(right, down)
        return c_u + f_u * right, c_v + f_v * down

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return u, v and whether the point is in the image, of camera-frame points [3, N]."""
        depth = np.maximum(points[0], _NEAR_M)
        right, down = -points[1] / depth, -points[2] / depth
        limit_right, limit_down = self._limits()
        sane = (points[0] > _NEAR_M) & (np.abs(right) < limit_right) & (np.abs(down) < limit_down)
        u, v = self.pixels(np.where(sane, right, 0), np.where(sane, down, 0))
        return u, v, sane & (u >= 0) & (v >= 0) & (u < self.width) & (v < self.height)

    def _limits(self) -> tuple[float, float]:
        f_u, f_v = self.intrinsic[:2]
        return _GUARD * self.width / 2 / f_u, _GUARD * self.height / 2 / f_v

    def pixel_rays(self) -> np.ndarray:
        """Return float32 [3, H, W]: unit rays through the middle of every pixel, in the camera frame."""
        return _pixel_rays(self.width, self.height, self.intrinsic)

    def rays(self, camera_to_scene: np.ndarray) -> Rays:
        """Return the pixels' rays in the scene."""
        local = self.pixel_rays()
        rotation = camera_to_scene[:3, :3].astype(np.float32)
        return Rays(camera_to_scene[:3, 3:], np.einsum("ij,jhw->ihw", rotation, local))

    def windows(self, corners: np.ndarray, camera_to_scene: np.ndarray) -> np.ndarray:
        """Return int [P, 4]: first row, end row, first and end column around solids with these corners [P, 8, 3].

        A window is empty (its end at or before its start) where the solid is out of view.
        """
        turned = (corners - camera_to_scene[:3, 3]) @ camera_to_scene[:3, :3]
        start, end = turned[:, EDGES[:, 0]], turned[:, EDGES[:, 1]]
        # Where an edge passes the near plane, the crossing bounds the visible rest of the solid.
        crosses = (start[..., 0] > _NEAR_M) != (end[..., 0] > _NEAR_M)
        step = np.where(crosses, end[..., 0] - start[..., 0], 1)
        crossing = start + ((_NEAR_M - start[..., 0]) / step)[..., None] * (end - start)
        points = np.concatenate([turned, crossing], 1)
        valid = np.concatenate([turned[..., 0] > _NEAR_M, crosses], 1)
        depth = np.maximum(points[..., 0], _NEAR_M)
        limit_right, limit_down = self._limits()
        right = np.clip(-points[..., 1] / depth, -limit_right, limit_right)
        down = np.clip(-points[..., 2] / depth, -limit_down, limit_down)
        u, v = self.pixels(right, down)
        return np.stack(
            [
                np.clip(np.floor(np.where(valid, v, np.inf).min(1) - 1), 0, self.height),
                np.clip(np.ceil(np.where(valid, v, -np.inf).max(1) + 1), 0, self.height),
                np.clip(np.floor(np.where(valid, u, np.inf).min(1) - 1), 0, self.width),
                np.clip(np.ceil(np.where(valid, u, -np.inf).max(1) + 1), 0, self.width),
            ],
            1,
        ).astype(np.int64)

    def view(self, primitives: Primitives, camera_to_scene: np.ndarray) -> Windows:
        """Return the windows of all solids in view."""
        bounds = self.windows(primitives.corners, camera_to_scene)
        index = np.flatnonzero((bounds[:, 0] < bounds[:, 1]) & (bounds[:, 2] < bounds[:, 3]))
        return Windows(index, bounds[index], nearest_m(primitives, camera_to_scene[:3, 3])[index])


@functools.lru_cache(maxsize=16)
def _pixel_rays(width: int, height: int, intrinsic: tuple[float, ...]) -> np.ndarray:
    camera = Camera("FRONT", width, height, intrinsic, np.eye(4), 0.0)
    f_u, f_v, c_u, c_v = intrinsic[:4]
    v, u = np.mgrid[:height, :width] + 0.5
    wanted = (u - c_u) / f_u, (v - c_v) / f_v
    right, down = wanted
    for _ in range(8):
        bent = camera._distort(right, down)
        right, down = right + wanted[0] - bent[0], down + wanted[1] - bent[1]
    ray = np.stack([np.ones_like(right), -right, -down])
    return (ray / np.linalg.norm(ray, axis=0)).astype(np.float32)


def nearest_m(primitives: Primitives, viewpoint: np.ndarray) -> np.ndarray:
    """Return a lower bound [P] on the distance of each solid, for an object's solids that of the nearest."""
    nearest = np.maximum(np.linalg.norm(primitives.center - viewpoint, axis=1) - primitives.radius_m, 0)
    instance = primitives.instance
    whole = np.full(int(instance.max(initial=0)) + 1, np.inf)
    np.minimum.at(whole, instance, nearest)
    return np.where(instance > 0, whole[instance], nearest)
