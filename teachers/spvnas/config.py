"""The widths of an SPVCNN, and where they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datalake.errors import UserError

# SPVCNN at full width: stem, four stages down, four stages up (Tang et al. 2020, and their public configuration).
_SPVCNN_WIDTHS = (32, 32, 64, 128, 256, 256, 128, 96, 96)
_STAGES = 4


class NetConfigError(UserError):
    """A net.config does not describe a specialised SPVNAS."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualConfig:
    """Channels inside and out of a residual block; whether its short cut is a convolution (else the identity)."""

    inner: int
    outer: int
    convolved_shortcut: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StageConfig:
    """One resolution: channels of the convolution that changes the stride, then the residual blocks."""

    transition: int
    blocks: tuple[ResidualConfig, ...]

    @property
    def width(self) -> int:
        """Return the channels that leave the stage."""
        return self.blocks[-1].outer


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """A U-Net of four stages down and four up, with a branch of points beside it.

    inputs: channels of a point: x, y, z in metres, intensity
    voxel_m: side of a voxel in metres
    """

    stem: int
    down: tuple[StageConfig, ...]
    up: tuple[StageConfig, ...]
    classes: int = 19
    inputs: int = 4
    voxel_m: float = 0.05
    dropout: float = 0.3

    @property
    def feature_width(self) -> int:
        """Return the channels of the last point features, z3: what a student imitates."""
        return self.up[-1].width

    @staticmethod
    def spvcnn(width: float = 1.0, classes: int = 19) -> NetworkConfig:
        """Return SPVCNN with its channels multiplied by `width` (the authors' `cr`)."""
        stem, *widths = (int(width * channels) for channels in _SPVCNN_WIDTHS)
        down: list[StageConfig] = []
        before = stem
        for outer in widths[:_STAGES]:
            blocks = (_spvcnn_block(before, outer), _spvcnn_block(outer, outer))
            down.append(StageConfig(transition=before, blocks=blocks))
            before = outer
        up: list[StageConfig] = []
        for outer, skipped in zip(widths[_STAGES:], [*widths[_STAGES - 2 :: -1], stem], strict=True):
            blocks = (_spvcnn_block(outer + skipped, outer), _spvcnn_block(outer, outer))
            up.append(StageConfig(transition=outer, blocks=blocks))
        return NetworkConfig(stem=stem, down=tuple(down), up=tuple(up), classes=classes)

    @staticmethod
    def from_net_config(net_config: Mapping[str, Any]) -> NetworkConfig:
        """Return the SPVNAS that a public net.config (parsed JSON) has selected from the super-network.

        Raises NetConfigError where an entry is missing or is not what a specialised network has.
        """
        try:
            widths = [int(channels) for channels in net_config["output_channels"]]
            if len(widths) != 1 + 2 * _STAGES:
                raise NetConfigError(f"net.config: expected {1 + 2 * _STAGES} output_channels, got: {len(widths)}")
            stages = [_spvnas_stage(net_config, side, i) for side in ("downsample", "upsample") for i in range(_STAGES)]
            resolution = float(net_config["vres"])
            if float(net_config["pres"]) != resolution:
                raise NetConfigError("net.config: pres and vres differ; only one point a voxel is supported")
            config = NetworkConfig(
                stem=widths[0],
                down=tuple(stages[:_STAGES]),
                up=tuple(stages[_STAGES:]),
                classes=int(net_config["num_classes"]),
                voxel_m=resolution,
            )
        except KeyError as error:
            raise NetConfigError(
                f"net.config: the entry {error} is missing; is it of a specialised network?"
            ) from error
        return config


def _spvcnn_block(inner: int, outer: int) -> ResidualConfig:
    return ResidualConfig(inner=outer, outer=outer, convolved_shortcut=inner != outer)


def _spvnas_stage(net_config: Mapping[str, Any], side: str, index: int) -> StageConfig:
    name = f"{side}.{index}"
    width = int(net_config["output_channels"][1 + index + (_STAGES if side == "upsample" else 0)])
    blocks: list[ResidualConfig] = []
    for block in range(int(net_config[f"{name}.feature"])):
        layer = f"{name}.feature.layers.{block}"
        if int(net_config[f"{layer}.net"]) != 2:
            raise NetConfigError(f"net.config: {layer}.net: expected 2 convolutions, got: {net_config[f'{layer}.net']}")
        # The second convolution always ends in the stage's width; net.config keeps a stale figure for it.
        inner = int(net_config[f"{layer}.net.layers.0"])
        blocks.append(ResidualConfig(inner=inner, outer=width, convolved_shortcut=block == 0))
    if not blocks:
        raise NetConfigError(f"net.config: {name}.feature: expected at least one block")
    return StageConfig(transition=int(net_config[f"{name}.transition"]), blocks=tuple(blocks))
