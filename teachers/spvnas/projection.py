"""From points to pixels: which of the frames' points each cell of the student's grid shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from datalake.sample import Lidar
from teachers.transfer import joined_on_device, on_device

# Between surfaces that lie further apart than this a cell could belong to either.
_APART_M, _APART_SHARE = 2.0, 0.5
_NOWHERE = torch.iinfo(torch.int64).max


@dataclass(frozen=True, slots=True, eq=False)
class Projections:
    """Where B images show points: n projections, those of one image beside each other.

    point: int64 [n], the number of each one's point among those of all images' frames
    image: int64 [n], the image that shows it
    uv: float32 [2, n], the record's own projections, in the image's pixels
    depth_m: float32 [n], the distance from the camera's center
    sizes: height and width of each image
    """

    point: Tensor
    image: Tensor
    uv: Tensor
    depth_m: Tensor
    sizes: tuple[tuple[int, int], ...]

    @staticmethod
    def of(
        lidars: Sequence[Lidar], starts: Sequence[int], sizes: Sequence[tuple[int, int]], device: torch.device
    ) -> Projections:
        """Return all that the images show, on the device.

        starts: the number of the first point of each image's frame
        """
        counts = torch.tensor([len(lidar.pixel_point) for lidar in lidars])
        point = [lidar.pixel_point.long() + start for lidar, start in zip(lidars, starts, strict=True)]
        uv = joined_on_device([lidar.pixel_uv for lidar in lidars], device, 1)
        depth_m = joined_on_device([lidar.pixel_depth_m for lidar in lidars], device)
        image = torch.arange(len(lidars)).repeat_interleave(counts)
        return Projections(joined_on_device(point, device), on_device(image, device), uv, depth_m, tuple(sizes))


def cell_points(shown: Projections, grid: tuple[int, int], *, dilate: bool = False) -> Tensor:
    """Return int64 [B, h, w], the number of the point that each cell of each image shows, -1 for none.

    grid: height and width of the student's grid, whose cells divide each image evenly
    dilate: let neighbors fill empty cells, see below

    Each point lies where the record itself projects it to, in the cell floor(v * h / H), floor(u * w / W); one
    outside the image takes no part. The point nearest to the camera wins a cell; of equally near ones the one of
    lower number.

    With `dilate` an empty cell takes the nearest of the points shown by its eight neighbors (ties as above), unless
    the farthest of these neighbors is more than 2 m or more than 50 % further from the camera than the nearest: there
    an edge runs through, the cell may show either surface, and it stays empty. That is how we read the 3 x 3 dilation
    of the index map and the depth check of 3D-to-2D distillation (Liu et al. 2021). Cells that have a point are never
    changed.
    """
    (height, width), device = grid, shown.point.device
    facts = [(rows, columns, height / rows, width / columns) for rows, columns in shown.sizes]
    image_height, image_width, rows_a_pixel, columns_a_pixel = on_device(
        torch.tensor(facts, dtype=torch.float32).view(-1, 4).t(), device
    )[:, shown.image]
    u, v = shown.uv
    inside = (u >= 0) & (u < image_width) & (v >= 0) & (v < image_height)
    # Rounding may lift a coordinate just inside the far edge onto it.
    column = (u * columns_a_pixel).long().clamp(0, width - 1)
    row = (v * rows_a_pixel).long().clamp(0, height - 1)
    cell = (shown.image * height + row) * width + column

    # First each cell's least depth, then the lowest number of a point that has it. What lies outside the images is
    # infinitely far and has no number: nothing is left out, so the host need not know how many are inside.
    depth_m = shown.depth_m.where(inside, torch.inf)
    cells = (len(shown.sizes), height, width)
    nearest_m = depth_m.new_full((cells[0] * height * width,), torch.inf).scatter_reduce_(0, cell, depth_m, "amin")
    candidate = shown.point.where(inside & (depth_m == nearest_m[cell]), _NOWHERE)
    points = torch.full_like(nearest_m, _NOWHERE, dtype=torch.int64).scatter_reduce_(0, cell, candidate, "amin")
    if dilate:
        points = _filled(points.view(cells), nearest_m.view(cells)).flatten()
    return points.where(points != _NOWHERE, -1).view(cells)


def place(features: Tensor, shown: Tensor) -> tuple[Tensor, Tensor]:
    """Return [B, D, h, w] and bool [B, 1, h, w]: the features [P, D] of the points that cells [B, h, w] show.

    A cell without a point (-1) is 0 and not valid.
    """
    # Minus one is the last row, which is there for the cells without a point.
    values = torch.cat([features, features.new_zeros(1, features.shape[1])])[shown]
    return values.permute(0, 3, 1, 2).contiguous(), (shown >= 0)[:, None]


def _filled(points: Tensor, depth_m: Tensor) -> Tensor:
    """Return the points [B, h, w] with empty cells (_NOWHERE, depth infinite) filled from their neighbors."""
    # Cells are ranked by what they show, from near to far: no depth is compared twice, and ties are settled.
    by_number = points.flatten().argsort()
    ranked = by_number[depth_m.flatten()[by_number].argsort(stable=True)]
    empty = points == _NOWHERE
    # float64 holds every rank exactly, and pools on every device.
    rank = torch.empty_like(ranked).scatter_(0, ranked, torch.arange(len(ranked), device=ranked.device))
    exact = rank.view(points.shape).double()
    nearest = -max_pool2d(-exact.masked_fill(empty, torch.inf), 3, 1, 1)
    farthest = max_pool2d(exact.masked_fill(empty, -torch.inf), 3, 1, 1)
    fillable = empty & nearest.isfinite()
    # Cells that are not fillable ask for any rank that exists; their answer is not used.
    nearest, farthest = (ranked[rank.where(fillable, 0.0).long()] for rank in (nearest, farthest))
    near_m, far_m = depth_m.flatten()[nearest], depth_m.flatten()[farthest]
    same_surface = (far_m - near_m <= _APART_M) & (far_m <= near_m * (1 + _APART_SHARE))
    return torch.where(fillable & same_surface, points.flatten()[nearest], points)
