"""Scans become voxels, one point each."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from teachers.sparse.level import CoordinateError
from teachers.spvnas.scan import Scan
from teachers.spvnas.voxels import voxelize_scans
from tests.teachers.spvnas.clouds import small_scan

CPU = torch.device("cpu")


def scan_of(xyz: list[list[float]]) -> Scan:
    return Scan(np.array(xyz, np.float32).reshape(-1, 3), np.arange(len(xyz), dtype=np.float32), np.arange(len(xyz)))


def test_the_first_point_of_a_voxel_stands_for_it() -> None:
    voxels = voxelize_scans([scan_of([[0.1, 0, 0], [-1, 0, 0], [0.11, 0.01, 0]])], 0.05, CPU)
    assert voxels.positions.tolist() == [[0, 0, 0], [22, 0, 0]]
    assert voxels.taken.tolist() == [1, 0]
    assert voxels.voxel.tolist() == [1, 0, 1]
    assert voxels.features[:, 3].tolist() == [1, 0]


def test_each_point_knows_its_voxel_and_each_scan_its_corner() -> None:
    scans = [small_scan(1), small_scan(2, points=300)]
    voxels = voxelize_scans(scans, 0.05, CPU)
    xyz = np.concatenate([scan.xyz_m for scan in scans])
    batch = np.repeat([0, 1], [400, 300])
    assert voxels.points == (400, 300)
    assert np.array_equal(voxels.batch[voxels.voxel].numpy(), batch)
    for number in (0, 1):
        own = batch == number
        whole = np.round(xyz[own] / np.float32(0.05)).astype(int)
        assert np.array_equal(voxels.positions[voxels.voxel].numpy()[own], whole - whole.min(0))
    assert torch.equal(voxels.voxel[voxels.taken], torch.arange(len(voxels.taken)))


def test_an_empty_scan_takes_no_voxels() -> None:
    voxels = voxelize_scans([scan_of([]), small_scan(1)], 0.05, CPU)
    assert voxels.points == (0, 400)
    assert set(voxels.batch.tolist()) == {1}


def test_a_scan_wider_than_coordinates_can_say_is_refused() -> None:
    with pytest.raises(CoordinateError, match="Expected voxels within"):
        voxelize_scans([scan_of([[0, 0, 0], [9000, 0, 0]])], 0.05, CPU)
