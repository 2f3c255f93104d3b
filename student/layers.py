"""The pieces that trunk, branches and pyramid are made of."""

from __future__ import annotations

from torch import Tensor, nn

from student.config import Norm

_CHANNELS_PER_GROUP = 8


def norm_layer(norm: Norm, channels: int) -> nn.Module:
    """Return the norm of `channels` channels: over groups of eight within a picture, or over the batch."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    # A teacher may have any number of channels: 76 make four groups of nineteen.
    groups = next(n for n in range(max(1, channels // _CHANNELS_PER_GROUP), 0, -1) if channels % n == 0)
    return nn.GroupNorm(groups, channels)


class ConvNorm(nn.Sequential):
    """A convolution that keeps its input's size, up to its stride, a norm, and a ReLU where `relu`."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, norm: Norm, stride: int = 1, relu: bool = True
    ) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
            norm_layer(norm, outputs),
        ]
        super().__init__(*layers, *([nn.ReLU(inplace=True)] if relu else []))


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut (He et al. 2016, basic block)."""

    def __init__(self, inputs: int, outputs: int, *, norm: Norm, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ConvNorm(inputs, outputs, 3, norm=norm, stride=stride),
            ConvNorm(outputs, outputs, 3, norm=norm, relu=False),
        )
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else ConvNorm(inputs, outputs, 1, norm=norm, stride=stride, relu=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        """Return [B, outputs, h / stride, w / stride] for features [B, inputs, h, w]."""
        result: Tensor = self.relu(self.body(features) + self.shortcut(features))
        return result


def stage(inputs: int, outputs: int, blocks: int, *, norm: Norm, stride: int = 1) -> nn.Sequential:
    """Return `blocks` residual blocks, of which the first has the stride."""
    return nn.Sequential(
        *(
            ResidualBlock(inputs if i == 0 else outputs, outputs, norm=norm, stride=stride if i == 0 else 1)
            for i in range(blocks)
        )
    )
