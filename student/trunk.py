"""The trunk: the image's features on the grid of the imitation, the input of every branch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from student.config import StudentConfig
from student.layers import ConvNorm, stage, twice_as_large
from training.fingerprint import Plain, flatten

# Of the lake's images, roughly; any fixed numbers near them would do.
_OWN_NORMALIZATION = ((0.45,) * 3, (0.25,) * 3)
# Settings of a student that its trunk is built from.
_OF_TRUNK = ("trunk", "stages", "blocks", "width", "norm", "image_mean", "image_std")


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


class TopDownTrunk(nn.Module):
    """What trunks have in common that go down to 1/32 of the resolution and up again (Lin et al. 2017).

    Subclasses define what leads down, then call `add_top_down`.
    """

    width: int
    coarse_widths: tuple[int, ...]

    def add_top_down(self, config: StudentConfig, widths: Sequence[int]) -> None:
        """Add what leads up again from maps at strides 4, 8, 16 and 32 that have so many channels."""
        norm = config.norm
        self.width = config.width
        self.laterals = nn.ModuleList(ConvNorm(channels, config.width, 1, norm=norm, relu=False) for channels in widths)
        self.smooth = ConvNorm(config.width, config.width, 3, norm=norm)
        self.coarse_widths = (config.width,) * (len(self.laterals) - 1)

    def top_down(self, down: Sequence[Tensor]) -> TrunkFeatures:
        """Return the features of maps [B, channels, h, w] at strides 4, 8, 16 and 32."""
        sides = [lateral(f) for lateral, f in zip(self.laterals, down, strict=True)]
        up = sides[-1]
        ups = [up]
        for side in reversed(sides[:-1]):
            up = side + twice_as_large(up)
            ups.append(up)
        return TrunkFeatures(self.smooth(ups.pop()), tuple(reversed(ups)))


class ClassroomTrunk(TopDownTrunk):
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
        self.add_top_down(config, widths)

    def forward(self, images: Tensor) -> TrunkFeatures:
        """Return the features of images float32 [B, 3, H, W]; H and W are multiples of 32."""
        features = self.stem(images)
        down = []
        for layers in self.stages:
            features = layers(features)
            down.append(features)
        return self.top_down(down)


def build_trunk(config: StudentConfig) -> PaperTrunk | TopDownTrunk:
    """Return the configuration's trunk, with random weights. Raises StudentError where timm has none such."""
    if config.timm_name is not None:
        from student.timm_trunk import TimmTrunk

        return TimmTrunk(config)
    return PaperTrunk(config) if config.trunk == "stride1" else ClassroomTrunk(config)


def trunk_settings(config: StudentConfig) -> dict[str, Plain]:
    """Return what decides about a trunk's weights and what they mean; all else in a student's configuration does not.

    Images are normalized as the trunk was trained with.
    """
    return {name: value for name, value in flatten(resolved(config)).items() if name in _OF_TRUNK}


def resolved(config: StudentConfig) -> StudentConfig:
    """Return the configuration of a student by itself: what follows from the trunk's name is written out.

    Where the weights that it starts from lie is left out once their checksum says which they are.
    """
    mean, std = _OWN_NORMALIZATION
    if config.timm_name is not None and None in (config.image_mean, config.image_std):
        from student.timm_trunk import published_normalization

        mean, std = published_normalization(config.timm_name)
    return replace(
        config,
        trunk_weights=config.trunk_weights if config.trunk_weights_sha256 is None else None,
        freeze_norms=config.is_pretrained if config.freeze_norms is None else config.freeze_norms,
        image_mean=config.image_mean or mean,
        image_std=config.image_std or std,
    )
