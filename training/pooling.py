"""Features of boxes, each from the level of the pyramid that is made for its size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

_SAMPLES = 2
_CANONICAL_STRIDE = 16
# Against the rounding of logarithms (torchvision's number).
_TINY = 1e-6
_FAR_AWAY_PX = -1e6


class LevelPool(nn.Module):
    """RoIAlign on a feature pyramid (Lin et al. 2017, equation 1; He et al. 2017): torchvision's MultiScaleRoIAlign."""

    def __init__(self, stride: int, *, cells: int = 7, canonical_px: int = 128) -> None:
        """Pool from levels of which the first has this stride in pixels, and each further one twice the one before.

        cells: along each side of what is pooled
        canonical_px: side of the boxes that stride 16 is made for; torchvision's 224 is for images three times as
            wide as the student's
        """
        super().__init__()
        self.cells = cells
        self._stride, self._canonical_px = stride, canonical_px

    def forward(self, levels: Sequence[Tensor], rois: Tensor) -> Tensor:
        """Return [K, C, cells, cells] of levels [B, C, h, w] each, and rois float32 [K, 5] as `rois_of` gives them."""
        return (self.by_choice if rois.device.type == "cpu" else self.by_distance)(levels, rois)

    def by_choice(self, levels: Sequence[Tensor], rois: Tensor) -> Tensor:
        """Pool each box on its own level. How many a level has must be known before: a GPU would be waited for."""
        number = self._level(rois, len(levels))
        pooled = levels[0].new_zeros(len(rois), levels[0].shape[1], self.cells, self.cells)
        for at, level in enumerate(levels):
            (chosen,) = torch.where(number == at)
            pooled[chosen] = self._align(level, rois[chosen], at)
        return pooled

    def by_distance(self, levels: Sequence[Tensor], rois: Tensor) -> Tensor:
        """Pool each box on every level, but far outside of all that are not its own: there RoIAlign gives 0."""
        number = self._level(rois, len(levels))[:, None]
        images, boxes = rois[:, :1], rois[:, 1:]
        pooled = None
        for at, level in enumerate(levels):
            there = torch.cat([images, torch.where(number == at, boxes, _FAR_AWAY_PX)], 1)
            one = self._align(level, there, at)
            pooled = one if pooled is None else pooled.add_(one)
        assert pooled is not None
        return pooled

    def _align(self, level: Tensor, rois: Tensor, at: int) -> Tensor:
        pooled: Tensor = roi_align(level, rois, self.cells, 1 / (self._stride << at), _SAMPLES)
        return pooled

    def _level(self, rois: Tensor, levels: int) -> Tensor:
        """Return int64 [K], the level of each box."""
        side = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).sqrt()
        # Levels are numbered by the logarithms of their strides.
        canonical, first = _CANONICAL_STRIDE.bit_length() - 1, self._stride.bit_length() - 1
        number = torch.floor(canonical + torch.log2(side / self._canonical_px) + _TINY)
        return number.clamp(first, first + levels - 1).long() - first


def rois_of(boxes: Tensor) -> Tensor:
    """Return float32 [B * N, 5] for boxes [B, N, 4]: the number of the image before each box."""
    images = torch.arange(len(boxes), dtype=boxes.dtype, device=boxes.device)
    return torch.cat([images[:, None, None].expand(-1, boxes.shape[1], 1), boxes], 2).flatten(0, 1)
