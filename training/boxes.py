"""Boxes x0, y0, x1, y1 in pixels, any number of them at once: overlaps, and boxes encoded relative to others.

The numbers are torchvision's (`box_iou`, `BoxCoder`) to the last bit. torchvision's own functions take one image at a
time and make small tensors on the device as they go, each of which a GPU has to be waited for.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# A side grows to at most so many times the reference's, as a logarithm (torchvision's limit).
_MOST_GROWTH = math.log(1000 / 16)

# How much the four deltas of a box are magnified.
Weights = tuple[float, float, float, float]


def pairwise_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the IoU float32 [..., M, N] of boxes [..., M, 4] with others [..., N, 4]; NaN where neither has an area.

    Leading dimensions broadcast. Must not be differentiated: it works in place.
    """
    x0, y0, x1, y1 = boxes[..., :, None, :].unbind(-1)
    u0, v0, u1, v1 = others[..., None, :, :].unbind(-1)
    shared = shared_areas(boxes, others)
    areas = (x1 - x0) * (y1 - y0) + (u1 - u0) * (v1 - v0)
    return shared.div_(areas.sub_(shared))


def shared_areas(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the areas float32 [..., M, N] that boxes [..., M, 4] share with others [..., N, 4].

    Leading dimensions broadcast. Must not be differentiated: it works in place.
    """
    x0, y0, x1, y1 = boxes[..., :, None, :].unbind(-1)
    u0, v0, u1, v1 = others[..., None, :, :].unbind(-1)
    shared = torch.minimum(x1, u1).sub_(torch.maximum(x0, u0)).clamp_(min=0)
    return shared.mul_(torch.minimum(y1, v1).sub_(torch.maximum(y0, v0)).clamp_(min=0))


def shorter_sides(boxes: Tensor) -> Tensor:
    """Return the shorter side [...] of boxes [..., 4]."""
    return (boxes[..., 2:] - boxes[..., :2]).amin(-1)


def encode_boxes(boxes: Tensor, references: Tensor, weights: Weights) -> Tensor:
    """Return deltas [..., 4] that lead from references [..., 4] to boxes [..., 4] (Girshick et al. 2014, C)."""
    x, y, width, height = _center_form(boxes)
    x_from, y_from, width_from, height_from = _center_form(references)
    return torch.stack(
        [
            weights[0] * (x - x_from) / width_from,
            weights[1] * (y - y_from) / height_from,
            weights[2] * torch.log(width / width_from),
            weights[3] * torch.log(height / height_from),
        ],
        -1,
    )


def decode_boxes(deltas: Tensor, references: Tensor, weights: Weights) -> Tensor:
    """Return the boxes [..., 4] that deltas [..., 4] lead to from references [..., 4]; these broadcast."""
    x_from, y_from, width_from, height_from = _center_form(references)
    dx, dy, dw, dh = (delta / weight for delta, weight in zip(deltas.unbind(-1), weights, strict=True))
    x, y = dx * width_from + x_from, dy * height_from + y_from
    half_width = 0.5 * (dw.clamp(max=_MOST_GROWTH).exp() * width_from)
    half_height = 0.5 * (dh.clamp(max=_MOST_GROWTH).exp() * height_from)
    return torch.stack([x - half_width, y - half_height, x + half_width, y + half_height], -1)


def _center_form(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return center x, center y, width and height [...] of boxes [..., 4]."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    width, height = x1 - x0, y1 - y0
    return x0 + 0.5 * width, y0 + 0.5 * height, width, height
