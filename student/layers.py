"""The pieces that trunk, branches and pyramid are made of."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.functional import group_norm, interpolate, layer_norm

from student.config import Norm

_CHANNELS_PER_GROUP = 8
_TINY = 1e-4


def memory_format(norm: Norm, device: torch.device) -> torch.memory_format:
    """Return how images and weights should lie in memory.

    GPUs convolve channels-last faster, but torch's group norm turns everything back there (so its source says; it was
    not timed). On a CPU it takes six times as long backwards in that layout; a step of the default student took 1.07
    and 1.25 times as long in two runs on a busy machine.
    """
    return torch.channels_last if device.type == "cuda" and norm == "batch" else torch.contiguous_format


def norm_layer(norm: Norm, channels: int) -> nn.Module:
    """Return the norm of `channels` channels: over groups of eight within an image, or over the batch."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    # A teacher may have any number of channels: 76 make four groups of nineteen.
    groups = next(n for n in range(max(1, channels // _CHANNELS_PER_GROUP), 0, -1) if channels % n == 0)
    return GroupNorm(groups, channels)


class GroupNorm(nn.GroupNorm):
    """torch's, but on a GPU autocast does not make its input float32 first, nor all that follows it.

    Sums are float32 within the kernel anyhow; parameters have the input's type, as CUDA wants it. A CPU's autocast
    leaves group norms alone.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Return the normalized [B, C, …], of the input's type."""
        return self.as_input(input) if input.is_cuda else super().forward(input)

    def as_input(self, input: Tensor) -> Tensor:  # noqa: A002 - as above
        """Return the same computed without autocast, with parameters of the input's type."""
        weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
        with torch.autocast(input.device.type, enabled=False):
            return group_norm(input, self.num_groups, weight, bias, self.eps)


def twice_as_large(features: Tensor) -> Tensor:
    """Return [B, C, 2h, 2w], each cell four times. On a GPU autocast would make float32 of it; copies need not be."""
    with torch.autocast("cuda", enabled=False) if features.is_cuda else nullcontext():
        return interpolate(features, scale_factor=2.0, mode="nearest")


class StandardizedConv(nn.Conv2d):
    """A convolution whose filters have mean 0 and norm 1 (Qiao et al. 2019, weight standardization).

    Group norms alone learn slowly here: after 80 steps on two images the classifier had hardly begun, with batch
    norms or with this it was half done. Batch norms would make an image's features depend on the others.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Return the convolution of [B, C, h, w]."""
        return self._conv_forward(input, self.standardized(), self.bias)

    def standardized(self) -> Tensor:
        """Return (w - mean) / sqrt(n var + 1e-4) of each filter w of n numbers, var being unbiased.

        A layer norm divides by the root of the biased variance, (n - 1) / n of that, in one kernel forth and one back:
        for a default student that is six hundred launches less in a step.
        """
        shape = self.weight.shape[1:]
        numbers = shape.numel()
        of_variance = numbers**2 / (numbers - 1)
        return layer_norm(self.weight, shape, eps=_TINY / of_variance) * of_variance**-0.5


class ConvNorm(nn.Sequential):
    """A convolution that keeps its input's size, up to its stride, a norm, and a ReLU where `relu`."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, norm: Norm, stride: int = 1, relu: bool = True
    ) -> None:
        convolution = nn.Conv2d if norm == "batch" else StandardizedConv
        layers: list[nn.Module] = [
            convolution(inputs, outputs, kernel, stride, kernel // 2, bias=False),
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
