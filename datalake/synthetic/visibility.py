"""Which solid each ray meets first, found like a z-buffer: a solid is tried on the rays of its window only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datalake.synthetic.materials import Material
from datalake.synthetic.noise import leaf_holes
from datalake.synthetic.primitives import Primitives, Shape, entry_distance
from datalake.synthetic.streets import Streets, Survey

NOTHING = -1
GROUND = -2
_SPOKE_RING = 0.84


@dataclass(frozen=True, slots=True)
class Rays:
    """A grid of H x W rays in the scene frame."""

    origin: np.ndarray
    """float64 [3, 1] (one for all) or [3, W] (one per column), metres."""
    direction: np.ndarray
    """float32 [3, H, W], unit length."""


@dataclass(frozen=True, slots=True)
class Windows:
    """Q rectangles of rays, each enough to hold one solid; a solid may have several, or none."""

    primitive: np.ndarray
    """int [Q]: index of the solid."""
    bounds: np.ndarray
    """int [Q, 4]: first row, end row, first column, end column."""
    nearest_m: np.ndarray
    """float [Q]: a lower bound on the distance of the whole object."""


@dataclass(frozen=True, slots=True)
class Hits:
    """What H x W rays met."""

    distance_m: np.ndarray
    """float32 [H, W]: infinity where nothing."""
    primitive: np.ndarray
    """int32 [H, W]: index of the solid, GROUND or NOTHING."""
    ground_kind: np.ndarray
    """int16 [H, W]: `Kind` where the primitive is GROUND, 0 elsewhere."""
    survey: Survey
    """Of the ground points, in row-major order."""
    covered: dict[int, int]
    """Rays that each object would meet if it stood alone; objects hidden as a whole are left out."""


def cast(rays: Rays, primitives: Primitives, windows: Windows, streets: Streets, limit_m: float) -> Hits:
    """Return what each ray meets within `limit_m`."""
    _, height, width = rays.direction.shape
    distance = np.full((height, width), limit_m, np.float32)
    primitive = np.full((height, width), NOTHING, np.int32)
    owner = np.zeros((height, width), np.int32)
    covered: dict[int, int] = {}
    to_unit = primitives.to_unit
    hidden: dict[int, bool] = {}
    groups = _unions(windows, primitives.instance)
    order = np.lexsort((windows.primitive, windows.nearest_m))
    for row in order:
        index = int(windows.primitive[row])
        top, bottom, left, right = (int(v) for v in windows.bounds[row])
        instance = int(primitives.instance[index])
        nearest = windows.nearest_m[row]
        if instance:
            if instance not in hidden:
                a, b, c, d = groups[instance]
                hidden[instance] = bool(nearest > distance[a:b, c:d].max())
            if hidden[instance]:
                continue
        elif nearest > distance[top:bottom, left:right].max():
            continue
        part = rays.direction[:, top:bottom, left:right]
        offset = rays.origin if rays.origin.shape[1] == 1 else rays.origin[:, left:right]
        matrix = to_unit[index]
        # Not `@`: BLAS rounds differently with another number of threads.
        local = np.einsum("ij,jw->iw", matrix, offset - primitives.center[index][:, None])
        origin = local.astype(np.float32)[:, None, :]
        direction = np.einsum("ij,jhw->ihw", matrix.astype(np.float32), part)
        met = meet(
            Shape(int(primitives.shape[index])),
            int(primitives.material[index]),
            origin,
            direction,
            int(primitives.salt[index]),
        )
        window = distance[top:bottom, left:right]
        if instance:
            solid = met < limit_m
            owned = owner[top:bottom, left:right]
            covered[instance] = covered.get(instance, 0) + int(np.count_nonzero(solid & (owned != instance)))
            owned[solid] = instance
        closer = met < window
        window[closer] = met[closer]
        primitive[top:bottom, left:right][closer] = index
    return _add_ground(rays, streets, distance, primitive, covered, limit_m)


def meet(shape: Shape, material: int, origin: np.ndarray, direction: np.ndarray, salt: int) -> np.ndarray:
    """Return the entry distance into a unit shape, infinity where the material lets the ray pass."""
    met = entry_distance(shape, origin, direction)
    if material not in (Material.FOLIAGE, Material.SPOKES):
        return met
    solid = np.isfinite(met)
    if not solid.any():
        return met
    with np.errstate(invalid="ignore"):
        point = origin + met * direction
    if material == Material.SPOKES:
        return np.where(solid & (np.hypot(point[0], point[1]) > _SPOKE_RING), met, np.float32(np.inf))
    point = np.where(solid, point, 0)
    facing = -(point * direction).sum(0) / np.sqrt((direction**2).sum(0))
    return np.where(solid & ~leaf_holes(point, facing, salt), met, np.float32(np.inf))


def _unions(windows: Windows, instance: np.ndarray) -> dict[int, tuple[int, int, int, int]]:
    """Return, for each object, the rectangle around all its windows."""
    unions: dict[int, tuple[int, int, int, int]] = {}
    for number, bounds in zip(instance[windows.primitive].tolist(), windows.bounds.tolist(), strict=True):
        if number:
            a, b, c, d = unions.get(number, bounds)
            unions[number] = (min(a, bounds[0]), max(b, bounds[1]), min(c, bounds[2]), max(d, bounds[3]))
    return unions


def _add_ground(
    rays: Rays, streets: Streets, distance: np.ndarray, primitive: np.ndarray, covered: dict[int, int], limit_m: float
) -> Hits:
    down = rays.direction[2]
    height = rays.origin[2].astype(np.float32)
    # Where the nearest solid is met well above the kerb, the ground behind it is out of sight.
    candidates = np.flatnonzero((down < -1e-4) & (height + distance * down < 0.15))
    kind = np.zeros(distance.shape, np.int16)
    columns = candidates % distance.shape[1] if rays.origin.shape[1] > 1 else np.zeros(len(candidates), np.int64)
    origin = rays.origin.astype(np.float32)[:, columns]
    direction = rays.direction.reshape(3, -1)[:, candidates]
    limit = distance.ravel()[candidates]
    met, kinds, survey = streets.meet(origin, direction, limit)
    visible = met < limit
    where = candidates[visible]
    distance.ravel()[where] = met[visible]
    primitive.ravel()[where] = GROUND
    kind.ravel()[where] = kinds[visible]
    distance[distance >= limit_m] = np.inf
    seen = Survey(*(getattr(survey, name)[visible] for name in Survey.__slots__))
    return Hits(distance, primitive, kind, seen, covered)
