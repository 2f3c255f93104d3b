"""Convex solids and where rays meet them.

Every solid is an affine image of one of five unit shapes. The ray parameter survives an affine map, so a ray
is carried into the unit frame, met there, and the parameter is the distance along the original unit ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import IntEnum

import numpy as np


class Shape(IntEnum):
    """The unit shapes; all fit the cube [-1, 1]^3."""

    BOX = 0  # the cube itself
    TAPER = 1  # the cube with its top face (z = 1) drawn in: a vehicle's cabin
    SPHERE = 2  # radius 1
    CYLINDER = 3  # radius 1 about z, |z| <= 1
    CONE = 4  # radius 1 at z = -1, apex at z = 1


# Share of the half length (x) and half width (y) that a TAPER loses from bottom to top.
TAPER_X = 0.34
TAPER_Y = 0.16
_TAPER = np.array([[TAPER_X, TAPER_Y]], np.float32)

_CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float64)
EDGES = np.array([[i, j] for i in range(8) for j in range(i + 1, 8) if np.abs(_CORNERS[i] - _CORNERS[j]).sum() == 2])
"""int [12, 2]: the pairs of corners (as `Primitives.corners` orders them) that an edge joins."""


@dataclass(frozen=True, slots=True)
class Primitives:
    """P solids of one scene, one array per property, in metres in the scene frame."""

    shape: np.ndarray
    """int8 [P]: `Shape`."""
    center: np.ndarray
    """float64 [P, 3]."""
    rotation: np.ndarray
    """float64 [P, 3, 3]: columns are the solid's own axes."""
    half_size: np.ndarray
    """float64 [P, 3]: along its own axes."""
    material: np.ndarray
    """int16 [P]: `Material`."""
    kind: np.ndarray
    """int16 [P]: `Kind`."""
    color: np.ndarray
    """float32 [P, 3]: linear RGB reflectance, 0 to 1."""
    instance: np.ndarray
    """int32 [P]: number of the object it belongs to, 0 where it belongs to none."""
    salt: np.ndarray
    """int32 [P]: below 997; sets the textures of like solids apart, and stays with a solid from frame to frame."""

    def __len__(self) -> int:
        return len(self.shape)

    def take(self, index: np.ndarray) -> Primitives:
        """Return the solids that `index` (integers or a mask) selects."""
        return Primitives(*(getattr(self, field.name)[index] for field in fields(self)))

    @staticmethod
    def concatenate(groups: Sequence[Primitives]) -> Primitives:
        """Return the solids of all groups, in order."""
        columns = (np.concatenate([getattr(g, f.name) for g in groups]) for f in fields(Primitives))
        return Primitives(*columns)

    @property
    def to_unit(self) -> np.ndarray:
        """float64 [P, 3, 3]: rotates and scales the scene frame to each solid's unit frame."""
        return self.rotation.transpose(0, 2, 1) / self.half_size[:, :, None]

    @property
    def corners(self) -> np.ndarray:
        """float64 [P, 8, 3]: corners of the bounding boxes."""
        local = _CORNERS * self.half_size[:, None, :]
        return self.center[:, None, :] + local @ self.rotation.transpose(0, 2, 1)

    @property
    def radius_m(self) -> np.ndarray:
        """float64 [P]: radii of the bounding spheres."""
        return np.linalg.norm(self.half_size, axis=1)


def entry_distance(shape: Shape, origin: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Return the ray parameter at which rays enter a unit shape, infinity where they miss.

    `origin` and `direction` are float32 [3, ...] in the unit frame and broadcast. A ray that starts inside
    the shape or has it behind misses it.
    """
    near, far = _interval(shape, origin, direction)
    return np.where((near <= far) & (near > 0), near, np.float32(np.inf))


def _interval(shape: Shape, origin: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ray parameters between which rays are inside a unit shape; near > far, or NaN: never."""
    # Rays that miss give roots of negative numbers; NaN then fails every comparison.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if shape is Shape.BOX:
            inverse = _inverse(direction)
            middle, half = -origin * inverse, np.abs(inverse)
            return (middle - half).max(0), (middle + half).min(0)
        if shape is Shape.TAPER:
            return _taper_interval(origin, direction)
        if shape is Shape.CONE:
            return _cone_interval(origin, direction)
        # Round shapes: from the point of closest approach, which keeps float32 exact for small, far solids.
        axes = 3 if shape is Shape.SPHERE else 2
        squared = np.maximum((direction[:axes] ** 2).sum(0), 1e-12)
        closest = -(origin[:axes] * direction[:axes]).sum(0) / squared
        miss = ((origin[:axes] + closest * direction[:axes]) ** 2).sum(0)
        half_chord = np.sqrt((1 - miss) / squared)
        near, far = closest - half_chord, closest + half_chord
        if shape is Shape.SPHERE:
            return near, far
        inverse = _inverse(direction[2])
        middle, half = -origin[2] * inverse, np.abs(inverse)
        return np.maximum(near, middle - half), np.minimum(far, middle + half)


def _inverse(direction: np.ndarray) -> np.ndarray:
    """Return 1 / direction; components near zero become so small that a ray in a slab stays in it."""
    return 1 / np.where(np.abs(direction) < 1e-12, np.float32(1e-12), direction)


def _taper_interval(origin: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    inverse = _inverse(direction[2])
    near = -origin[2] * inverse - np.abs(inverse)
    far = -origin[2] * inverse + np.abs(inverse)
    for axis, loss in ((0, TAPER_X), (1, TAPER_Y)):
        for sign in (-1, 1):
            rate = sign * direction[axis] + loss / 2 * direction[2]
            crossing = (1 - loss / 2 - sign * origin[axis] - loss / 2 * origin[2]) / rate
            near = np.where(rate < 0, np.maximum(near, crossing), near)
            far = np.where(rate > 0, np.minimum(far, crossing), far)
    return near, far


def _cone_interval(origin: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Entry into the cone only: the nearest of its surface's crossings, with an open end behind."""
    flat = np.maximum((direction[:2] ** 2).sum(0), 1e-12)
    shift = -(origin[:2] * direction[:2]).sum(0) / flat
    start = origin + shift * direction
    radius, shrink = (1 - start[2]) / 2, -direction[2] / 2
    a = flat - shrink**2
    b = (start[:2] * direction[:2]).sum(0) - radius * shrink
    c = (start[:2] ** 2).sum(0) - radius**2
    root = np.sqrt(b * b - a * c)
    nearest = np.full(np.broadcast_shapes(origin.shape, direction.shape)[1:], np.inf, np.float32)
    for t in ((-b - root) / a, (-b + root) / a):
        on_side = (np.abs(start[2] + t * direction[2]) <= 1) & (t + shift > 0)
        nearest = np.where(on_side, np.minimum(nearest, t + shift), nearest)
    base = (-1 - start[2]) / direction[2]
    in_base = ((start[:2] + base * direction[:2]) ** 2).sum(0) <= 1
    nearest = np.where(in_base & (base + shift > 0), np.minimum(nearest, base + shift), nearest)
    inside = (np.abs(origin[2]) <= 1) & ((origin[:2] ** 2).sum(0) < ((1 - origin[2]) / 2) ** 2)
    return np.where(inside, np.float32(-1), nearest), np.full_like(nearest, np.finfo(np.float32).max)


def unit_normals(shape: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Return the outward normals, not normalized, at surface points of unit shapes.

    `shape` is int [N], `point` is float32 [N, 3] in the unit frame, the result float32 [N, 3].
    """
    normal = point.copy()
    rows = np.flatnonzero((shape == Shape.BOX) | (shape == Shape.CYLINDER) | (shape == Shape.TAPER))
    p, s = point[rows], shape[rows]
    tapered = s == Shape.TAPER
    lean = (1 + p[:, 2:]) / 2 * np.where(tapered[:, None], _TAPER, np.float32(0))
    closeness = np.abs(p)
    closeness[:, :2] /= np.maximum(1 - lean, 0.1)
    closeness[s == Shape.CYLINDER, 1] = 0
    closeness[s == Shape.CYLINDER, 0] = np.hypot(*p[s == Shape.CYLINDER, :2].T)
    face = closeness.argmax(1)
    flat = np.zeros_like(p)
    index = np.arange(len(rows))
    flat[index, face] = np.sign(p[index, face])
    flat[tapered & (face == 0), 2] = TAPER_X / 2
    flat[tapered & (face == 1), 2] = TAPER_Y / 2
    curved = (s == Shape.CYLINDER) & (face == 0)
    flat[curved, :2], flat[curved, 2] = p[curved, :2], 0
    normal[rows] = flat
    cone = shape == Shape.CONE
    normal[cone, 2] = np.where(point[cone, 2] < -0.999, -10, (1 - point[cone, 2]) / 4)
    return normal


def surface(
    primitives: Primitives, index: np.ndarray, origin: np.ndarray, direction: np.ndarray, distance_m: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return unit normals (scene frame) and points in unit frames, float32 [N, 3] each.

    Ray i starts at `origin[:, i]`, runs along `direction[:, i]` and meets solid `index[i]` at `distance_m[i]`.
    """
    matrix = primitives.to_unit.astype(np.float32)[index]
    offset = (origin - primitives.center[index].T).astype(np.float32) + direction * distance_m
    local = np.einsum("nij,jn->ni", matrix, offset)
    normal = np.einsum("nji,nj->ni", matrix, unit_normals(primitives.shape[index], local))
    return normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9), local
