"""What methods have in common in which a trunk learns from a moving average of itself."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from datalake.sample import Sample
from student.config import StudentConfig
from student.pretraining.views import ViewConfig, Views, make_views
from student.trunk import PaperTrunk, TopDownTrunk, TrunkFeatures, build_trunk, resolved, trunk_settings
from training.fingerprint import Plain
from training.generators import Chance
from training.objective import Batch, Objective, ParameterGroup

HeadNorm = Literal["batch", "layer"]


class SelfDistillation(Objective):
    """An online trunk, a target trunk that gets no gradient and follows it after each step, and two views of pairs.

    In a batch those that the loop calls labelled are the pairs' first images, and the others are their second ones in
    the same order; where there are none, both views are of one image.
    """

    name: str
    image_mean: Tensor
    image_std: Tensor

    def __init__(self, student: StudentConfig, views: ViewConfig, momentum: float) -> None:
        """Build the trunks with the same random weights; raises StudentError where there is no such trunk."""
        super().__init__()
        self._student, self._views, self._momentum = resolved(student), views, momentum
        self.trunk = build_trunk(student)
        self.target_trunk = deepcopy(self.trunk).requires_grad_(False)
        for name in ("image_mean", "image_std"):
            color = torch.tensor(getattr(self._student, name))
            self.register_buffer(name, color[:, None, None], persistent=False)

    @property
    def pooled_width(self) -> int:
        """Channels of `pooled`."""
        return self.trunk.width + sum(self.trunk.coarse_widths)

    @abstractmethod
    def followers(self) -> list[tuple[nn.Module, nn.Module]]:
        """Return each target with the online network that it follows, beside the trunks."""

    def collate(self, batch: Batch, targets: Mapping[str, Any], chance: Chance) -> Any:
        """Return two views of each pair, normalized as the student's images are."""
        del targets
        first, second = pairs_of(batch)
        return self.normalized_views(first, second, chance.generators("views")[: len(first)])

    def normalized_views(
        self, first: Sequence[Sample], second: Sequence[Sample], generators: Sequence[torch.Generator]
    ) -> Views:
        """Return two views of each pair, normalized; see `make_views`."""
        one, other = ([sample.image for sample in some] for some in (first, second))
        views = make_views(one, other, generators, self._views, self.image_mean.device)
        return Views(self.normalized(views.first), self.normalized(views.second), views.crops)

    def normalized(self, images: Tensor) -> Tensor:
        """Return images float32 within 0 … 1 [B, 3, h, w] as the student sees them."""
        return (images - self.image_mean) / self.image_std

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Have the targets follow."""
        momentum = momentum_at(progress, self._momentum)
        for target, online in ((self.target_trunk, self.trunk), *self.followers()):
            follow(target, online, momentum)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return trunk and heads in one group, all of them AdamW's."""
        return [ParameterGroup(self.name, [p for p in self.parameters() if p.requires_grad], [])]

    def product(self) -> PaperTrunk | TopDownTrunk:
        """Return the trunk, not the target's."""
        return self.trunk

    def config(self) -> str:
        """Return as JSON the configuration of a student with this trunk."""
        return self._student.to_json()

    def fingerprint(self) -> dict[str, Plain]:
        """Return the trunk's architecture."""
        return {f"student.{name}": value for name, value in trunk_settings(self._student).items()}


def pairs_of(batch: Batch) -> tuple[list[Sample], list[Sample]]:
    """Return the first and the second images of a batch's pairs."""
    first = list(batch.samples[: batch.labelled])
    return first, list(batch.samples[batch.labelled :]) or first


def momentum_at(progress: float, first: float) -> float:
    """Return the target's momentum: from `first` at progress 0 up half a cosine to 1 at progress 1."""
    return 1 - (1 - first) * (1 + math.cos(math.pi * progress)) / 2


@torch.no_grad()
def follow(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """Move the target's parameters towards the online network's, of which it keeps a share of `momentum`."""
    for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
        slow.lerp_(fast, 1 - momentum)
    # Statistics of batch norms, where there are any, are averages already.
    for average, latest in zip(target.buffers(), online.buffers(), strict=True):
        average.copy_(latest)


def pooled(features: TrunkFeatures) -> Tensor:
    """Return the mean over the image of each map of a trunk, side by side, float32 [B, D]."""
    return torch.cat([level.float().mean((2, 3)) for level in (features.fine, *features.coarse)], 1)


def head(inputs: int, hidden: int, outputs: int, norm: HeadNorm) -> nn.Sequential:
    """Return two layers on rows [n, inputs] with a norm between: over all rows, or over a row's own numbers."""
    between = nn.BatchNorm1d(hidden) if norm == "batch" else nn.LayerNorm(hidden)
    layers = (nn.Linear(inputs, hidden), between, nn.ReLU(inplace=True), nn.Linear(hidden, outputs, bias=False))
    return nn.Sequential(*layers)
