"""Norms for any number of channels, and blocks that halve or keep."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from student.config import Norm
from student.layers import ResidualBlock, norm_layer, stage


@pytest.mark.parametrize(("channels", "groups"), [(76, 4), (24, 3), (5, 1), (4, 1), (64, 8), (96, 12), (7, 1)])
def test_every_number_of_channels_has_groups(channels: int, groups: int) -> None:
    layer = norm_layer("group", channels)
    assert isinstance(layer, nn.GroupNorm)
    assert layer.num_groups == groups
    layer(torch.rand(2, channels, 3, 3))


@pytest.mark.parametrize(("norm", "alone"), [("group", True), ("batch", False)])
def test_group_norms_see_one_picture_and_batch_norms_all(norm: Norm, alone: bool) -> None:
    torch.manual_seed(0)
    block = ResidualBlock(8, 16, norm=norm)
    pictures = torch.rand(2, 8, 6, 6)
    together, by_itself = block(pictures)[:1], block(pictures[:1])
    assert torch.allclose(together, by_itself, atol=1e-5) == alone


def test_the_first_block_of_a_stage_has_the_stride() -> None:
    layers = stage(8, 16, 3, norm="group", stride=2)
    assert len(layers) == 3
    assert layers(torch.rand(1, 8, 16, 24)).shape == (1, 16, 8, 12)
