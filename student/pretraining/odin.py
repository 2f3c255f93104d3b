"""ODIN (Hénaff et al. 2022): regions that a network discovers itself, and features that are alike within them."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, normalize

from student.config import StudentConfig
from student.pretraining.collapse import RecentVectors
from student.pretraining.kmeans import kmeans
from student.pretraining.regions import lidar_regions, panoptic_regions, view_masks
from student.pretraining.self_distillation import HeadNorm, SelfDistillation, follow, head, pairs_of
from student.pretraining.views import ViewConfig, Views
from training.generators import Chance
from training.objective import Batch, Loss

# Lloyd's rounds, of one beginning.
_ROUNDS = 10
# A region of fewer cells in a view says little.
_LEAST_CELLS = 2


@dataclass(frozen=True, kw_only=True)
class OdinConfig:
    """Where regions come from, what is asked of them, the heads, and how slowly the other networks follow."""

    # Clusters of the discovery network's features; segments of lidar, and clusters of what has none; or labelled
    # things and classes, the most that regions could give.
    masks: Literal["kmeans", "lidar", "panoptic"] = "kmeans"
    # Regions of a pair of images, at most.
    regions: int = 8
    # Clusters, beside them, of what no lidar segment covers.
    rest: int = 4
    # For such a share of the steps an image is one region: what random weights discover are blobs of color.
    start: float = 0.2
    # Predict the region in the other view (`regression`), or tell it from all others (`infonce`).
    loss: Literal["regression", "infonce"] = "regression"
    # Temperature of the cosines by which `infonce` tells regions apart.
    temperature: float = 0.1
    # Tell a region from others of its image as well.
    local_negatives: bool = True
    # Cells of the trunk's finest map to a side of those that regions are made of.
    cell: int = 2
    # Neurons of the hidden layer of projector and predictor.
    hidden: int = 512
    # Dimensions of projections and predictions.
    dimensions: int = 128
    # The norm in the heads; see `ByolConfig`.
    head_norm: HeadNorm = "batch"
    # The target's momentum in the first step; see `ByolConfig`.
    momentum: float = 0.99
    # The discovery network's momentum in every step.
    discovery_momentum: float = 0.996
    # Vectors that tell whether the representation has collapsed.
    recent: int = 1024


@dataclass(frozen=True, slots=True, eq=False)
class OdinViews:
    """Two views of each of B pairs, and the whole images that regions are discovered in.

    whole: float32 [n, B, 3, H, W], n being 1 where both views are of one image
    given: int64 [n, B, h, w], regions that are known beforehand, -1 for none; None: none are
    """

    views: Views
    whole: Tensor
    given: Tensor | None
    chance: Chance


class OdinObjective(SelfDistillation):
    """A region's mean feature in one view tells the target's in the other, both ways round.

    Regions are those of the whole images, discovered by a network that follows the online one more slowly than the
    target does; both images of a pair are clustered together, so that a region is the same thing in both.
    """

    name = "odin"

    def __init__(self, student: StudentConfig, config: OdinConfig, views: ViewConfig) -> None:
        """Build it with random weights; raises StudentError where there is no such trunk."""
        super().__init__(student, views, config.momentum)
        self._settings = config
        self.discovery_trunk = deepcopy(self.trunk).requires_grad_(False)
        sizes = config.hidden, config.dimensions, config.head_norm
        self.projector = head(self.trunk.width, *sizes)
        self.predictor = head(config.dimensions, *sizes)
        self.target_projector = deepcopy(self.projector).requires_grad_(False)
        self.recent = RecentVectors(config.recent, config.dimensions)

    def followers(self) -> list[tuple[nn.Module, nn.Module]]:
        """Return the projectors."""
        return [(self.target_projector, self.projector)]

    @property
    def most(self) -> int:
        """The number of regions of a pair, at most."""
        return self._settings.regions + (self._settings.rest if self._settings.masks == "lidar" else 0)

    def collate(self, batch: Batch, targets: Mapping[str, Any], chance: Chance) -> OdinViews:
        """Return two views of each pair, the whole images, and what is known of their regions."""
        del targets
        config = self._settings
        first, second = pairs_of(batch)
        count, device = len(first), self.image_mean.device
        views = self.normalized_views(first, second, chance.generators("views")[:count])
        images = [first] if len(batch.samples) == batch.labelled else [first, second]
        whole = torch.stack([torch.stack([sample.image for sample in some]) for some in images]).to(device)
        given = None
        if config.masks != "kmeans":
            height, width = first[0].image.shape[1:]
            stride = config.cell * self._student.stride
            grid = height // stride, width // stride
            find = lidar_regions if config.masks == "lidar" else panoptic_regions
            found = [find(pair, grid, config.regions) for pair in zip(*images, strict=True)]
            given = torch.stack([torch.from_numpy(each) for each in found], 1).to(device)
        return OdinViews(views, self.normalized(whole.float() / 255), given, chance.subset(range(count)))

    @torch.no_grad()
    def discovered(self, batch: OdinViews, progress: float) -> Tensor:
        """Return the regions of the whole images int64 [n, B, h, w]; -1: none."""
        number, count = batch.whole.shape[:2]
        config = self._settings
        stride = config.cell * self._student.stride
        grid = batch.whole.shape[-2] // stride, batch.whole.shape[-1] // stride
        if progress < config.start:
            return torch.zeros(number, count, *grid, dtype=torch.int64, device=batch.whole.device)
        if config.masks == "panoptic" and batch.given is not None:
            return batch.given
        fine = avg_pool2d(self.discovery_trunk(batch.whole.flatten(0, 1)).fine.float(), config.cell)
        # The cells of both images of a pair are points of one set.
        rows = normalize(fine, dim=1).flatten(2).transpose(1, 2).unflatten(0, (number, count))
        points = rows.transpose(0, 1).flatten(1, 2)
        generators = batch.chance.generators("regions")
        if batch.given is None:
            labels = kmeans(points, config.regions, generators, restarts=1, rounds=_ROUNDS).labels
        else:
            known = batch.given.transpose(0, 1).flatten(1)
            free = (known < 0).float()
            rest = kmeans(points, config.rest, generators, restarts=1, rounds=_ROUNDS, weights=free).labels
            labels = torch.where(known < 0, config.regions + rest, known)
        return labels.unflatten(1, (number, *grid)).transpose(0, 1)

    def forward(self, batch: OdinViews, progress: float) -> dict[str, Loss]:
        """Return the loss `odin`: 0 … 8 of a regression; of others about 2 ln of the number of regions where nothing is
        told apart and all are in both views.
        """
        config, images = self._settings, torch.cat([batch.views.first, batch.views.second])
        found, size = self.discovered(batch, progress), (batch.whole.shape[-1], batch.whole.shape[-2])
        fine = avg_pool2d(self.trunk(images).fine, config.cell).float()
        with torch.no_grad():
            target_fine = avg_pool2d(self.target_trunk(images).fine, config.cell).float()
        grid = (fine.shape[2], fine.shape[3])
        sides = [[pair[side] for pair in batch.views.crops] for side in range(2)]
        masks = torch.cat(
            [view_masks(found[min(side, len(found) - 1)], size, sides[side], grid, self.most) for side in range(2)]
        )
        there = masks.sum((2, 3)) >= _LEAST_CELLS
        with torch.autocast(images.device.type, enabled=False):
            projected = self.projector(mean_features(fine, masks)[there])
            predicted = self.predictor(projected)
            with torch.no_grad():
                expected = self.target_projector(mean_features(target_fine, masks)[there])
            (p1, p2), (z1, z2) = (_placed(rows, there).chunk(2) for rows in (predicted, expected))
            v1, v2 = there.chunk(2)
            if config.loss == "regression":
                loss = region_loss(p1, z2, v1 & v2) + region_loss(p2, z1, v1 & v2)
            else:
                how = config.temperature, config.local_negatives
                loss = detcon_loss(p1, z2, z1, v1, v2, *how) + detcon_loss(p2, z1, z2, v2, v1, *how)
        if self.training:
            kept = _placed(projected.detach(), there)[: len(v1)]
            self.recent.append(_one_region_each(kept, v1, self.recent.count))
        self._last = v1, v2
        return {"odin": Loss(loss)}

    def diagnostics(self, batch: OdinViews, progress: float) -> dict[str, Tensor]:
        """Return `collapse_metrics` of recent regions' projections, and how many regions views have and share."""
        del batch, progress
        v1, v2 = self._last
        regions = {"regions": v1.sum(1).float().mean(), "regions/shared": (v1 & v2).sum(1).float().mean()}
        return {**self.recent.metrics(), **regions}

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Have the target and the discovery network follow."""
        super().after_step(progress)
        follow(self.discovery_trunk, self.trunk, self._settings.discovery_momentum)


def mean_features(maps: Tensor, masks: Tensor) -> Tensor:
    """Return the mean of maps [B, D, h, w] over each of the masks [B, K, h, w]: [B, K, D], 0 over none."""
    sums = torch.einsum("bdhw,bkhw->bkd", maps, masks)
    return sums / masks.sum((2, 3)).clamp(min=1)[..., None]


def region_loss(predicted: Tensor, expected: Tensor, there: Tensor) -> Tensor:
    """Return the mean of 2 - 2 cos over regions [B, K, d] that are there [B, K]; no gradient to the expected ones."""
    cosines = (normalize(predicted, dim=2) * normalize(expected.detach(), dim=2)).sum(2)
    return ((2 - 2 * cosines) * there).sum() / there.sum().clamp(min=1)


def detcon_loss(
    predicted: Tensor,
    other_view: Tensor,
    same_view: Tensor,
    there: Tensor,
    there_in_other: Tensor,
    temperature: float,
    local_negatives: bool,
) -> Tensor:
    """Return the loss of DetCon (Hénaff et al. 2021) of regions [B, K, d], each of which is there once or not at all.

    The sum over the regions in both views, divided by B K, of -ln of the share that the same region in the target's
    other view has among all regions of all images in both of the target's views; itself in its own view is left out.
    Regions that are not there are no negatives.

    there, there_in_other: bool [B, K], in the prediction's view and in the other one
    local_negatives: other regions of the same image count too
    """
    images, regions = there.shape
    rows = normalize(predicted, dim=2).flatten(0, 1)
    scores = [
        rows @ normalize(target.detach(), dim=2).flatten(0, 1).T / temperature for target in (other_view, same_view)
    ]
    number = torch.arange(images * regions, device=rows.device)
    of_image = number // regions
    own, same_image = number[:, None] == number, of_image[:, None] == of_image
    counted = [there_in_other.flatten().expand_as(own), there.flatten() & ~own]
    if not local_negatives:
        counted = [counted[0] & (own | ~same_image), counted[1] & ~same_image]
    both = (there & there_in_other).flatten()
    logits = torch.cat([s.masked_fill(~c, -torch.inf) for s, c in zip(scores, counted, strict=True)], 1)
    # Where a region is not there its row may have nothing at all.
    total = torch.where(both[:, None], logits, torch.zeros_like(logits)).logsumexp(1)
    positive = scores[0].diagonal()
    return ((total - positive) * both).sum() / (images * regions)


def _placed(rows: Tensor, there: Tensor) -> Tensor:
    """Return rows [n, d], those of the regions that are there [B, K], as [B, K, d]; 0 elsewhere."""
    return rows.new_zeros(*there.shape, rows.shape[1]).index_put((there.nonzero(as_tuple=True)), rows)


def _one_region_each(regions: Tensor, there: Tensor, turn: Tensor) -> Tensor:
    """Return a region of each image [B, K, d] that has one, another one at each turn."""
    count = there.shape[1]
    order = (torch.arange(count, device=there.device) + turn) % count
    first = there[:, order].float().argmax(1)
    number = torch.arange(len(regions), device=there.device)
    return regions[number, order[first]][there.any(1)]
