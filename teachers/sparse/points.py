"""Points, the voxels they lie in, and features that travel between the two."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from teachers.sparse.grid import Backend, Grid
from teachers.sparse.level import Level, key_step, pack
from teachers.sparse.tensor import SparseTensor
from teachers.transfer import on_device

Interpolation = Literal["trilinear", "nearest"]


class Points:
    """P points of one pass, and where they lie on its voxels.

    positions: float32 [P, 3] in base voxels; a point lies in the voxel that floor gives
    batch: int [P], which cloud each belongs to
    grid: the pass, on the voxels that hold at least one point

    Places are looked up once for every stride.
    """

    def __init__(self, positions: Tensor, batch: Tensor, backend: Backend) -> None:
        if positions.ndim != 2 or positions.shape[1] != 3 or batch.shape != positions.shape[:1]:
            raise ValueError(
                f"Expected positions [P, 3] and batch [P], got: {list(positions.shape)} and {list(batch.shape)}"
            )
        self.positions = positions
        self.batch = batch
        self._home: dict[int, Tensor] = {}
        self._corners: dict[int, tuple[Tensor, Tensor]] = {}
        self._counts: dict[int, Tensor] = {}
        voxels, self._home[1] = Level.occupied(self._floor(1))
        self.grid: Grid = backend.open(voxels)

    def __len__(self) -> int:
        return len(self.positions)

    def voxelize(self, features: Tensor, stride: int) -> SparseTensor:
        """Return at `stride` the mean of the features [P, C] of the points in each voxel, summed in float32."""
        home = self._home_rows(stride)
        voxels = len(self.grid.level(stride))
        precise = features.to(torch.promote_types(features.dtype, torch.float32))
        total = precise.new_zeros(voxels, features.shape[1]).index_add_(0, home, precise)
        if stride not in self._counts:
            # `bincount` would have a GPU waited for.
            self._counts[stride] = home.new_zeros(voxels).index_add_(0, home, torch.ones_like(home))
        return SparseTensor((total / self._counts[stride][:, None]).to(features.dtype), stride, self.grid)

    def devoxelize(self, x: SparseTensor, interpolation: Interpolation = "trilinear") -> Tensor:
        """Return [P, C], the features of x at the points.

        trilinear: between the eight voxels whose corners surround the point, of which those that are empty have no
        say: the weights of the others are scaled to sum to one
        nearest: those of the voxel that the point lies in
        """
        if x.grid is not self.grid:
            raise ValueError("the tensor belongs to another pass than these points")
        if interpolation == "nearest":
            return x.features.index_select(0, self._home_rows(x.stride))
        rows, weights = self._corner_rows(x.stride)
        return functional.embedding_bag(rows, x.features, per_sample_weights=weights.to(x.features.dtype), mode="sum")

    def _floor(self, stride: int) -> Tensor:
        voxel = self.positions.floor().long()
        corner = torch.div(voxel, stride, rounding_mode="floor") * stride
        return torch.cat([self.batch.long()[:, None], corner], 1)

    def _home_rows(self, stride: int) -> Tensor:
        if stride not in self._home:
            self._home[stride] = self.grid.level(stride).find_columns(pack(self._floor(stride)), 1, stride)[0]
        return self._home[stride]

    def _corner_rows(self, stride: int) -> tuple[Tensor, Tensor]:
        """Return int64 [P, 8] rows, 0 where there is no voxel, and float32 [P, 8] weights, 0 there."""
        if stride not in self._corners:
            corner = self._floor(stride)
            keys = pack(corner)
            level = self.grid.level(stride)
            steps = torch.tensor([key_step(x * stride, y * stride, 0) for x in (0, 1) for y in (0, 1)])
            columns = level.find_columns(keys[:, None] + on_device(steps, keys.device), 2, stride)
            rows = columns.permute(1, 2, 0).flatten(1)
            # Rounding must not take the last say from the voxel that the point lies in: the weights would be 0 / 0.
            upper = ((self.positions - corner[:, 1:]) / stride).clamp(max=1 - 2**-23)
            x, y, z = torch.stack([1 - upper, upper], -1).unbind(1)
            weights = (x[:, :, None, None] * y[:, None, :, None] * z[:, None, None, :]).flatten(1)
            weights = torch.where(rows >= 0, weights, 0)
            weights = weights / weights.sum(1, keepdim=True)
            self._corners[stride] = rows.clamp(min=0), weights
        return self._corners[stride]
