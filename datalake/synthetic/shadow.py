"""Shadows on the ground: which ground pixels cannot see the sun, and which lie below something."""

from __future__ import annotations

import numpy as np

from datalake.synthetic.camera import Camera
from datalake.synthetic.materials import Kind
from datalake.synthetic.primitives import Primitives, Shape
from datalake.synthetic.visibility import GROUND, Hits, Rays, meet

# Solids that cast no shadow worth drawing: too far, or their radius too small for their distance.
_CASTER_M = 90.0
_CASTER_SIZE = 0.008
_OVERHEAD = np.array([0.0, 0.0, 1.0])


def ground_light(
    camera: Camera, camera_to_scene: np.ndarray, rays: Rays, hits: Hits, solids: Primitives, sun: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return how much of the sun and of the sky reaches each pixel's ground: float32 [H, W] each, 0 to 1.

    `sun` is the unit vector towards it in the scene frame, None where it casts no shadows.
    """
    shape = hits.distance_m.shape
    sunlit, open_sky = np.ones(shape, np.float32), np.ones(shape, np.float32)
    here = camera_to_scene[:3, 3]
    away = np.linalg.norm(solids.center - here, axis=1)
    near = (away - solids.radius_m < _CASTER_M) & (solids.radius_m > _CASTER_SIZE * away)
    on_ground = hits.primitive == GROUND
    point = rays.direction * np.where(on_ground, hits.distance_m, 0)
    if sun is not None:
        for index, area in _shaded(camera, camera_to_scene, point, on_ground, solids.take(near), sun, 1.0):
            sunlit[area][index] = 0
    vehicles = near & np.isin(solids.kind, (Kind.CAR, Kind.TRUCK, Kind.BUS)) & (solids.half_size[:, 0] > 0.6)
    walkers = near & np.isin(solids.kind, (Kind.PEDESTRIAN, Kind.CYCLIST)) & (solids.half_size[:, 1] > 0.12)
    for index, area in _shaded(
        camera, camera_to_scene, point, on_ground, solids.take(vehicles | walkers), _OVERHEAD, 1.12
    ):
        open_sky[area][index] = 0.35
    return sunlit, open_sky


def _shaded(
    camera: Camera,
    camera_to_scene: np.ndarray,
    point: np.ndarray,
    on_ground: np.ndarray,
    solids: Primitives,
    light: np.ndarray,
    swell: float,
) -> list[tuple[np.ndarray, tuple[slice, slice]]]:
    """Return, for each solid, a mask of ground pixels that it hides from the light, and the mask's area."""
    corners = solids.corners
    corners = corners - light * (np.maximum(corners[..., 2:], 0) / light[2])
    windows = camera.windows(corners, camera_to_scene)
    size = (windows[:, 1] - windows[:, 0]).clip(0) * (windows[:, 3] - windows[:, 2]).clip(0)
    to_unit = solids.to_unit / swell
    shaded = []
    for index in np.flatnonzero(size > 6):
        area = slice(*windows[index, :2].tolist()), slice(*windows[index, 2:].tolist())
        rows, columns = np.nonzero(on_ground[area])
        if not len(rows):
            continue
        matrix = to_unit[index].astype(np.float32)
        start = (camera_to_scene[:3, 3] - solids.center[index]).astype(np.float32)
        # Start a little below, so that a solid that stands on the ground is always ahead.
        offset = (start - np.float32(0.3) * light.astype(np.float32))[:, None] + point[:, area[0], area[1]][
            :, rows, columns
        ]
        direction = np.einsum("ij,j->i", matrix, light.astype(np.float32))[:, None]
        origin = np.einsum("ij,jn->in", matrix, offset)
        shape, material, salt = Shape(int(solids.shape[index])), int(solids.material[index]), int(solids.salt[index])
        met = meet(shape, material, origin, direction, salt)
        mask = np.zeros(on_ground[area].shape, bool)
        mask[rows, columns] = np.isfinite(met)
        shaded.append((mask, area))
    return shaded
