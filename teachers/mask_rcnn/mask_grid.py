"""The masks of detections where a grid's cells have their centers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate, pad


def cell_pixels(pixels: int, cells: int, device: torch.device) -> Tensor:
    """Return float32 [cells], the pixel of `pixels` at each cell's center: the one that `nearest-exact` takes."""
    numbers = torch.arange(pixels, dtype=torch.float32, device=device)
    return interpolate(numbers[None, None], cells, mode="nearest-exact")[0, 0]


def masks_at(masks: Tensor, boxes: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return float32 [N, h, w], what torchvision's `paste_masks_in_image` has at the pixels, up to rounding.

    masks: float32 [N, m, m], probabilities within each detection's box
    boxes: float32 [N, 4], x0, y0, x1, y1 in the image's pixels
    rows, columns: float32 [N or 1, h] and [N or 1, w], the numbers of the pixels

    As there, masks get a border of one empty cell, boxes grow by as much and are cut to whole pixels, and the mask is
    stretched over these. But nothing is asked of a box on the host, and only the pixels wanted are computed: for all
    detections at once, however many images they are of.
    """
    if not len(masks):
        return masks.new_zeros(0, rows.shape[1], columns.shape[1])
    cells = masks.shape[-1] + 2
    half = (boxes[:, 2:] - boxes[:, :2]) * 0.5 * (cells / masks.shape[-1])
    center = (boxes[:, 2:] + boxes[:, :2]) * 0.5
    first, last = (center - half).trunc(), (center + half).trunc()
    size = last - first + 1

    def along(pixel: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        """Return where in the mask, -1 … 1 from edge to edge, the pixels are; and whether within the box."""
        start, extent = first[:, axis, None], size[:, axis, None]
        # In the mask's cells as `interpolate` finds them; below half a cell there is nothing before the first.
        place = ((pixel - start + 0.5) * (cells / extent)).clamp(min=0.5)
        return place * (2 / cells) - 1, (pixel >= start) & (pixel < start + extent)

    x, x_inside = along(columns, 0)
    y, y_inside = along(rows, 1)
    shape = len(masks), rows.shape[1], columns.shape[1]
    grid = torch.stack([x[:, None].expand(shape), y[:, :, None].expand(shape)], -1)
    sampled = grid_sample(pad(masks[:, None], (1,) * 4), grid, padding_mode="border", align_corners=False)[:, 0]
    return sampled * (y_inside[:, :, None] & x_inside[:, None])
