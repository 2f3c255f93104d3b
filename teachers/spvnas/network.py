"""SPVCNN: a sparse U-Net on voxels with a branch of points beside it; SPVNAS is one with other widths."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from teachers.sparse.choice import BackendName, choose_backend
from teachers.sparse.points import Points
from teachers.spvnas.blocks import ConvolutionBlock, PointBlock, Stage
from teachers.spvnas.config import NetworkConfig


@dataclass(frozen=True, slots=True)
class PointPrediction:
    """The network's predictions for P points.

    logits: [P, classes]
    features: [P, D], the last point features (z3): 76 channels in SPVNAS@65G, 96 · width in SPVCNN
    """

    logits: Tensor
    features: Tensor


class SPVCNN(nn.Module):
    """Sparse point-voxel convolution (Tang et al. 2020, figure 2).

    The voxel branch convolves neighborhoods, the point branch keeps what voxels blur; they are fused at strides 1, 16,
    4 and 1.
    """

    def __init__(self, config: NetworkConfig, backend: BackendName = "auto") -> None:
        super().__init__()
        self.config = config
        self.backend: BackendName = backend
        self.stem = nn.Sequential(
            ConvolutionBlock(config.inputs, config.stem), ConvolutionBlock(config.stem, config.stem)
        )
        down = [stage.width for stage in config.down]
        up = [stage.width for stage in config.up]
        entering = [config.stem, *down, *up]
        skipped = [*down[-2::-1], config.stem]
        self.down = nn.ModuleList(Stage(inputs, stage) for inputs, stage in zip(entering, config.down, strict=False))
        self.up = nn.ModuleList(
            Stage(inputs, stage, transposed=True, skipped=skip)
            for inputs, stage, skip in zip(entering[len(down) :], config.up, skipped, strict=False)
        )
        self.point_blocks = nn.ModuleList(
            [PointBlock(config.stem, down[-1]), PointBlock(down[-1], up[1]), PointBlock(up[1], up[3])]
        )
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.feature_width, config.classes)

    def forward(self, features: Tensor, positions: Tensor, batch: Tensor) -> PointPrediction:
        """Return logits and features of P points, which may be of several clouds.

        features: float32 [P, 4] (x, y, z in metres, intensity)
        positions: [P, 3] in voxels, integers or fractions
        batch: int [P], which cloud each point belongs to
        """
        points = Points(positions.float(), batch, choose_backend(self.backend, features.device))
        stem = self.stem(points.voxelize(features, 1))
        z = points.devoxelize(stem)

        level1 = self.down[0](points.voxelize(z, 1))
        level2 = self.down[1](level1)
        level3 = self.down[2](level2)
        level4 = self.down[3](level3)
        z = points.devoxelize(level4) + self.point_blocks[0](z)

        y = self.up[0](points.voxelize(self.dropout(z), level4.stride), level3)
        y = self.up[1](y, level2)
        z = points.devoxelize(y) + self.point_blocks[1](z)

        y = self.up[2](points.voxelize(self.dropout(z), y.stride), level1)
        y = self.up[3](y, stem)
        z = points.devoxelize(y) + self.point_blocks[2](z)
        return PointPrediction(self.classifier(z), z)
