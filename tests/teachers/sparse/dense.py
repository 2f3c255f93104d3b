"""The same arithmetic on a dense grid, by torch.nn.functional: what the sparse layers are compared with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from teachers.sparse.window import kernel_offsets


@dataclass(frozen=True)
class Cloud:
    """Random voxels within a box of `side` voxels at `origin`: features float64 [N, C], coordinates int32 [N, 4]."""

    features: Tensor
    coordinates: Tensor
    origin: Tensor
    batches: int
    side: int


def random_cloud(seed: int, *, channels: int, batches: int = 2, side: int = 8, filled: float = 0.2) -> Cloud:
    """Return voxels in random order; the origin is a random multiple of 8, so that it may be negative."""
    random = torch.Generator().manual_seed(seed)
    occupied = torch.rand(batches, side, side, side, generator=random) < filled
    occupied[0, 0, 0, 0] = True
    coordinates = occupied.nonzero()
    coordinates = coordinates[torch.randperm(len(coordinates), generator=random)]
    origin = torch.cat([torch.zeros(1, dtype=torch.int64), torch.randint(-9, 9, (3,), generator=random) * 8])
    features = torch.randn(len(coordinates), channels, generator=random, dtype=torch.float64)
    return Cloud(features, (coordinates + origin).int(), origin, batches, side)


def random_kernel(seed: int, *shape: int) -> Tensor:
    """Return float64 weights that want a gradient."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=random, dtype=torch.float64).requires_grad_()


def places(cloud: Cloud, coordinates: Tensor, stride: int) -> tuple[Tensor, ...]:
    """Return where voxels of a stride lie on the dense grid, as an index."""
    shifted = coordinates.long() - cloud.origin
    return shifted[:, 0], *(shifted[:, 1:] // stride).unbind(1)


def densify(cloud: Cloud, features: Tensor, coordinates: Tensor, stride: int) -> Tensor:
    """Return [B, C, X, Y, Z], zero where no voxel is."""
    side = -(-cloud.side // stride)
    grid = features.new_zeros(cloud.batches, side, side, side, features.shape[1])
    return grid.index_put(places(cloud, coordinates, stride), features).permute(0, 4, 1, 2, 3)


def read_back(cloud: Cloud, grid: Tensor, coordinates: Tensor, stride: int) -> Tensor:
    """Return [N, C], what a dense grid holds at the voxels."""
    return grid.permute(0, 2, 3, 4, 1)[places(cloud, coordinates, stride)]


def dense_kernel(kernel: Tensor, size: int) -> Tensor:
    """Return [in, out, size, size, size] (x, y, z) of a sparse kernel [K, in, out]."""
    offsets = kernel_offsets(size)
    index = (offsets - offsets.amin(0)).unbind(1)
    empty = kernel.new_zeros(size, size, size, *kernel.shape[1:])
    return empty.index_put(index, kernel).permute(3, 4, 0, 1, 2)


def convolve(grid: Tensor, kernel: Tensor, size: int, *, stride: int = 1) -> Tensor:
    """Return the dense convolution, of the same size for stride 1."""
    weight = dense_kernel(kernel, size).transpose(0, 1)
    return functional.conv3d(grid, weight, stride=stride, padding=size // 2 if stride == 1 else 0)


def convolve_transposed(grid: Tensor, kernel: Tensor, size: int) -> Tensor:
    """Return the dense transposed convolution whose stride is its size."""
    return functional.conv_transpose3d(grid, dense_kernel(kernel, size), stride=size)


def gradients(output: Tensor, seed: int, *inputs: Tensor) -> list[Tensor]:
    """Return the derivatives of a random combination of the output."""
    random = torch.Generator().manual_seed(seed)
    weights = torch.randn(output.shape, generator=random, dtype=output.dtype)
    return list(torch.autograd.grad((output * weights).sum(), inputs))
