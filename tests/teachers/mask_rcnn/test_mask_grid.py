"""Masks at the pixels that are wanted, as torchvision pastes them."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate
from torchvision.models.detection.roi_heads import paste_masks_in_image

from teachers.mask_rcnn.mask_grid import cell_pixels, masks_at


@given(st.integers(0, 10_000), st.sampled_from([(4, 6), (11, 25), (40, 61)]), st.sampled_from([1.0, 7.0, 70.0]))
@settings(deadline=None, max_examples=60)
def test_it_is_what_pasting_and_resizing_give(seed: int, grid: tuple[int, int], largest: float) -> None:
    random = torch.Generator().manual_seed(seed)
    height, width = 40, 61
    masks = torch.rand(5, 28, 28, generator=random)
    corner = torch.rand(5, 2, generator=random) * torch.tensor([width, height])
    # Some touch the image's edges, and some are of no size.
    boxes = torch.cat([corner, corner + torch.rand(5, 2, generator=random) * largest], 1)
    boxes = boxes.clamp(min=0).minimum(torch.tensor([width, height, width, height]).float())
    pasted = paste_masks_in_image(masks[:, None], boxes, (height, width))
    expected = interpolate(pasted, grid, mode="nearest-exact")[:, 0]
    rows, columns = cell_pixels(height, grid[0], boxes.device), cell_pixels(width, grid[1], boxes.device)
    found = masks_at(masks, boxes, rows[None], columns[None])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_each_detection_may_ask_for_pixels_of_its_own() -> None:
    masks = torch.rand(2, 28, 28, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[3.0, 4, 30, 20], [0, 0, 12, 31]])
    rows, columns = torch.tensor([[5.0, 9.0], [1.0, 30.0]]), torch.tensor([[4.0, 12.0, 29.0], [0.0, 3.0, 40.0]])
    pasted = paste_masks_in_image(masks[:, None], boxes, (32, 48))[:, 0]
    expected = torch.stack([pasted[i][rows[i].long()][:, columns[i].long()] for i in range(2)])
    torch.testing.assert_close(masks_at(masks, boxes, rows, columns), expected, atol=1e-5, rtol=0)


def test_without_detections_there_is_no_mask() -> None:
    assert masks_at(torch.zeros(0, 28, 28), torch.zeros(0, 4), torch.zeros(1, 4), torch.zeros(1, 6)).shape == (0, 4, 6)
