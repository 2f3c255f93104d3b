"""Features on occupied voxels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from teachers.sparse.grid import Backend, Grid


@dataclass(frozen=True, slots=True)
class SparseTensor:
    """N voxels with C features each.

    features: [N, C], any floating type
    stride: base voxels from one voxel to the next
    grid: the pass it belongs to; tensors can meet only within one
    """

    features: Tensor
    stride: int
    grid: Grid

    @staticmethod
    def open(features: Tensor, coordinates: Tensor, backend: Backend) -> SparseTensor:
        """Start a pass from features [N, C] on int32 [N, 4] (batch, x, y, z) voxels, each once, in any order.

        Raises CoordinateError for coordinates that are not that, ValueError where the numbers of rows differ.
        """
        if features.ndim != 2 or len(features) != len(coordinates):
            raise ValueError(f"Expected features [{len(coordinates)}, C], got: {list(features.shape)}")
        return SparseTensor(features, 1, backend.open(coordinates))

    @property
    def coordinates(self) -> Tensor:
        """Return int32 [N, 4] (batch, x, y, z), in base voxels: multiples of the stride."""
        return self.grid.level(self.stride).coordinates

    def with_features(self, features: Tensor) -> SparseTensor:
        """Return the same voxels with other features [N, D]."""
        return replace(self, features=features)

    def __add__(self, other: SparseTensor) -> SparseTensor:
        """Return the sum, voxel by voxel. Raises ValueError unless both are on the same voxels."""
        self._check_same_voxels(other)
        return self.with_features(self.features + other.features)

    def concatenate(self, other: SparseTensor) -> SparseTensor:
        """Return this tensor's channels followed by the other's. Raises ValueError unless on the same voxels."""
        self._check_same_voxels(other)
        return self.with_features(torch.cat([self.features, other.features], 1))

    def _check_same_voxels(self, other: SparseTensor) -> None:
        if self.grid is not other.grid or self.stride != other.stride:
            passes = "one pass" if self.grid is other.grid else "two passes"
            raise ValueError(
                f"Expected tensors on the same voxels, got strides {self.stride}, {other.stride} of {passes}"
            )
