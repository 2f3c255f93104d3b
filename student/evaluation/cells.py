"""What is clustered: a vector for each cell of an image, of a trunk or of its colors and places."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate, normalize

from student.pretraining.vit import Vit

# sRGB's primaries and white point (IEC 61966-2-1), and the bounds of CIE L*a*b*.
_TO_XYZ = torch.tensor([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_WHITE = torch.tensor([0.9505, 1.0, 1.089])
_LINEAR_BELOW, _CUBIC_ABOVE = 0.04045, (6 / 29) ** 3
# How much the place counts beside the color.
_PLACE = 0.5


class TrunkCells(nn.Module):
    """The finest map of a trunk, averaged to a grid where it is finer."""

    mean: Tensor
    std: Tensor

    def __init__(self, trunk: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], stride: int) -> None:
        """Take the trunk's normalization of images, and the pixels of its input to a side of a cell."""
        super().__init__()
        self.trunk, self.stride = trunk, stride
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return float32 [B, D, h, w] of images float32 [B, 3, H, W] within 0 … 1."""
        fine = self.trunk((images - self.mean) / self.std).fine.float()
        grid = (images.shape[2] // self.stride, images.shape[3] // self.stride)
        return adaptive_avg_pool2d(fine, grid) if fine.shape[2] > grid[0] else fine


class VitCells(nn.Module):
    """The patches of a transformer, between which a finer grid is interpolated: its features, not its clusters."""

    mean: Tensor
    std: Tensor

    def __init__(self, vit: Vit, mean: tuple[float, ...], std: tuple[float, ...], stride: int) -> None:
        """Take the transformer's normalization of images, and the pixels of its input to a side of a cell."""
        super().__init__()
        self.vit, self.stride = vit, stride
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return float32 [B, D, h, w] of images float32 [B, 3, H, W] within 0 … 1."""
        patches = self.vit((images - self.mean) / self.std).patches.float()
        grid = (images.shape[2] // self.stride, images.shape[3] // self.stride)
        return interpolate(patches, grid, mode="bilinear", align_corners=False)


def color_and_place(images: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return L*, a*, b*, x and y of each cell float32 [B, 5, h, w] of images float32 [B, 3, H, W] within 0 … 1."""
    cells = adaptive_avg_pool2d(images, grid)
    linear = torch.where(cells <= _LINEAR_BELOW, cells / 12.92, ((cells + 0.055) / 1.055) ** 2.4)
    xyz = torch.einsum("dc,bchw->bdhw", _TO_XYZ, linear) / _WHITE[:, None, None]
    curve = torch.where(xyz > _CUBIC_ABOVE, xyz.clamp(min=1e-12) ** (1 / 3), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = curve.unbind(1)
    lab = torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)
    rows, columns = ((torch.arange(side) + 0.5) / side for side in grid)
    place = torch.stack([columns.expand(grid), rows[:, None].expand(grid)])
    return torch.cat([lab, place.expand(len(images), -1, -1, -1)], 1)


def standardized(cells: Tensor, like: Tensor) -> Tensor:
    """Return `color_and_place` [..., 5] with the means and deviations of others [..., 5] taken out, places halved."""
    rows = like.reshape(-1, like.shape[-1])
    weights = torch.tensor([1.0, 1.0, 1.0, _PLACE, _PLACE])
    return (cells - rows.mean(0)) / rows.std(0).clamp(min=1e-6) * weights


def rows_of(maps: Tensor, *, unit: bool) -> Tensor:
    """Return maps [B, D, h, w] as a row for each cell [B, h * w, D], scaled to length 1 where `unit` is true."""
    rows = maps.flatten(2).transpose(1, 2).contiguous()
    return normalize(rows, dim=2) if unit else rows


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Return images uint8 [B, 3, H, W] as float32 within 0 … 1 in another size, width and height."""
    values = images.float() / 255
    if tuple(values.shape[2:]) == size[::-1]:
        return values
    return interpolate(values, size[::-1], mode="bilinear", align_corners=False, antialias=True)
