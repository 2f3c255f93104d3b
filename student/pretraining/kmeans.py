"""K-means of the cells of many images at once (Lloyd 1982, seeded as by Arthur and Vassilvitskii 2007)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    """The clusters of B sets of N points.

    labels: int64 [B, N], the nearest center of each point, of points without weight too
    centers: float32 [B, K, D]
    inertia: float32 [B], the sum of the weighted squared distances to them
    """

    labels: Tensor
    centers: Tensor
    inertia: Tensor


@torch.no_grad()
def kmeans(
    points: Tensor,
    count: int,
    generators: Sequence[torch.Generator],
    *,
    restarts: int = 5,
    rounds: int = 50,
    weights: Tensor | None = None,
) -> Clusters:
    """Return `count` clusters of each set of points, of the restart with the least inertia.

    points: float32 [B, N, D]
    generators: of each set; from it alone, and its points, its clusters follow
    rounds: after so many, or when no label changes any more, it ends
    weights: float32 [B, N], not negative; 0: the point counts for nothing. By default all are 1
    """
    points = points.float()
    weights = torch.ones_like(points[..., 0]) if weights is None else weights.to(points)
    drawn = torch.stack([torch.rand(restarts, count, generator=each, dtype=torch.float64) for each in generators])
    best: Clusters | None = None
    for number in range(restarts):
        found = lloyd(points, _seeds(points, weights, drawn[:, number].to(points.device)), weights, rounds=rounds)
        best = found if best is None else _better(best, found)
    assert best is not None, "there is at least one restart"
    return best


@torch.no_grad()
def lloyd(points: Tensor, centers: Tensor, weights: Tensor | None = None, *, rounds: int = 50) -> Clusters:
    """Return the clusters that centers float32 [B, K, D] become; an empty one begins anew at the farthest point.

    points, weights, rounds: as for `kmeans`
    """
    points = points.float()
    weights = torch.ones_like(points[..., 0]) if weights is None else weights.to(points)
    lengths = points.square().sum(2)
    centers = centers.to(points, copy=True)
    labels, distances = _nearest(points, lengths, centers)
    # Most sets are done long before the last one.
    going = torch.arange(len(points), device=points.device)
    for _ in range(rounds):
        some, sizes, some_lengths, before = points[going], weights[going], lengths[going], labels[going]
        moved = _means(some, sizes, before, distances[going], centers.shape[1])
        now, far = _nearest(some, some_lengths, moved)
        centers[going], labels[going], distances[going] = moved, now, far
        going = going[(now != before).any(1)]
        if not len(going):
            break
    return Clusters(labels, centers, (distances * weights).sum(1))


def _seeds(points: Tensor, weights: Tensor, drawn: Tensor) -> Tensor:
    """Return centers [B, K, D]: each is a point, drawn by its squared distance to the nearest one before it.

    drawn: float64 [B, K] within 0 … 1
    """
    chances, centers = weights.double(), []
    lengths, last = points.square().sum(2), points.shape[1] - 1
    nearest = torch.full_like(weights, torch.inf)
    for number in range(drawn.shape[1]):
        total = chances.cumsum(1)
        # Where all points are the same as a center, any of them will do.
        index = torch.searchsorted(total, drawn[:, number, None] * total[:, -1:], right=True).clamp(max=last)
        centers.append(points.gather(1, index[..., None].expand(-1, -1, points.shape[2])))
        nearest = torch.minimum(nearest, _nearest(points, lengths, centers[-1])[1])
        chances = (nearest * weights).double()
    return torch.cat(centers, 1)


def _nearest(points: Tensor, lengths: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Return each point's nearest center [B, N] and its squared distance to it; lengths: the points' squared ones."""
    ours = centers.square().sum(2)[:, None]
    distances, labels = torch.baddbmm(ours, points, centers.transpose(1, 2), alpha=-2).min(2)
    return labels, (distances + lengths).clamp(min=0)


def _means(points: Tensor, weights: Tensor, labels: Tensor, distances: Tensor, count: int) -> Tensor:
    sets, number, dimensions = points.shape
    sizes = torch.zeros(sets, count, device=points.device).scatter_add_(1, labels, weights)
    rows = labels + count * torch.arange(sets, device=points.device)[:, None]
    sums = torch.zeros(sets * count, dimensions, device=points.device)
    sums.index_add_(0, rows.flatten(), (points * weights[..., None]).flatten(0, 1))
    means = sums.view(sets, count, dimensions) / sizes.clamp(min=1e-12)[..., None]
    empty = sizes == 0
    farthest = (distances * weights).topk(min(count, number), 1).indices
    # The second empty cluster takes the second farthest point.
    turn = (empty.cumsum(1) - 1).clamp(0, farthest.shape[1] - 1)
    other = points.gather(1, farthest.gather(1, turn)[..., None].expand(-1, -1, dimensions))
    return torch.where(empty[..., None], other, means)


def _better(one: Clusters, other: Clusters) -> Clusters:
    less = other.inertia < one.inertia
    return Clusters(
        torch.where(less[:, None], other.labels, one.labels),
        torch.where(less[:, None, None], other.centers, one.centers),
        torch.where(less, other.inertia, one.inertia),
    )
