"""The parts of an SPVCNN."""

from __future__ import annotations

from torch import Tensor, nn

from teachers.sparse.layers import SparseBatchNorm, SparseConvolution, SparseReLU
from teachers.sparse.tensor import SparseTensor
from teachers.spvnas.config import ResidualConfig, StageConfig


class ConvolutionBlock(nn.Module):
    """Convolution, batch norm and, unless `activate` is False, ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        size: int = 3,
        stride: int = 1,
        transposed: bool = False,
        activate: bool = True,
    ) -> None:
        super().__init__()
        self.convolution = SparseConvolution(inputs, outputs, size=size, stride=stride, transposed=transposed)
        self.norm = SparseBatchNorm(outputs)
        self.activation = SparseReLU() if activate else None

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Return [M, outputs] from x [N, inputs]."""
        y: SparseTensor = self.norm(self.convolution(x))
        return y if self.activation is None else self.activation(y)


class ResidualBlock(nn.Module):
    """Two convolutions of size 3 and a short cut past them."""

    def __init__(self, inputs: int, config: ResidualConfig) -> None:
        super().__init__()
        self.first = ConvolutionBlock(inputs, config.inner)
        self.second = ConvolutionBlock(config.inner, config.outer, activate=False)
        self.shortcut = (
            ConvolutionBlock(inputs, config.outer, size=1, activate=False) if config.convolved_shortcut else None
        )
        self.activation = SparseReLU()

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Return [N, outer] from x [N, inputs]."""
        shortcut: SparseTensor = x if self.shortcut is None else self.shortcut(x)
        y: SparseTensor = self.activation(self.second(self.first(x)) + shortcut)
        return y


class Stage(nn.Module):
    """A convolution that changes the stride, perhaps features of the same voxels beside it, then residual blocks."""

    def __init__(self, inputs: int, config: StageConfig, *, transposed: bool = False, skipped: int = 0) -> None:
        super().__init__()
        self.transition = ConvolutionBlock(inputs, config.transition, size=2, stride=2, transposed=transposed)
        widths = [config.transition + skipped, *(block.outer for block in config.blocks)]
        self.blocks = nn.Sequential(
            *(ResidualBlock(width, block) for width, block in zip(widths, config.blocks, strict=False))
        )

    def forward(self, x: SparseTensor, skip: SparseTensor | None = None) -> SparseTensor:
        """Return [M, width] from x [N, inputs] and, on the way up, skip [M, skipped]."""
        moved: SparseTensor = self.transition(x)
        y: SparseTensor = self.blocks(moved if skip is None else moved.concatenate(skip))
        return y


class PointBlock(nn.Module):
    """The point branch's layer: linear, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.norm = nn.BatchNorm1d(outputs)

    def forward(self, features: Tensor) -> Tensor:
        """Return [P, outputs] from features [P, inputs]."""
        result: Tensor = nn.functional.relu(self.norm(self.linear(features)), inplace=True)
        return result
