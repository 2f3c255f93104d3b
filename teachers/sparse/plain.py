"""Sparse convolution in nothing but torch: any device, any floating type, gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from teachers.sparse.grid import BackendError
from teachers.sparse.kernel_map import KernelMap, strided_map, submanifold_map
from teachers.sparse.level import Level
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
    """Levels and kernel maps of one pass, each made when first asked for."""

    def __init__(self, base: Level) -> None:
        self._levels = {1: base}
        self._maps: dict[tuple[int, int, int], KernelMap] = {}

    def level(self, stride: int) -> Level:
        """Return the voxels at `stride`."""
        level = self._levels.get(stride)
        if level is None:
            raise BackendError(
                f"this pass has no voxels of stride {stride}, only {sorted(self._levels)}; "
                "a transposed convolution can only return to where a strided one came from"
            )
        return level

    def convolve(self, features: Tensor, kernel: Tensor, stride: int, window: Window) -> Tensor:
        """Return [M, out]: features [N, in] at `stride`, through kernel [K, in, out]."""
        return pair_matmul(features, kernel, self._map(stride, window))

    def _map(self, stride: int, window: Window) -> KernelMap:
        fine = window.output_stride(stride) if window.transposed else stride
        level = self.level(fine)
        key = (fine, window.size, window.stride)
        if key not in self._maps:
            if window.stride == 1:
                self._maps[key] = submanifold_map(level, fine, window.size)
            elif window.transposed:
                raise BackendError(
                    f"nothing to transpose: no {window.size}³ convolution has led from stride {fine} to {stride}"
                )
            else:
                coarse, self._maps[key] = strided_map(level, fine, window.size)
                self._levels.setdefault(fine * window.stride, coarse)
        return self._maps[key].reversed() if window.transposed else self._maps[key]
