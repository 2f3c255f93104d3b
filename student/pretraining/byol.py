"""BYOL (Grill et al. 2020): a trunk predicts what a moving average of itself makes of another view."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from student.config import StudentConfig
from student.pretraining.collapse import RecentVectors
from student.pretraining.self_distillation import HeadNorm, SelfDistillation, head, pooled
from student.pretraining.views import ViewConfig, Views
from training.objective import Loss


@dataclass(frozen=True, kw_only=True)
class ByolConfig:
    """The heads, and how slowly the target follows."""

    # Neurons of the projector's and of the predictor's hidden layer.
    hidden: int = 512
    # Dimensions of projections and predictions.
    dimensions: int = 128
    # The norm in both, over the batch as the paper has it, or over a vector's own numbers. With layer norms projections
    # of 16 pairs collapsed within 60 steps, at every momentum from .97 to .996; with batch norms their std stayed .85.
    head_norm: HeadNorm = "batch"
    # The target's momentum in the first step, from where half a cosine leads up to 1: about .97 for up to 1,000 steps,
    # .99 for up to 10,000, .996 from 20,000 on.
    momentum: float = 0.97
    # Projections of so many images tell whether the representation has collapsed; before, no alarm is raised.
    recent: int = 1024


class ByolObjective(SelfDistillation):
    """Normalized mean squared error of predictions and the target's projections, both ways round.

    Each level of the trunk's maps is averaged over the image, and their channels stand side by side. Projector and
    predictor are two layers with a norm between. With group norms in the trunk, and layer norms there, nothing would
    depend on the batch; batch norms there see both views of all pairs that are computed at once.
    """

    name = "byol"

    def __init__(self, student: StudentConfig, config: ByolConfig, views: ViewConfig) -> None:
        """Build it with random weights; raises StudentError where there is no such trunk."""
        super().__init__(student, views, config.momentum)
        self.projector = head(self.pooled_width, config.hidden, config.dimensions, config.head_norm)
        self.predictor = head(config.dimensions, config.hidden, config.dimensions, config.head_norm)
        self.target_projector = deepcopy(self.projector).requires_grad_(False)
        self.recent = RecentVectors(config.recent, config.dimensions)

    def followers(self) -> list[tuple[nn.Module, nn.Module]]:
        """Return the projectors."""
        return [(self.target_projector, self.projector)]

    def forward(self, batch: Views, progress: float) -> dict[str, Loss]:
        """Return the loss `byol`, 0 … 8, and 4 where predictions say nothing."""
        del progress
        images = torch.cat([batch.first, batch.second])
        features = pooled(self.trunk(images))
        with torch.no_grad():
            target_features = pooled(self.target_trunk(images))
        # Heads and loss want all the digits.
        with torch.autocast(images.device.type, enabled=False):
            projected = self.projector(features)
            predicted = self.predictor(projected)
            with torch.no_grad():
                expected = self.target_projector(target_features)
        if self.training:
            self.recent.append(projected[: len(batch.first)])
        (first, second), (of_first, of_second) = predicted.chunk(2), expected.chunk(2)
        return {"byol": Loss(byol_loss(first, of_second) + byol_loss(second, of_first))}

    def diagnostics(self, batch: Views, progress: float) -> dict[str, Tensor]:
        """Return `collapse_metrics` of the recent first views' projections."""
        del batch, progress
        return self.recent.metrics()


def byol_loss(predicted: Tensor, expected: Tensor) -> Tensor:
    """Return the mean over rows of ||p/||p|| - z/||z|| ||^2 = 2 - 2 cos(p, z), of float32 [B, d]; no gradient to z."""
    cosines = (normalize(predicted, dim=1) * normalize(expected.detach(), dim=1)).sum(1)
    return (2 - 2 * cosines).mean()
