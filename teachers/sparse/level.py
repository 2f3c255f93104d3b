"""The occupied voxels of one resolution, and finding them by position."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# A key holds (batch, x, y, z) as 9 + 18 + 18 + 18 bits, so that keys sort like coordinates and a neighbor's key is
# one addition away. The margin keeps neighbors from running over into the next field.
_AXIS_BITS = 18
_BIAS = 1 << (_AXIS_BITS - 1)
_MARGIN = 1 << 12
MAX_BATCH = (1 << 9) - 1
MAX_COORDINATE = _BIAS - _MARGIN


class CoordinateError(ValueError):
    """Coordinates are not what a sparse tensor needs."""


@dataclass(frozen=True, slots=True)
class Level:
    """N occupied voxels.

    coordinates: int32 [N, 4] as (batch, x, y, z) in base voxels: multiples of the level's stride
    keys: int64 [N], ascending
    rows: int64 [N], the row of `coordinates` that each key stands for; None where they are in the same order
    """

    coordinates: Tensor
    keys: Tensor
    rows: Tensor | None

    @staticmethod
    def of(coordinates: Tensor) -> Level:
        """Index integers [N, 4] (batch, x, y, z). Raises CoordinateError for other types, a voxel too far or twice."""
        _check_shape(coordinates)
        if not len(coordinates):
            return Level(coordinates.int(), pack(coordinates), None)
        keys, rows = pack(coordinates).sort()
        facts = [(keys[1:] != keys[:-1]).all(), (rows[1:] > rows[:-1]).all()]
        # All that the host has to know about them comes in one answer: a GPU is waited for once.
        *ends, distinct, in_order = torch.cat([*_ends(coordinates), torch.stack(facts).long()]).tolist()
        _check_range(ends[:4], ends[4:])
        if not distinct:
            raise CoordinateError("a voxel appears twice; average the points of a voxel first (Points.voxelize)")
        return Level(coordinates.int(), keys, None if in_order else rows)

    def __len__(self) -> int:
        return len(self.keys)

    def find_columns(self, first: Tensor, height: int, step: int) -> Tensor:
        """Return int64 [height, ...], the rows of the voxels at `first`, `first + step` … along z; -1 where none is.

        first: int64 [...], keys; best ascending, for then the search walks through memory in order
        step: the level's stride. Nothing lies between two steps, so one binary search serves the whole column.
        """
        found = torch.full((height, *first.shape), -1, dtype=torch.int64, device=first.device)
        if not len(self):
            return found
        position = torch.searchsorted(self.keys, first)
        for i in range(height):
            here = position.clamp(max=len(self) - 1)
            hit = self.keys[here] == first + i * step
            row = here if self.rows is None else self.rows[here]
            torch.where(hit, row, found[i], out=found[i])
            position = position + hit
        return found


def check_coordinates(coordinates: Tensor) -> None:
    """Raise CoordinateError unless these are int32 or int64 [N, 4] within the range that keys can hold."""
    _check_shape(coordinates)
    if len(coordinates):
        ends = torch.cat(_ends(coordinates)).tolist()
        _check_range(ends[:4], ends[4:])


def _check_shape(coordinates: Tensor) -> None:
    if coordinates.dtype not in (torch.int32, torch.int64) or coordinates.ndim != 2 or coordinates.shape[1] != 4:
        raise CoordinateError(
            f"Expected int32 or int64 [N, 4] (batch, x, y, z), got: {coordinates.dtype} {list(coordinates.shape)}"
        )


def _ends(coordinates: Tensor) -> list[Tensor]:
    """Return the lowest and the highest int64 [4] of voxels [N, 4]."""
    return [end.long() for end in torch.aminmax(coordinates, dim=0)]


def _check_range(lowest: list[int], highest: list[int]) -> None:
    if lowest[0] < 0 or highest[0] > MAX_BATCH:
        raise CoordinateError(f"Expected batch numbers 0 to {MAX_BATCH}, got: {lowest[0]} to {highest[0]}")
    if min(lowest[1:]) < -MAX_COORDINATE or max(highest[1:]) > MAX_COORDINATE:
        raise CoordinateError(
            f"Expected voxels within {MAX_COORDINATE} of the origin, got: {lowest[1:]} to {highest[1:]}; "
            "a larger voxel or an origin nearer to the points helps"
        )


def pack(coordinates: Tensor) -> Tensor:
    """Return int64 [...] keys of integer (batch, x, y, z) [..., 4]."""
    batch, x, y, z = coordinates.long().unbind(-1)
    return (((((batch << _AXIS_BITS) + x + _BIAS) << _AXIS_BITS) + y + _BIAS) << _AXIS_BITS) + z + _BIAS


def unpack(keys: Tensor) -> Tensor:
    """Return int32 [..., 4] (batch, x, y, z) of keys."""
    mask = (1 << _AXIS_BITS) - 1
    axes = [((keys >> (_AXIS_BITS * place)) & mask) - _BIAS for place in (2, 1, 0)]
    return torch.stack([keys >> (3 * _AXIS_BITS), *axes], -1).int()


def key_step(x: int, y: int, z: int) -> int:
    """Return what to add to a key to move by (x, y, z) base voxels."""
    return (((x << _AXIS_BITS) + y) << _AXIS_BITS) + z
