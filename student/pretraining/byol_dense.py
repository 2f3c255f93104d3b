"""BYOL of cells (PixPro, Xie et al. 2021): what one view shows of a place tells what the other shows of it."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, normalize

from student.config import StudentConfig
from student.pretraining.byol import byol_loss
from student.pretraining.collapse import FLATNESS, RecentVectors, flatness
from student.pretraining.self_distillation import HeadNorm, SelfDistillation, head, pooled
from student.pretraining.views import Crop, ViewConfig, Views, centers
from training.objective import Loss

# Cells are one place where their centers are nearer than this times the longer diagonal of the two (PixPro).
_NEAR = 0.7


@dataclass(frozen=True, kw_only=True)
class ByolDenseConfig:
    """The heads of cells and of whole images. Places are those of an image: use pairs `same`.

    With pairs `next` a place shows what was there before the car moved on; `byol-lidar` knows where it is now.
    """

    # Neurons of the hidden layer of projectors and predictors.
    hidden: int = 512
    # Dimensions of projections and predictions.
    dimensions: int = 128
    # The norm in the heads; see `ByolConfig`.
    head_norm: HeadNorm = "batch"
    # What predicts a cell's projection: two layers, or the projections of all cells of the view that are like it.
    predictor: Literal["mlp", "propagation"] = "propagation"
    # Cells of the trunk's finest map to a side of those that are compared.
    cell: int = 2
    # Weight of the loss of cells.
    dense: float = 1.0
    # Weight of BYOL's loss of whole views.
    pooled: float = 1.0
    # The target's momentum in the first step; see `ByolConfig`.
    momentum: float = 0.97
    # Vectors that tell whether the representation has collapsed.
    recent: int = 1024


class Propagation(nn.Module):
    """A cell's projection is a sum over all cells of the view, weighted by max(cos, 0)^2 of the two's projections."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.value = nn.Linear(dimensions, dimensions)

    def forward(self, cells: Tensor) -> Tensor:
        """Return [B, N, d] of projections [B, N, d]."""
        unit = normalize(cells, dim=2)
        likeness = (unit @ unit.transpose(1, 2)).clamp(min=0).square()
        return likeness @ self.value(cells)


class ByolDenseObjective(SelfDistillation):
    """BYOL's loss of cells that show one place, and of whole views, both ways round."""

    name = "byol-dense"
    last_flatness: Tensor

    def __init__(self, student: StudentConfig, config: ByolDenseConfig, views: ViewConfig) -> None:
        """Build it with random weights; raises StudentError where there is no such trunk."""
        super().__init__(student, views, config.momentum)
        self._settings = config
        sizes = config.hidden, config.dimensions, config.head_norm
        self.projector = head(self.pooled_width, *sizes)
        self.predictor = head(config.dimensions, *sizes)
        self.cell_projector = head(self.trunk.width, *sizes)
        propagation = config.predictor == "propagation"
        self.cell_predictor = Propagation(config.dimensions) if propagation else head(config.dimensions, *sizes)
        self.target_projector = deepcopy(self.projector).requires_grad_(False)
        self.target_cell_projector = deepcopy(self.cell_projector).requires_grad_(False)
        self.recent = RecentVectors(config.recent, config.dimensions)
        self.recent_cells = RecentVectors(config.recent, config.dimensions)
        self.register_buffer("last_flatness", torch.zeros(()), persistent=False)

    def followers(self) -> list[tuple[nn.Module, nn.Module]]:
        """Return the projectors."""
        return [(self.target_projector, self.projector), (self.target_cell_projector, self.cell_projector)]

    def forward(self, batch: Views, progress: float) -> dict[str, Loss]:
        """Return the losses `byol-dense`, of cells, and `byol`, of whole views, each 0 … 8."""
        del progress
        images, config = torch.cat([batch.first, batch.second]), self._settings
        features = self.trunk(images)
        with torch.no_grad():
            target_features = self.target_trunk(images)
        fine, target_fine = (avg_pool2d(f.fine, config.cell).float() for f in (features, target_features))
        grid = fine.shape[2], fine.shape[3]
        with torch.autocast(images.device.type, enabled=False):
            whole = self.projector(pooled(features))
            predicted = self.predictor(whole)
            cells = of_cells(self.cell_projector, fine.flatten(2).transpose(1, 2))
            if isinstance(self.cell_predictor, Propagation):
                predicted_cells = self.cell_predictor(cells)
            else:
                predicted_cells = of_cells(self.cell_predictor, cells)
            with torch.no_grad():
                expected = self.target_projector(pooled(target_features))
                expected_cells = of_cells(self.target_cell_projector, target_fine.flatten(2).transpose(1, 2))
            same = same_places(batch.crops, grid).to(images.device)
            (one, other), (of_one, of_other) = predicted_cells.chunk(2), expected_cells.chunk(2)
            dense = dense_loss(one, of_other, same) + dense_loss(other, of_one, same.transpose(1, 2))
            (first, second), (of_first, of_second) = predicted.chunk(2), expected.chunk(2)
            pooled_loss = byol_loss(first, of_second) + byol_loss(second, of_first)
        if self.training:
            count = len(batch.first)
            self.recent.append(whole[:count])
            self.recent_cells.append(one_cell_each(cells[:count], self.recent_cells.count))
            self.last_flatness = flatness(cells[:count].detach()).float()
        return {"byol-dense": Loss(dense, config.dense), "byol": Loss(pooled_loss, config.pooled)}

    def diagnostics(self, batch: Views, progress: float) -> dict[str, Tensor]:
        """Return `collapse_metrics` of recent views and cells, and how much alike the cells of a view are."""
        del batch, progress
        whole = self.recent.metrics() if self._settings.pooled else {}
        return {**whole, **self.recent_cells.metrics("cells"), FLATNESS: self.last_flatness}


def same_places(crops: list[tuple[Crop, Crop]], grid: tuple[int, int]) -> Tensor:
    """Return which cells of the first views [h, w] show the place of which cells of the second, bool [B, N, N]."""
    sides = [[crop for crop, _ in crops], [crop for _, crop in crops]]
    first, second = (centers(each, grid) for each in sides)
    longer = torch.tensor([max(_diagonal(crop, grid) for crop in pair) for pair in crops])
    return torch.cdist(first, second) < _NEAR * longer[:, None, None]


def dense_loss(predicted: Tensor, expected: Tensor, same: Tensor) -> Tensor:
    """Return the mean over views of the mean of 2 - 2 cos over pairs of cells [B, N, d] that are the same [B, N, N].

    No gradient to the expected ones. Views without any count as 0.
    """
    cosines = normalize(predicted, dim=2) @ normalize(expected.detach(), dim=2).transpose(1, 2)
    weights = same.float()
    return (((2 - 2 * cosines) * weights).sum((1, 2)) / weights.sum((1, 2)).clamp(min=1)).mean()


def of_cells(network: nn.Module, cells: Tensor) -> Tensor:
    """Return what a network of rows makes of cells [B, N, D]: [B, N, d]."""
    rows: Tensor = network(cells.flatten(0, 1))
    return rows.unflatten(0, cells.shape[:2])


def one_cell_each(cells: Tensor, turn: Tensor) -> Tensor:
    """Return one cell of each image [B, N, d], another one at each turn: vectors of one image are no different ones."""
    number = torch.arange(len(cells), device=cells.device)
    # A prime that goes through all cells of any grid of fewer.
    return cells[number, (number + turn) * 7919 % cells.shape[1]]


def _diagonal(crop: Crop, grid: tuple[int, int]) -> float:
    height, width = grid
    return float(((crop.x1 - crop.x0) / width) ** 2 + ((crop.y1 - crop.y0) / height) ** 2) ** 0.5
