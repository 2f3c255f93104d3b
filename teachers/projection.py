"""From points to pixels: which of a frame's points each cell of the student's grid shows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from datalake.sample import Lidar

# Between surfaces that lie further apart than this a cell could belong to either.
_APART_M, _APART_SHARE = 2.0, 0.5


def cell_points(
    lidar: Lidar, image_size: tuple[int, int], grid: tuple[int, int], *, seen: Tensor, dilate: bool = False
) -> Tensor:
    """Return int64 [h, w], the index into the frame's P points of the one that each cell shows, -1 for none.

    image_size: height and width of the picture that `lidar.pixel_uv` counts in
    grid: height and width of the student's grid, whose cells divide the picture evenly
    seen: bool [P], the points that take part (those the teacher has looked at)
    dilate: let neighbours fill empty cells, see below

    Each point lies where the record itself projects it to, in the cell floor(v * h / H), floor(u * w / W); one
    outside the picture takes no part. The point nearest to the camera wins a cell; of equally near ones the one of
    lower index.

    With `dilate` an empty cell takes the nearest of the points shown by its eight neighbours (ties as above), unless
    the farthest of these neighbours is more than 2 m or more than 50 % further from the camera than the nearest: there
    an edge runs through, the cell may show either surface, and it stays empty. That is how we read the 3 x 3 dilation
    of the index map and the depth check of 3D-to-2D distillation (Liu et al. 2021). Cells that have a point are never
    changed.
    """
    (image_height, image_width), (height, width) = image_size, grid
    u, v = lidar.pixel_uv
    point = lidar.pixel_point.long()
    usable = seen[point] & (u >= 0) & (u < image_width) & (v >= 0) & (v < image_height)
    u, v, point, depth_m = u[usable], v[usable], point[usable], lidar.pixel_depth_m[usable]
    # Rounding may lift a coordinate just inside the far edge onto it.
    column = (u * (width / image_width)).long().clamp_(max=width - 1)
    row = (v * (height / image_height)).long().clamp_(max=height - 1)

    # Points are ranked from near to far, so that the lowest rank in a cell is its point: no depth is compared twice.
    by_index = point.argsort(stable=True)
    ranked = by_index[depth_m[by_index].argsort(stable=True)]
    nothing = len(ranked)
    cells = torch.full((height * width,), nothing, dtype=torch.int64, device=point.device)
    ranks = torch.arange(nothing, device=point.device)
    cells.scatter_reduce_(0, (row * width + column)[ranked], ranks, "amin")
    if dilate:
        cells = _filled(cells.view(height, width), depth_m[ranked]).flatten()
    # One more entry answers for the cells without a point.
    return torch.cat([point[ranked], point.new_tensor([-1])])[cells].view(height, width)


def place(features: Tensor, shown: Tensor) -> tuple[Tensor, Tensor]:
    """Return [D, h, w] and bool [1, h, w]: the features [P, D] of the points that the cells of `shown` [h, w] show.

    A cell without a point (-1) is 0 and not valid.
    """
    valid = shown >= 0
    values = features.new_zeros(*shown.shape, features.shape[1])
    values[valid] = features[shown[valid]]
    return values.permute(2, 0, 1).contiguous(), valid[None]


def _filled(ranks: Tensor, depth_m: Tensor) -> Tensor:
    """Return the ranks [h, w] with empty cells (rank n) filled from their neighbours; depth_m [n] ascends."""
    if not len(depth_m):
        return ranks
    empty = ranks == len(depth_m)
    # float64 holds every rank exactly, and pools on every device.
    exact = ranks.double()
    nearest = -max_pool2d(-exact.masked_fill(empty, torch.inf)[None], 3, 1, 1)[0]
    farthest = max_pool2d(exact.masked_fill(empty, -torch.inf)[None], 3, 1, 1)[0]
    fillable = empty & nearest.isfinite()
    # Cells that are not fillable ask for any rank that exists; their answer is not used.
    near_m = depth_m[nearest.where(fillable, exact.new_zeros(())).long()]
    far_m = depth_m[farthest.where(fillable, exact.new_zeros(())).long()]
    same_surface = (far_m - near_m <= _APART_M) & (far_m <= near_m * (1 + _APART_SHARE))
    return torch.where(fillable & same_surface, nearest.nan_to_num(posinf=0).long(), ranks)
