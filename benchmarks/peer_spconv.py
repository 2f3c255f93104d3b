"""spconv as a peer of the sparse convolutions; imported where it is installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from teachers.sparse.level import Level
from teachers.sparse.window import Window, kernel_index


class SpconvPeer:
    """spconv, layer by layer, on the voxels that plain has found."""

    def __init__(self, library: Any, levels: Callable[[int], Level]) -> None:
        self._library = library
        self._levels = levels

    def prepare(
        self, features: Tensor, kernel: Tensor, stride: int, window: Window
    ) -> tuple[Callable[[], Tensor], Tensor]:
        """Return what computes the layer with its map at hand, and the order that sorts its rows by position.

        features: [N, in] in ascending order of the voxels. spconv does not reuse the map of a strided convolution: that
        one's time has the making of the map in it.
        """
        arguments = (kernel.shape[1], kernel.shape[2], window.size)
        if window.kind == "transposed":
            down = self._library.SparseConv3d(1, 1, window.size, stride=window.stride, bias=False, indice_key="map")
            x = down(self._tensor(torch.zeros(len(self._levels(stride // window.stride)), 1), stride // window.stride))
            x = x.replace_feature(features[_order(x.indices).argsort()])
            module = self._library.SparseInverseConv3d(*arguments, bias=False, indice_key="map")
        else:
            x = self._tensor(features, stride)
            kind = self._library.SubMConv3d if window.kind == "submanifold" else self._library.SparseConv3d
            module = kind(*arguments, stride=window.stride, bias=False, indice_key="map")
        cube = torch.cartesian_prod(*[torch.arange(window.size) - (window.size // 2 if window.size % 2 else 0)] * 3)
        matrices = kernel[kernel_index(window.size, cube)].unflatten(0, (window.size,) * 3)
        module.weight.data = matrices.permute(4, 0, 1, 2, 3).contiguous()
        first = module(x)
        if window.kind == "submanifold":
            x.indice_dict.update(first.indice_dict)

        def compute() -> Tensor:
            if window.kind == "strided":
                x.indice_dict.clear()
            result: Tensor = module(x).features
            return result

        return compute, _order(first.indices)

    def _tensor(self, features: Tensor, stride: int) -> Any:
        coordinates = self._levels(stride).coordinates.clone()
        coordinates[:, 1:] //= stride
        shape = [-(-(int(side) + 1) // 64) * 64 for side in coordinates[:, 1:].amax(0)]
        return self._library.SparseConvTensor(features, coordinates, shape, 1)


def _order(coordinates: Tensor) -> Tensor:
    """Return the order that sorts (batch, x, y, z)."""
    rows = Level.of(coordinates).rows
    return torch.arange(len(coordinates)) if rows is None else rows
