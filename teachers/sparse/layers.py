"""Layers that take and return a SparseTensor."""

from __future__ import annotations

import math

import torch
from torch import nn

from teachers.sparse.tensor import SparseTensor
from teachers.sparse.window import Window


class SparseConvolution(nn.Module):
    """A 3D convolution on occupied voxels; see `Window` for which sizes and strides there are. No bias.

    kernel: [size³, in, out], or [in, out] for size 1, in the order of `kernel_index`: the layout of torchsparse, so
    checkpoints move freely.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, size: int = 3, stride: int = 1, transposed: bool = False
    ) -> None:
        super().__init__()
        self.window = Window(size, stride, transposed)
        shape = (in_channels, out_channels)
        self.kernel = nn.Parameter(torch.empty(shape if size == 1 else (self.window.volume, *shape)))
        bound = 1 / math.sqrt(self.window.volume * (out_channels if transposed else in_channels))
        nn.init.uniform_(self.kernel, -bound, bound)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Return the convolution of x [N, in], on the voxels and at the stride that the window leads to."""
        if self.window.kind == "pointwise":
            return x.with_features(x.features @ self.kernel)
        features = x.grid.convolve(x.features, self.kernel, x.stride, self.window)
        return SparseTensor(features, self.window.output_stride(x.stride), x.grid)

    def extra_repr(self) -> str:
        """Return what print shows of it."""
        in_channels, out_channels = self.kernel.shape[-2:]
        return f"{in_channels}, {out_channels}, {self.window}"


class SparseBatchNorm(nn.BatchNorm1d):
    """Batch normalization over all voxels of a batch."""

    def forward(self, x: SparseTensor) -> SparseTensor:  # type: ignore[override]
        """Return x [N, C], normalized per channel."""
        return x.with_features(super().forward(x.features))


class SparseReLU(nn.Module):
    """max(0, x). Overwrites what it is given, which therefore must not be needed again."""

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Return x, clamped."""
        return x.with_features(nn.functional.relu(x.features, inplace=True))
