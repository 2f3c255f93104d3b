"""Scans of SemanticKITTI and of Waymo look alike to the network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from datalake.sources.frame import LASERS, Points
from teachers.spvnas.scan import Scan, ScanError, waymo_points
from teachers.spvnas.voxels import voxelize


def random_points(count: int) -> Points:
    random = np.random.default_rng(0)
    return replace(
        Points.empty(),
        xyz_m=random.uniform(-50, 50, (3, count)).astype(np.float32),
        intensity=random.exponential(5, count).astype(np.float32),
        laser=random.integers(1, len(LASERS), count).astype(np.int8),
    )


def test_of_waymo_the_top_laser_alone_is_taken() -> None:
    points = random_points(100)
    scan = Scan.from_waymo(points)
    assert set(points.laser[scan.source]) == {LASERS.index("TOP")}
    assert len(scan) == int((points.laser == 1).sum()) > 0


def test_waymo_is_lifted_to_kittis_sensor_and_its_intensity_fits_kittis_range() -> None:
    points = random_points(100)
    scan = Scan.from_waymo(points)
    moved = points.xyz_m[:, scan.source].T - scan.xyz_m
    np.testing.assert_allclose(moved, np.broadcast_to([0, 0, 1.73], moved.shape), atol=1e-5)
    assert 0 <= scan.intensity.min() < scan.intensity.max() <= 1
    assert np.array_equal(
        np.argsort(scan.intensity[scan.intensity < 0.99]),
        np.argsort(points.intensity[scan.source][scan.intensity < 0.99]),
    )


def test_points_on_a_device_become_the_same_scan() -> None:
    points = random_points(100)
    scan = Scan.from_waymo(points)
    values = torch.from_numpy(np.concatenate([points.xyz_m, points.intensity[None]]))[:, scan.source]
    found = waymo_points(values)
    assert np.array_equal(found[:, :3].numpy(), scan.xyz_m)
    np.testing.assert_allclose(found[:, 3].numpy(), scan.intensity, rtol=1e-6)


@pytest.mark.parametrize("row", range(4))
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_a_point_that_is_not_finite_is_found_when_it_is_to_become_a_voxel(row: int, value: float) -> None:
    values = torch.rand(4, 9)
    values[row, 3] = value
    with pytest.raises(ScanError, match="NaN or infinite"):
        voxelize(waymo_points(values), (9,), 0.05)


def test_a_frame_without_lidar_is_an_empty_scan() -> None:
    assert len(Scan.from_waymo(Points.empty())) == 0


def test_a_file_of_semantickitti_is_read(scan: Scan) -> None:
    assert scan.xyz_m.shape == (123389, 3)
    assert 0 <= scan.intensity.min() < scan.intensity.max() < 1
    assert -3 < np.median(scan.xyz_m[:, 2]) < 0


def test_a_torn_file_is_refused(tmp_path: Path) -> None:
    np.zeros(7, np.float32).tofile(tmp_path / "torn.bin")
    with pytest.raises(ScanError, match=r"torn.bin: expected four float32 a point, got 7 values"):
        Scan.from_semantickitti(tmp_path / "torn.bin")


def test_points_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(ScanError, match="NaN or infinite"):
        Scan(np.full((1, 3), np.nan, np.float32), np.zeros(1, np.float32), np.arange(1))
    with pytest.raises(ScanError, match=r"Expected xyz_m \[P, 3\]"):
        Scan(np.zeros((2, 3), np.float32), np.zeros(1, np.float32), np.arange(2))
