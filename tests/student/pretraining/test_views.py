"""What views show of an image, and in which colors."""

from __future__ import annotations

import colorsys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from student.pretraining.views import Crop, ViewConfig, cut, draw_crops, make_views

WIDTH, HEIGHT = 192, 128
PLAIN = ViewConfig(size=(64, 48), jitter=0, gray=0, blur=(0, 0), solarize=(0, 0), mirror=0)
CPU = torch.device("cpu")


def generators(count: int = 1, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + number) for number in range(count)]


def coordinates() -> Tensor:
    """Return float64 [2, H, W]: each pixel's center, x and y."""
    y, x = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    return torch.stack([x, y]).double()


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("box", [(0, 0, 192, 128), (17, 9, 150, 100), (100, 60, 140, 90)])
def test_a_crop_of_coordinates_has_its_cells_centers_to_half_a_cell(
    box: tuple[int, int, int, int], mirrored: bool
) -> None:
    width, height = 64, 48
    found = cut(coordinates(), Crop(*box, mirrored), (width, height))
    x0, y0, x1, y1 = box
    wide, high = (x1 - x0) / width, (y1 - y0) / height
    for row in range(height):
        for column in (0, 1, 20, 62, 63):
            shown = width - 1 - column if mirrored else column
            assert abs(float(found[0, row, column]) - (x0 + (shown + 0.5) * wide)) <= wide / 2
            assert abs(float(found[1, row, column]) - (y0 + (row + 0.5) * high)) <= high / 2


def test_both_views_of_coordinates_agree_with_their_records() -> None:
    shades = (coordinates()[0] / WIDTH * 255).round().byte().expand(3, -1, -1)
    views = make_views([shades], [shades], generators(), replace(PLAIN, mirror=0.5), CPU)
    for view, crop in zip((views.first[0], views.second[0]), views.crops[0], strict=True):
        left, right = (crop.x1, crop.x0) if crop.mirrored else (crop.x0, crop.x1)
        cell = (right - left) / 64
        assert float(view[0, 24, 10]) * WIDTH == pytest.approx(left + 10.5 * cell, abs=1.5)


def test_crops_are_within_the_image_as_large_as_asked_and_overlap() -> None:
    config = ViewConfig(area=(0.3, 0.6), overlap=0.5)
    for generator in generators(200):
        pair = draw_crops(WIDTH, HEIGHT, config, generator)
        for crop in pair:
            assert 0 <= crop.x0 < crop.x1 <= WIDTH
            assert 0 <= crop.y0 < crop.y1 <= HEIGHT
            assert 0.29 <= (crop.x1 - crop.x0) * (crop.y1 - crop.y0) / (WIDTH * HEIGHT) <= 0.61
        masks = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.bool)
        for mask, crop in zip(masks, pair, strict=True):
            mask[crop.y0 : crop.y1, crop.x0 : crop.x1] = True
        assert int((masks[0] & masks[1]).sum()) >= 0.5 * min(int(mask.sum()) for mask in masks)


def test_views_are_a_function_of_the_generator_alone() -> None:
    image = torch.randint(0, 256, (3, HEIGHT, WIDTH), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    config = ViewConfig(size=(128, 96))
    one = make_views([image], [image], generators(1, 3), config, CPU)
    two = make_views([image] * 2, [image] * 2, generators(2, 2), config, CPU)
    assert one.crops[0] == two.crops[1]
    torch.testing.assert_close(one.first[0], two.first[1])
    torch.testing.assert_close(one.second[0], two.second[1])
    assert 0 <= float(one.first.min()) <= float(one.first.max()) <= 1


def test_gray_views_have_the_luma_in_all_colors() -> None:
    image = torch.tensor([200, 100, 50], dtype=torch.uint8)[:, None, None].expand(3, HEIGHT, WIDTH)
    views = make_views([image], [image], generators(), replace(PLAIN, gray=1), CPU)
    luma = (0.299 * 200 + 0.587 * 100 + 0.114 * 50) / 255
    torch.testing.assert_close(views.first, torch.full_like(views.first, luma), rtol=0, atol=2e-3)


def test_a_turned_hue_is_another_hue_of_the_same_luma() -> None:
    image = torch.tensor([140, 120, 110], dtype=torch.uint8)[:, None, None].expand(3, HEIGHT, WIDTH)
    config = replace(PLAIN, jitter=1, brightness=0, contrast=0, saturation=0, hue=0.25)
    colors = [
        make_views([image], [image], generators(1, seed), config, CPU).first[0, :, 0, 0].tolist() for seed in range(5)
    ]
    luma = (0.299 * 140 + 0.587 * 120 + 0.114 * 110) / 255
    for r, g, b in colors:
        assert 0.299 * r + 0.587 * g + 0.114 * b == pytest.approx(luma, abs=2e-3)
    assert len({round(colorsys.rgb_to_hsv(*color)[0], 2) for color in colors}) > 2


class Masks(TorchDispatchMode):
    """Notes where tensors are indexed by masks: a GPU would have to count them before the host goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default):
            self.found += [str(func) for index in args[1] if index is not None and index.dtype == torch.bool]
        return func(*args, **(kwargs or {}))


def test_making_views_counts_no_mask() -> None:
    images = [torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)] * 8
    with Masks() as masks:
        make_views(images, images, generators(8), ViewConfig(blur=(0.5, 0.5), solarize=(0.5, 0.5)), CPU)
    assert masks.found == []


def test_solarized_views_have_bright_pixels_inverted() -> None:
    image = torch.full((3, HEIGHT, WIDTH), 204, dtype=torch.uint8)
    views = make_views([image], [image], generators(), replace(PLAIN, solarize=(0, 1)), CPU)
    assert float(views.first.mean()) == pytest.approx(0.8, abs=1e-3)
    assert float(views.second.mean()) == pytest.approx(0.2, abs=1e-3)


def test_a_blurred_edge_is_less_steep_and_small_views_are_never_blurred() -> None:
    image = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)
    image[:, :, WIDTH // 2 :] = 255
    steepest = {}
    for height in (96, 64):
        for share in (0, 1):
            config = replace(PLAIN, size=(128, height), area=(1, 1), blur=(share, 0))
            view = make_views([image], [image], generators(1, 4), config, CPU).first
            steepest[height, share] = float(view.diff(dim=-1).abs().max())
    assert steepest[96, 1] < 0.9 * steepest[96, 0]
    assert steepest[64, 1] == steepest[64, 0]
