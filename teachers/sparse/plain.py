"""Sparse convolution in nothing but torch: any device, any floating type, gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from teachers.sparse.kernel_map import strided_map, submanifold_map
from teachers.sparse.level import Level
from teachers.sparse.level_maps import LevelMaps
from teachers.sparse.pair_matmul import pair_matmul
from teachers.sparse.window import Window


class PlainBackend:
    """The backend that is always there."""

    name = "plain"

    def obstacle(self, device: torch.device) -> str | None:
        """Return None: torch runs wherever its tensors are."""
        del device
        return None

    def open(self, voxels: Tensor | Level) -> PlainGrid:
        """Start a pass on int32 [N, 4] (batch, x, y, z). Raises CoordinateError if they are not voxels, each once."""
        return PlainGrid(voxels if isinstance(voxels, Level) else Level.of(voxels))


class PlainGrid:
    """Levels and kernel maps of one pass."""

    def __init__(self, base: Level) -> None:
        self._maps = LevelMaps(base, submanifold_map, strided_map)

    def level(self, stride: int) -> Level:
        """Return the voxels at `stride`."""
        return self._maps.level(stride)

    def convolve(self, features: Tensor, kernel: Tensor, stride: int, window: Window) -> Tensor:
        """Return [M, out]: features [N, in] at `stride`, through kernel [K, in, out]."""
        found = self._maps.find(stride, window)
        return pair_matmul(features, kernel, found.reversed() if window.transposed else found)
