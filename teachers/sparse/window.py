"""The window of a sparse convolution, and the order of its kernel's offsets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["pointwise", "submanifold", "strided", "transposed"]


@dataclass(frozen=True, slots=True)
class Window:
    """Which voxels a convolution reads for each voxel that it writes.

    The families covered are those for which all sparse libraries agree on the voxels that come out: size 1
    (pointwise); an odd size with stride 1 (submanifold: the voxels stay); an even size equal to the stride (strided:
    every voxel belongs to one coarser voxel) and its transpose, which returns to the voxels the strided one left.
    """

    size: int
    stride: int = 1
    transposed: bool = False

    def __post_init__(self) -> None:
        pointwise_or_submanifold = self.stride == 1 and self.size % 2 == 1 and self.size > 0 and not self.transposed
        tiling = self.stride == self.size and self.size % 2 == 0 and self.size > 0
        if not pointwise_or_submanifold and not tiling:
            raise ValueError(
                f"Expected an odd kernel size with stride 1, or an even one equal to the stride, got: {self}; "
                "for other windows libraries differ in which voxels come out"
            )

    @property
    def kind(self) -> Kind:
        """Return which of the families the window belongs to."""
        if self.transposed:
            return "transposed"
        if self.stride > 1:
            return "strided"
        return "submanifold" if self.size > 1 else "pointwise"

    @property
    def volume(self) -> int:
        """Return K, the number of offsets."""
        return self.size**3

    def output_stride(self, stride: int) -> int:
        """Return the stride of what comes out of a tensor of `stride`."""
        if not self.transposed:
            return stride * self.stride
        if stride % self.stride:
            raise ValueError(f"a transposed convolution of stride {self.stride} cannot start at tensor stride {stride}")
        return stride // self.stride


def kernel_index(size: int, offset: Tensor) -> Tensor:
    """Return int64 [...], which of a kernel's K matrices serves `offset`.

    offset: int [..., 3] in voxels; -size//2 .. size//2 for odd sizes, 0 .. size-1 for even ones

    Odd kernels run x fastest and even ones z fastest: the order of MinkowskiEngine, torchsparse and all checkpoints
    made with them.
    """
    x, y, z = (offset.long() + (size // 2 if size % 2 else 0)).unbind(-1)
    return (z * size + y) * size + x if size % 2 else (x * size + y) * size + z


def kernel_offsets(size: int) -> Tensor:
    """Return int64 [K, 3], the offset in voxels of each of a kernel's matrices: the inverse of `kernel_index`."""
    lowest = -(size // 2) if size % 2 else 0
    steps = torch.arange(lowest, lowest + size)
    offsets = torch.cartesian_prod(steps, steps, steps).view(-1, 3)
    return offsets[kernel_index(size, offsets).argsort()]
