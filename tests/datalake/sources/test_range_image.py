"""Range image to points, against a slow reference in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from datalake.sources.range_image import beam_inclinations, compensate_motion, laser_rays
from tests.frames import MAP_ORIGIN_M, transform
from tests.reference import slow_point

_BOUNDED = settings(max_examples=60, deadline=None, derandomize=True)
_ANGLE = st.floats(-math.pi, math.pi)
_TILT = st.floats(-0.4, 0.4)
_RANGE_M = 75.0


def _extrinsics() -> st.SearchStrategy[NDArray[np.float64]]:
    metre = st.floats(-5, 5)
    return st.builds(transform, _TILT, _TILT, _ANGLE, st.tuples(metre, metre, metre))


@_BOUNDED
@given(_extrinsics(), st.integers(1, 5), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_points_of_a_shared_pose_are_the_reference(
    laser_to_vehicle: NDArray[np.float64], rows: int, columns: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    ascending = np.sort(random.uniform(-0.5, 0.5, rows))
    range_m = random.uniform(0.5, _RANGE_M, rows * columns).astype(np.float32)
    rays = laser_rays(beam_inclinations(ascending, 0, 0, rows), columns, laser_to_vehicle)
    points = rays.points(np.arange(rows * columns), range_m)
    for cell in range(rows * columns):
        row, column = divmod(cell, columns)
        expected = slow_point(
            row,
            column,
            float(range_m[cell]),
            ascending=ascending,
            columns=columns,
            laser_to_vehicle=laser_to_vehicle,
        )
        np.testing.assert_allclose(points[:, cell], expected, rtol=0, atol=1e-4)


@_BOUNDED
@given(_extrinsics(), st.tuples(_ANGLE, _ANGLE, _ANGLE), st.integers(0, 2**32 - 1))
def test_points_with_poses_of_their_own_are_the_reference_at_map_coordinates(
    laser_to_vehicle: NDArray[np.float64], attitude: tuple[float, float, float], seed: int
) -> None:
    random = np.random.default_rng(seed)
    rows, columns = 3, 5
    ascending = np.sort(random.uniform(-0.5, 0.5, rows))
    range_m = random.uniform(0.5, _RANGE_M, rows * columns).astype(np.float32)
    vehicle_to_world = transform(*attitude, at=MAP_ORIGIN_M)
    pixel_pose = np.tile([*attitude, *MAP_ORIGIN_M], (rows, columns, 1))
    pixel_pose += random.uniform(-1, 1, pixel_pose.shape)
    pixel_pose = pixel_pose.astype(np.float32)
    rays = laser_rays(beam_inclinations(ascending, 0, 0, rows), columns, laser_to_vehicle)
    points = compensate_motion(rays, pixel_pose, vehicle_to_world).points(np.arange(rows * columns), range_m)
    for cell in range(rows * columns):
        row, column = divmod(cell, columns)
        expected = slow_point(
            row,
            column,
            float(range_m[cell]),
            ascending=ascending,
            columns=columns,
            laser_to_vehicle=laser_to_vehicle,
            pixel_pose=pixel_pose[row, column],
            vehicle_to_world=vehicle_to_world,
        )
        np.testing.assert_allclose(points[:, cell], expected, rtol=0, atol=2e-4)


def test_pixel_poses_equal_to_the_frame_pose_change_nothing() -> None:
    vehicle_to_world = transform(0.1, -0.2, 1.1, at=MAP_ORIGIN_M)
    pose = np.tile([0.1, -0.2, 1.1, *MAP_ORIGIN_M], (2, 6, 1)).astype(np.float32)
    rays = laser_rays(np.array([0.1, -0.1]), 6, transform(yaw=0.3, at=(1, 0, 2)))
    cells, range_m = np.arange(12), np.full(12, 30, np.float32)
    moved = compensate_motion(rays, pose, vehicle_to_world).points(cells, range_m)
    np.testing.assert_allclose(moved, rays.points(cells, range_m), rtol=0, atol=1e-3)


def test_first_row_is_the_highest_beam() -> None:
    rays = laser_rays(beam_inclinations(np.array([-0.4, 0.0, 0.2]), 0, 0, 3), 4, np.eye(4))
    assert rays.direction.reshape(3, 3, 4)[2, :, 0] == pytest.approx(np.sin([0.2, 0.0, -0.4]))


def test_middle_of_the_image_looks_along_the_vehicle() -> None:
    # Column W/2 starts half a cell to the right of x, whatever the laser's own yaw.
    direction = laser_rays(np.array([0.0]), 100, transform(yaw=0.8)).direction
    assert np.arctan2(direction[1], direction[0])[49:51] == pytest.approx([np.pi / 100, -np.pi / 100], abs=1e-6)


def test_columns_turn_clockwise_seen_from_above() -> None:
    direction = laser_rays(np.array([0.0]), 36, np.eye(4)).direction
    azimuth = np.arctan2(direction[1], direction[0])
    assert (np.diff(azimuth) < 0).all()


def test_uniform_beams_lie_at_the_centers_of_equal_cells() -> None:
    found = beam_inclinations(np.zeros(0), -0.4, 0.4, 4)
    assert found == pytest.approx([0.3, 0.1, -0.1, -0.3])


def test_beams_for_another_number_of_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="3 beam inclinations for 4 rows"):
        beam_inclinations(np.zeros(3), 0, 0, 4)
