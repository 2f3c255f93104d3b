"""BYOL (Grill et al. 2020): a trunk predicts what a moving average of itself makes of another view."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from datalake.sample import Sample
from student.config import StudentConfig
from student.pretraining.collapse import RecentVectors
from student.pretraining.views import ViewConfig, Views, make_views
from student.trunk import PaperTrunk, TopDownTrunk, build_trunk, resolved, trunk_settings
from training.fingerprint import Plain
from training.generators import Chance
from training.objective import Batch, Loss, Objective, ParameterGroup


@dataclass(frozen=True, kw_only=True)
class ByolConfig:
    """The heads, and how slowly the target follows."""

    # Neurons of the projector's and of the predictor's hidden layer.
    hidden: int = 512
    # Dimensions of projections and predictions.
    dimensions: int = 128
    # The norm in both, over the batch as the paper has it, or over a vector's own numbers. With layer norms projections
    # of 16 pairs collapsed within 60 steps, at every momentum from .97 to .996; with batch norms their std stayed .85.
    head_norm: Literal["batch", "layer"] = "batch"
    # The target's momentum in the first step, from where half a cosine leads up to 1: about .97 for up to 1,000 steps,
    # .99 for up to 10,000, .996 from 20,000 on.
    momentum: float = 0.97
    # Projections of so many images tell whether the representation has collapsed; before, no alarm is raised.
    recent: int = 1024


class ByolObjective(Objective):
    """Normalized mean squared error of predictions and the target's projections, both ways round.

    Each level of the trunk's maps is averaged over the image, and their channels stand side by side. Projector and
    predictor are two layers with a norm between. With group norms in the trunk, and layer norms there, nothing would
    depend on the batch; batch norms there see both views of all pairs that are computed at once.
    The target is a copy of trunk and projector that gets no gradient; it follows them after each step.

    In a batch those that the loop calls labelled are the pairs' first images, and the others are their second ones in
    the same order; where there are none, both views are of one image.
    """

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, student: StudentConfig, config: ByolConfig, views: ViewConfig) -> None:
        """Build it with random weights; raises StudentError where there is no such trunk."""
        super().__init__()
        self._student, self._config, self._views = resolved(student), config, views
        self.trunk = build_trunk(student)
        width = self.trunk.width + sum(self.trunk.coarse_widths)
        self.projector = _head(width, config.dimensions, config)
        self.predictor = _head(config.dimensions, config.dimensions, config)
        self.target_trunk = deepcopy(self.trunk).requires_grad_(False)
        self.target_projector = deepcopy(self.projector).requires_grad_(False)
        self.recent = RecentVectors(config.recent, config.dimensions)
        for name in ("image_mean", "image_std"):
            color = torch.tensor(getattr(self._student, name))
            self.register_buffer(name, color[:, None, None], persistent=False)

    def collate(self, batch: Batch, targets: Mapping[str, Any], chance: Chance) -> Views:
        """Return two views of each pair, normalized as the student's images are."""
        del targets
        first: list[Sample] = list(batch.samples[: batch.labelled])
        second = list(batch.samples[batch.labelled :]) or first
        generators = chance.generators("views")[: len(first)]
        views = make_views(
            [sample.image for sample in first],
            [sample.image for sample in second],
            generators,
            self._views,
            self.image_mean.device,
        )
        mean, std = self.image_mean, self.image_std
        return Views((views.first - mean) / std, (views.second - mean) / std, views.crops)

    def forward(self, batch: Views, progress: float) -> dict[str, Loss]:
        """Return the loss `byol`, 0 … 8, and 4 where predictions say nothing."""
        del progress
        images = torch.cat([batch.first, batch.second])
        pooled = pool(self.trunk, images)
        with torch.no_grad():
            target_pooled = pool(self.target_trunk, images)
        # Heads and loss want all the digits.
        with torch.autocast(images.device.type, enabled=False):
            projected = self.projector(pooled)
            predicted = self.predictor(projected)
            with torch.no_grad():
                expected = self.target_projector(target_pooled)
        if self.training:
            self.recent.append(projected[: len(batch.first)])
        (first, second), (of_first, of_second) = predicted.chunk(2), expected.chunk(2)
        return {"byol": Loss(byol_loss(first, of_second) + byol_loss(second, of_first))}

    def diagnostics(self, batch: Views, progress: float) -> dict[str, Tensor]:
        """Return `collapse_metrics` of the recent first views' projections."""
        del batch, progress
        return self.recent.metrics()

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Have the target follow."""
        momentum = momentum_at(progress, self._config.momentum)
        for target, online in ((self.target_trunk, self.trunk), (self.target_projector, self.projector)):
            for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
                slow.lerp_(fast, 1 - momentum)
            # Statistics of batch norms, where the trunk has any, are averages already.
            for average, latest in zip(target.buffers(), online.buffers(), strict=True):
                average.copy_(latest)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return trunk and heads in one group, all of them AdamW's."""
        return [ParameterGroup("byol", [p for p in self.parameters() if p.requires_grad], [])]

    def product(self) -> PaperTrunk | TopDownTrunk:
        """Return the trunk, not the target's."""
        return self.trunk

    def config(self) -> str:
        """Return as JSON the configuration of a student with this trunk."""
        return self._student.to_json()

    def fingerprint(self) -> dict[str, Plain]:
        """Return the trunk's architecture."""
        return {f"student.{name}": value for name, value in trunk_settings(self._student).items()}


def byol_loss(predicted: Tensor, expected: Tensor) -> Tensor:
    """Return the mean over rows of ||p/||p|| - z/||z|| ||^2 = 2 - 2 cos(p, z), of float32 [B, d]; no gradient to z."""
    cosines = (normalize(predicted, dim=1) * normalize(expected.detach(), dim=1)).sum(1)
    return (2 - 2 * cosines).mean()


def momentum_at(progress: float, first: float) -> float:
    """Return the target's momentum: from `first` at progress 0 up half a cosine to 1 at progress 1."""
    return 1 - (1 - first) * (1 + math.cos(math.pi * progress)) / 2


def pool(trunk: nn.Module, images: Tensor) -> Tensor:
    """Return the mean over the image of each map of a trunk, side by side, float32 [B, D] for images [B, 3, H, W]."""
    features = trunk(images)
    return torch.cat([level.float().mean((2, 3)) for level in (features.fine, *features.coarse)], 1)


def _head(inputs: int, outputs: int, config: ByolConfig) -> nn.Sequential:
    hidden = config.hidden
    norm = nn.BatchNorm1d(hidden) if config.head_norm == "batch" else nn.LayerNorm(hidden)
    return nn.Sequential(nn.Linear(inputs, hidden), norm, nn.ReLU(inplace=True), nn.Linear(hidden, outputs, bias=False))
