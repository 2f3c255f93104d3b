"""The occupied voxels of one resolution, and finding them by position."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

# A key holds (batch, x, y, z) as 9 + 18 + 18 + 18 bits, so that keys sort like coordinates and a neighbor's key is
# one addition away. The margin keeps neighbors from running over into the next field.
_AXIS_BITS = 18
_BIAS = 1 << (_AXIS_BITS - 1)
_MARGIN = 1 << 12
MAX_BATCH = (1 << 9) - 1
MAX_COORDINATE = _BIAS - _MARGIN
# Strides whose voxels are counted beforehand on a GPU: those of networks with four levels below the first.
_STRIDES = (2, 4, 8, 16)


class CoordinateError(ValueError):
    """Coordinates are not what a sparse tensor needs."""


@dataclass(frozen=True, slots=True)
class Level:
    """N occupied voxels.

    coordinates: int32 [N, 4] as (batch, x, y, z) in base voxels: multiples of the level's stride
    keys: int64 [N], ascending
    rows: int64 [N], the row of `coordinates` that each key stands for; None where they are in the same order
    counts: by larger strides, how many voxels there are; where it is known already
    """

    coordinates: Tensor
    keys: Tensor
    rows: Tensor | None
    counts: Mapping[int, int] = field(default_factory=dict)

    @staticmethod
    def of(coordinates: Tensor) -> Level:
        """Index integers [N, 4] (batch, x, y, z). Raises CoordinateError for other types, a voxel too far or twice."""
        _check_shape(coordinates)
        if not len(coordinates):
            return Level(coordinates.int(), pack(coordinates), None)
        keys, rows = pack(coordinates).sort()
        facts = [(keys[1:] != keys[:-1]).all(), (rows[1:] > rows[:-1]).all()]
        # All that the host has to know about them comes in one answer: a GPU is waited for once.
        *reach, once, in_order = torch.cat([*ends(coordinates), torch.stack(facts).long()]).tolist()
        check_range(reach[:4], reach[4:])
        if not once:
            raise CoordinateError("a voxel appears twice; average the points of a voxel first (Points.voxelize)")
        return Level(coordinates.int(), keys, None if in_order else rows)

    @staticmethod
    def occupied(coordinates: Tensor) -> tuple[Level, Tensor]:
        """Return the voxels that integers [P, 4] (batch, x, y, z) name, ascending, and of each the row int64 [P].

        A GPU is waited for once: the voxels of larger strides are counted with these. Nobody waits for a CPU, which
        would take long for that. Raises CoordinateError for other types and for a voxel too far.
        """
        return occupied(coordinates, () if coordinates.device.type == "cpu" else _STRIDES)

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


def occupied(coordinates: Tensor, strides: tuple[int, ...]) -> tuple[Level, Tensor]:
    """Return what `Level.occupied` does, with the voxels of these larger strides, powers of two, counted."""
    _check_shape(coordinates)
    keys = pack(coordinates)
    if not len(keys):
        return Level(coordinates.int(), keys, None), keys
    blocks = [keys]
    for stride in strides:
        # Strides are powers of two: what is left of a number without its last bits is their multiple below it.
        corner = coordinates & -stride
        corner[:, 0] = coordinates[:, 0]
        blocks.append(pack(corner))
    ranked = torch.stack(blocks).sort(1).values
    counts = (ranked[:, 1:] != ranked[:, :-1]).sum(1) + 1
    facts = torch.cat([*ends(coordinates), counts]).tolist()
    check_range(facts[:4], facts[4:8])
    voxels, row = distinct(keys, facts[8])
    return Level(unpack(voxels), voxels, None, dict(zip(strides, facts[9:], strict=True))), row


def distinct(keys: Tensor, count: int | None) -> tuple[Tensor, Tensor]:
    """Return the distinct keys int64 [n], ascending, of int64 [P], and of each the place among them, int64 [P].

    count: n, if it is known: then nobody has to wait for it
    """
    if count is None:
        found: tuple[Tensor, Tensor] = torch.unique(keys, return_inverse=True)
        return found
    ranked, order = keys.sort()
    rank = rank_of(ranked)
    place = torch.empty_like(order).scatter_(0, order, rank)
    return torch.empty_like(keys[:count]).scatter_(0, rank, ranked), place


def rank_of(ranked: Tensor) -> Tensor:
    """Return int64 [P], for each of ascending keys the place of its value among the distinct ones."""
    return torch.cat([torch.zeros_like(ranked[:1]), (ranked[1:] != ranked[:-1]).cumsum(0)])


def check_coordinates(coordinates: Tensor) -> None:
    """Raise CoordinateError unless these are int32 or int64 [N, 4] within the range that keys can hold."""
    _check_shape(coordinates)
    if len(coordinates):
        reach = torch.cat(ends(coordinates)).tolist()
        check_range(reach[:4], reach[4:])


def _check_shape(coordinates: Tensor) -> None:
    if coordinates.dtype not in (torch.int32, torch.int64) or coordinates.ndim != 2 or coordinates.shape[1] != 4:
        raise CoordinateError(
            f"Expected int32 or int64 [N, 4] (batch, x, y, z), got: {coordinates.dtype} {list(coordinates.shape)}"
        )


def ends(coordinates: Tensor) -> list[Tensor]:
    """Return the lowest and the highest int64 [4] of voxels [N, 4]."""
    return [end.long() for end in torch.aminmax(coordinates, dim=0)]


def check_range(lowest: list[int], highest: list[int]) -> None:
    """Raise CoordinateError unless voxels between these [4] are within the range that keys can hold."""
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
