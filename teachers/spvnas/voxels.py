"""Scans to the network's input: one point a voxel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from teachers.sparse.level import check_coordinates, pack
from teachers.spvnas.scan import Scan


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


def voxelise_scans(scans: Sequence[Scan], voxel_m: float, device: torch.device) -> VoxelBatch:
    """Return the scans' voxels of side `voxel_m`, ordered by scan, x, y, z, as tensors on `device`.

    A point's voxel is round(xyz / voxel_m) - the scan's lowest: the rounding (half to even, in float32) and the choice
    of the first point are those the public networks were trained with. Raises CoordinateError where a scan is wider
    than coordinates can say (6 km) or where there are too many scans (512).
    """
    points = [torch.from_numpy(scan.xyz_m).to(device) for scan in scans]
    # On a GPU division by a Python number becomes a multiplication, which rounds some points into the next voxel.
    side = torch.tensor(voxel_m, device=device)
    corners = [(xyz / side).round().int() for xyz in points]
    shifted = [corner - corner.amin(0) if len(corner) else corner for corner in corners]
    coordinates = torch.cat([_with_batch(corner, number) for number, corner in enumerate(shifted)])
    check_coordinates(coordinates)
    keys, order = pack(coordinates).sort(stable=True)
    first = torch.ones_like(keys, dtype=torch.bool)
    first[1:] = keys[1:] != keys[:-1]
    taken = order[first]
    voxel = torch.empty_like(order)
    voxel[order] = first.cumsum(0) - 1
    intensity = torch.cat([torch.from_numpy(scan.intensity).to(device) for scan in scans])
    features = torch.cat([torch.cat(points)[taken], intensity[taken, None]], 1)
    occupied = coordinates[taken]
    return VoxelBatch(features, occupied[:, 1:], occupied[:, 0], taken, voxel, tuple(len(scan) for scan in scans))


def _with_batch(voxels: Tensor, number: int) -> Tensor:
    return torch.cat([voxels.new_full((len(voxels), 1), number), voxels], 1)
