from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datalake.synthetic.primitives import (
    TAPER_X,
    TAPER_Y,
    Primitives,
    Shape,
    entry_distance,
    surface,
    unit_normals,
)

_shapes = st.sampled_from(list(Shape))
_numbers = st.floats(-4, 4, width=32)
_points = st.tuples(_numbers, _numbers, _numbers)


def _is_inside(shape: Shape, point: np.ndarray, slack: float) -> np.ndarray:
    """Tell which points [3, ...] lie in a unit shape that is swollen by `slack`, from its definition."""
    x, y, z = point
    shrunk = (1 + z) / 2
    if shape is Shape.BOX:
        return np.abs(point).max(0) <= 1 + slack
    if shape is Shape.TAPER:
        in_x = np.abs(x) <= 1 - TAPER_X * shrunk + slack
        return in_x & (np.abs(y) <= 1 - TAPER_Y * shrunk + slack) & (np.abs(z) <= 1 + slack)
    if shape is Shape.SPHERE:
        return np.sqrt((point**2).sum(0)) <= 1 + slack
    if shape is Shape.CYLINDER:
        return (np.hypot(x, y) <= 1 + slack) & (np.abs(z) <= 1 + slack)
    return (np.hypot(x, y) <= 1 - shrunk + slack) & (np.abs(z) <= 1 + slack)


def _ray(start: tuple[float, ...], target: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    origin = np.array(start, np.float32)[:, None] * 3
    towards = np.array(target, np.float32)[:, None] / 3 - origin
    return origin, towards / np.maximum(np.linalg.norm(towards), 1e-3)


@settings(max_examples=200, deadline=None)
@given(_shapes, _points, _points)
def test_entry_lies_on_the_surface(shape: Shape, start: tuple[float, ...], target: tuple[float, ...]) -> None:
    origin, direction = _ray(start, target)
    t = entry_distance(shape, origin, direction)
    if np.isfinite(t[0]):
        point = origin + t * direction
        assert _is_inside(shape, point, 2e-3)[0]
        assert not _is_inside(shape, point, -2e-3)[0]


@settings(max_examples=200, deadline=None)
@given(_shapes, _points, _points)
def test_entry_is_the_nearest_hit(shape: Shape, start: tuple[float, ...], target: tuple[float, ...]) -> None:
    origin, direction = _ray(start, target)
    t = float(entry_distance(shape, origin, direction)[0])
    steps = np.linspace(0, min(t, 30.0), 400, endpoint=False, dtype=np.float32)
    if not _is_inside(shape, origin, 5e-3)[0]:
        assert not _is_inside(shape, origin + steps * direction, -5e-3).any()


@pytest.mark.parametrize("shape", list(Shape))
def test_no_ray_at_a_shape_misses_it(shape: Shape) -> None:
    rng = np.random.default_rng(0)
    inside = rng.uniform(-1, 1, (3, 4000)).astype(np.float32)
    inside = inside[:, _is_inside(shape, inside, -0.05)]
    origin = rng.normal(size=inside.shape).astype(np.float32)
    origin *= 5 / np.linalg.norm(origin, axis=0)
    assert np.isfinite(entry_distance(shape, origin, inside - origin)).all()


@pytest.mark.parametrize("shape", list(Shape))
def test_normals_point_against_the_ray(shape: Shape) -> None:
    rng = np.random.default_rng(1)
    origin = rng.normal(size=(3, 3000)).astype(np.float32)
    origin *= 6 / np.linalg.norm(origin, axis=0)
    direction = rng.uniform(-0.7, 0.7, origin.shape).astype(np.float32) - origin
    t = entry_distance(shape, origin, direction)
    met = np.isfinite(t)
    point = (origin + t * direction)[:, met].T
    normal = unit_normals(np.full(len(point), shape), point)
    length = np.linalg.norm(normal, axis=1) * np.linalg.norm(direction[:, met], axis=0)
    assert ((normal * direction[:, met].T).sum(1) / length < 0.03).all()


def test_small_far_spheres_are_met_where_they_are() -> None:
    radius, away = 0.1, 150.0
    sphere = Primitives(
        shape=np.array([Shape.SPHERE], np.int8),
        center=np.array([[away, 0.0, 0.0]]),
        rotation=np.eye(3)[None],
        half_size=np.full((1, 3), radius),
        material=np.zeros(1, np.int16),
        kind=np.zeros(1, np.int16),
        color=np.zeros((1, 3), np.float32),
        instance=np.zeros(1, np.int32),
        salt=np.zeros(1, np.int32),
    )
    direction = np.array([[1.0], [0.0], [0.0]], np.float32)
    origin = (sphere.to_unit[0] @ -sphere.center[0][:, None]).astype(np.float32)
    t = entry_distance(Shape.SPHERE, origin, sphere.to_unit[0].astype(np.float32) @ direction)
    assert t[0] == pytest.approx(away - radius, abs=1e-3)
    normal, _ = surface(sphere, np.zeros(1, int), np.zeros((3, 1)), direction, t)
    assert normal[0] == pytest.approx([-1, 0, 0], abs=1e-2)
