"""A stand-in for torchsparse 2.1, which itself does not import without a GPU.

It keeps that version's conventions (coordinates divided by the stride, an extent beyond which voxels are dropped, what
lies in which cache) and its limits (outermost layers, cells in 32 bits), gives rows in an order of its own, and
computes with the plain backend.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from teachers.sparse.plain import PlainBackend
from teachers.sparse.window import Window

__version__ = "2.1.0"
CELLS = 1 << 31

Triple = tuple[int, int, int]


class SparseTensor:
    """Features with coordinates (batch, x, y, z), divided by the stride."""

    def __init__(
        self, feats: Tensor, coords: Tensor, stride: int | Triple, spatial_range: tuple[int, ...] | None = None
    ) -> None:
        assert coords.dtype == torch.int32
        assert coords.is_contiguous()
        assert bool((coords >= 0).all()), "2.1 drops negative coordinates"
        assert len(feats) == len(coords)
        self.feats, self.coords, self.spatial_range = feats, coords, spatial_range
        self.stride: Triple = (stride, stride, stride) if isinstance(stride, int) else stride
        self._caches = SimpleNamespace(cmaps={}, kmaps={}, hashmaps={})


def _conv3d(
    x: SparseTensor, kernel: Tensor, *, kernel_size: int, stride: int, transposed: bool, training: bool
) -> SparseTensor:
    assert isinstance(training, bool)
    assert not x._caches.hashmaps, "2.1 would look voxels up in the wrong table"
    coarse = x.stride[0] // (stride if transposed else 1)
    key = ((coarse,) * 3, (kernel_size,) * 3, (stride,) * 3, (1, 1, 1))
    if transposed:
        fine_coords, fine_range = x._caches.cmaps[(coarse,) * 3]
        grid, order = x._caches.kmaps[key]
        back = torch.empty_like(x.feats)
        back[order] = x.feats
        feats = grid.convolve(back, kernel, stride, Window(kernel_size, stride, transposed=True))
        y = SparseTensor(feats, fine_coords, coarse, fine_range)
    else:
        assert x.spatial_range is not None, "2.1 would drop voxels at the border"
        if stride == 1:
            within = torch.tensor(x.spatial_range[1:]) - (kernel_size - 1)
            assert bool((x.coords[:, 1:] < within).all()), "2.1 takes the outermost layers for one"
        grid = PlainBackend().open(x.coords)
        feats = grid.convolve(x.feats, kernel, 1, Window(kernel_size, stride))
        coords, extent = x.coords, x.spatial_range
        order = torch.arange(len(coords))
        if stride > 1:
            cells = math.prod(side // stride for side in extent[1:])
            assert cells < CELLS, "2.1 would cut the number of a cell to 32 bits"
            coords = grid.level(stride).coordinates.clone()
            coords[:, 1:] //= stride
            extent = (extent[0], *((side - kernel_size) // stride + 1 for side in extent[1:]))
            assert bool((coords < torch.tensor(extent)).all()), "2.1 would drop voxels at the border"
            order = torch.arange(len(coords)).flip(0)
        x._caches.kmaps[key] = (grid, order)
        x._caches.hashmaps[x.stride] = "filled"
        y = SparseTensor(feats[order], coords[order].contiguous(), x.stride[0] * stride, extent)
    y._caches = x._caches
    y._caches.cmaps.setdefault(y.stride, (y.coords, y.spatial_range))
    return y


nn: Any = SimpleNamespace(functional=SimpleNamespace(conv3d=_conv3d))
backend: Any = SimpleNamespace(hash_query_cuda=None)
# Set so on import, wherever the GPU can.
backends: Any = SimpleNamespace(allow_tf32=True)
