"""The trunk: the image's features on the grid of the imitation, the input of every branch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from student.config import StudentConfig
from student.layers import ConvNorm, stage, twice_as_large


@dataclass(frozen=True, slots=True, eq=False)
class TrunkFeatures:
    """What a trunk makes of images.

    fine: [B, width, h, w] on the imitation's grid
    coarse: maps at half, a quarter … of that resolution, as many as the trunk has; [B, coarse_width, …] each
    """

    fine: Tensor
    coarse: tuple[Tensor, ...]


class PaperTrunk(nn.Module):
    """A 7 x 7 convolution and two stages, all at the image's own resolution (paper, section 3.1)."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        stem, first, second = config.stages
        self.stem = ConvNorm(3, stem, 7, norm=config.norm)
        self.first = stage(stem, first, config.blocks[0], norm=config.norm)
        self.second = stage(first, second, config.blocks[1], norm=config.norm)
        self.width = second
        self.coarse_widths: tuple[int, ...] = ()

    def forward(self, images: Tensor) -> TrunkFeatures:
        """Return the features of images float32 [B, 3, H, W]."""
        return TrunkFeatures(self.second(self.first(self.stem(images))), ())


class ClassroomTrunk(nn.Module):
    """Goes down to 1/32 of the resolution and up again, so that each cell has a large receptive field.

    The receptive field of the paper's trunk is 33 pixels; objects are up to 200 wide.
    """

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        stem, *widths = config.stages
        norm = config.norm
        self.stem = nn.Sequential(
            ConvNorm(3, stem, 3, norm=norm, stride=2), ConvNorm(stem, widths[0], 3, norm=norm, stride=2)
        )
        inputs = [widths[0], *widths[:-1]]
        self.stages = nn.ModuleList(
            stage(inputs[i], widths[i], config.blocks[i], norm=norm, stride=1 if i == 0 else 2)
            for i in range(len(widths))
        )
        self.width = config.width
        self.laterals = nn.ModuleList(ConvNorm(channels, config.width, 1, norm=norm, relu=False) for channels in widths)
        self.smooth = ConvNorm(config.width, config.width, 3, norm=norm)
        self.coarse_widths = (config.width,) * (len(self.laterals) - 1)

    def forward(self, images: Tensor) -> TrunkFeatures:
        """Return the features of images float32 [B, 3, H, W]; H and W are multiples of 32."""
        features = self.stem(images)
        down = []
        for layers in self.stages:
            features = layers(features)
            down.append(features)
        sides = [lateral(f) for lateral, f in zip(self.laterals, down, strict=True)]
        up = sides[-1]
        ups = [up]
        for side in reversed(sides[:-1]):
            up = side + twice_as_large(up)
            ups.append(up)
        return TrunkFeatures(self.smooth(ups.pop()), tuple(reversed(ups)))


def build_trunk(config: StudentConfig) -> PaperTrunk | ClassroomTrunk:
    """Return the configuration's trunk."""
    return PaperTrunk(config) if config.trunk == "stride1" else ClassroomTrunk(config)
