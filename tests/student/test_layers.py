"""Norms for any number of channels, and blocks that halve or keep."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from student.config import Norm
from student.layers import GroupNorm, ResidualBlock, StandardizedConv, norm_layer, stage


@pytest.mark.parametrize(("channels", "groups"), [(76, 4), (24, 3), (5, 1), (4, 1), (64, 8), (96, 12), (7, 1)])
def test_every_number_of_channels_has_groups(channels: int, groups: int) -> None:
    layer = norm_layer("group", channels)
    assert isinstance(layer, nn.GroupNorm)
    assert layer.num_groups == groups
    layer(torch.rand(2, channels, 3, 3))


@pytest.mark.parametrize(("norm", "alone"), [("group", True), ("batch", False)])
def test_group_norms_see_one_image_and_batch_norms_all(norm: Norm, alone: bool) -> None:
    torch.manual_seed(0)
    block = ResidualBlock(8, 16, norm=norm)
    images = torch.rand(2, 8, 6, 6)
    together, by_itself = block(images)[:1], block(images[:1])
    assert torch.allclose(together, by_itself, atol=1e-5) == alone


def test_the_first_block_of_a_stage_has_the_stride() -> None:
    layers = stage(8, 16, 3, norm="group", stride=2)
    assert len(layers) == 3
    assert layers(torch.rand(1, 8, 16, 24)).shape == (1, 16, 8, 12)


@pytest.mark.parametrize(("inputs", "kernel", "size"), [(3, 5, 1.0), (48, 3, 1e-3), (2, 1, 1.0), (64, 1, 0.0)])
def test_standardized_filters_and_their_gradients_are_those_of_the_formula(
    inputs: int, kernel: int, size: float
) -> None:
    torch.manual_seed(0)
    layer = StandardizedConv(inputs, 7, kernel)
    torch.nn.init.normal_(layer.weight, mean=0.3 * size, std=size)
    weight = layer.weight.detach().double().requires_grad_()
    mean, variance = weight.mean((1, 2, 3), keepdim=True), weight.var((1, 2, 3), keepdim=True)
    expected = (weight - mean) / (variance * weight[0].numel() + 1e-4).sqrt()
    found = layer.standardized()
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    direction = torch.randn_like(found)
    found.backward(direction)
    expected.backward(direction.double())
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad.double(), weight.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_group_norm_without_autocast_keeps_the_inputs_type_and_the_numbers(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, features = GroupNorm(3, 24), torch.randn(2, 24, 5, 6).to(dtype)
    layer.weight.data.uniform_(0.5, 2)
    layer.bias.data.normal_()
    with torch.autocast("cpu", torch.bfloat16):
        found = layer.as_input(features)
    assert found.dtype == dtype
    found = found.detach()
    groups = features.double().reshape(2, 3, -1)
    normal = (groups - groups.mean(2, keepdim=True)) / (groups.var(2, unbiased=False, keepdim=True) + layer.eps).sqrt()
    expected = normal.reshape(2, 24, 5, 6) * layer.weight[:, None, None] + layer.bias[:, None, None]
    # A weight and the result are rounded to 8 bits each.
    within = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found.double(), expected.detach().double(), rtol=within, atol=within)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_cpu_a_group_norm_is_torchs_to_the_last_bit(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, features = GroupNorm(3, 24), torch.randn(2, 24, 5, 6).to(dtype)
    layer.weight.data.uniform_(0.5, 2)
    with torch.autocast("cpu", torch.bfloat16):
        expected = torch.nn.functional.group_norm(features, 3, layer.weight, layer.bias, layer.eps)
        assert torch.equal(layer(features), expected)
