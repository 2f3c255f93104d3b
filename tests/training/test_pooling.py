"""Boxes are pooled as torchvision pools them, with and without knowing how many each level has."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign

from training.pooling import LevelPool, rois_of

HEIGHT, WIDTH = 256, 384
Way = Callable[[LevelPool], Callable[[Sequence[Tensor], Tensor], Tensor]]
WAYS = pytest.mark.parametrize("way", [lambda pool: pool.by_choice, lambda pool: pool.by_distance], ids=["CPU", "GPU"])


def pyramid(stride: int, levels: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, HEIGHT // stride >> at, WIDTH // stride >> at, generator=random) for at in range(levels)]


def boxes_of_all_sizes() -> Tensor:
    """Return boxes [2, 60, 4] within the images, some on their edges, thin ones, and places without a box."""
    random = torch.Generator().manual_seed(1)
    centers = torch.rand(2, 60, 2, generator=random) * torch.tensor([WIDTH, HEIGHT])
    halves = torch.exp(5.5 * torch.rand(2, 60, 2, generator=random)) / 2
    limits = torch.tensor([WIDTH, HEIGHT]).float()
    boxes = torch.cat([(centers - halves).clamp(min=0), torch.minimum(centers + halves, limits)], 2)
    boxes[:, :3] = 0
    boxes[:, 3] = torch.tensor([WIDTH - 0.5, 0, WIDTH, HEIGHT])
    boxes[:, 4] = torch.tensor([0, HEIGHT - 0.5, WIDTH, HEIGHT])
    boxes[:, 5] = torch.tensor([0, 0, WIDTH, HEIGHT])
    return boxes


def by_torchvision(levels: Sequence[Tensor], boxes: Tensor) -> Tensor:
    names = [str(at) for at in range(len(levels))]
    pool = MultiScaleRoIAlign(names, 7, 2, canonical_scale=128, canonical_level=4)
    pooled: Tensor = pool(dict(zip(names, levels, strict=True)), list(boxes), [(HEIGHT, WIDTH)] * len(boxes))
    return pooled


@WAYS
@pytest.mark.parametrize(("stride", "levels"), [(4, 4), (8, 3), (1, 4), (4, 1)])
def test_pooled_features_are_those_of_torchvision(way: Way, stride: int, levels: int) -> None:
    maps, boxes = pyramid(stride, levels), boxes_of_all_sizes()
    assert torch.equal(way(LevelPool(stride))(maps, rois_of(boxes)), by_torchvision(maps, boxes))


@WAYS
def test_gradients_are_those_of_torchvision(way: Way) -> None:
    maps, boxes = [level.requires_grad_() for level in pyramid(4, 4)], boxes_of_all_sizes()
    weight = torch.randn(120, 3, 7, 7, generator=torch.Generator().manual_seed(2))
    expected = torch.autograd.grad((by_torchvision(maps, boxes) * weight).sum(), maps)
    found = torch.autograd.grad((way(LevelPool(4))(maps, rois_of(boxes)) * weight).sum(), maps)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_boxes_of_this_test_are_of_every_level() -> None:
    assert LevelPool(4)._level(rois_of(boxes_of_all_sizes()), 4).unique().tolist() == [0, 1, 2, 3]


def test_rois_have_the_number_of_their_image() -> None:
    boxes = torch.arange(16.0).reshape(2, 2, 4)
    assert rois_of(boxes).tolist() == [[0, 0, 1, 2, 3], [0, 4, 5, 6, 7], [1, 8, 9, 10, 11], [1, 12, 13, 14, 15]]
