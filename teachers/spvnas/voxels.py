"""Scans to the network's input: one point a voxel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from teachers.sparse.level import check_range, ends, pack, rank_of
from teachers.spvnas.scan import NOT_FINITE, Scan, ScanError
from teachers.transfer import on_device


@dataclass(frozen=True, slots=True)
class VoxelBatch:
    """P points of several scans, of which V stand for a voxel each.

    features: float32 [V, 4], x, y, z in metres and intensity of the point that was taken
    positions: int32 [V, 3], the voxel; the lowest of each scan is 0 along every axis
    batch: int32 [V], the scan
    taken: int64 [V], the point, counted through all scans: the first in its voxel
    voxel: int64 [P], the voxel of each point
    points: number of points of each scan
    """

    features: Tensor
    positions: Tensor
    batch: Tensor
    taken: Tensor
    voxel: Tensor
    points: tuple[int, ...]


def voxelize_scans(scans: Sequence[Scan], voxel_m: float, device: torch.device) -> VoxelBatch:
    """Return the scans' voxels as `voxelize` does."""
    points = np.concatenate([np.concatenate([scan.xyz_m, scan.intensity[:, None]], 1) for scan in scans])
    return voxelize(on_device(torch.from_numpy(points), device), tuple(len(scan) for scan in scans), voxel_m)


def voxelize(points: Tensor, counts: tuple[int, ...], voxel_m: float) -> VoxelBatch:
    """Return the voxels of side `voxel_m` of several scans, ordered by scan, x, y, z.

    points: float32 [P, 4], x, y, z in metres and intensity; of each scan `counts` says how many, one after the other

    A point's voxel is round(xyz / voxel_m) - the scan's lowest: the rounding (half to even, in float32) and the choice
    of the first point are those the public networks were trained with. Raises CoordinateError where a scan is wider
    than coordinates can say (6 km) or where there are too many scans (512), ScanError where a point is NaN or infinite.
    A GPU is waited for once.
    """
    device = points.device
    # On a GPU division by a Python number becomes a multiplication, which rounds some points into the next voxel.
    corners = (points[:, :3] / points.new_full((), voxel_m)).round().int()
    number = on_device(torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)), device)
    scan = number[:, None].expand(-1, 3)
    lowest = corners.new_zeros(len(counts), 3).scatter_reduce_(0, scan, corners, "amin", include_self=False)
    coordinates = torch.cat([number[:, None].int(), corners - lowest[number]], 1)
    keys, order = pack(coordinates).sort(stable=True)
    rank = rank_of(keys)
    voxels = 0
    if len(points):
        # All that the host has to know, in one answer.
        *reach, last, finite = torch.cat([*ends(coordinates), rank[-1:], points.isfinite().all()[None].long()]).tolist()
        if not finite:
            raise ScanError(NOT_FINITE)
        check_range(reach[:4], reach[4:])
        voxels = last + 1
    # Of the points of a voxel the first.
    taken = order.new_full((voxels,), len(order)).scatter_reduce_(0, rank, order, "amin")
    voxel = torch.empty_like(order).scatter_(0, order, rank)
    occupied = coordinates[taken]
    return VoxelBatch(points[taken], occupied[:, 1:], occupied[:, 0], taken, voxel, counts)
