"""How far the student is from what its teachers say."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from teachers.target import Target


def imitation_loss(
    said: Tensor, target: Target, *, cell_weights: Tensor | None = None, class_weights: Tensor | None = None
) -> Tensor:
    """Return the loss of what a branch says, the mean over pictures of the weighted mean over their valid cells.

    said: float32 [B, D, h, w], standardised numbers, or logits of classes
    cell_weights: float32 [B, 1, h, w], how much each cell counts beside the picture's others; all the same by default
    class_weights: float32 [D], how much a cell of each class counts; continuous targets have none

    Continuous targets: the squared error, mean over channels (paper, section 3.1; Liu et al. 2021, over valid pixels
    alone). Classes: cross-entropy. A picture without valid cells counts 0. A class number that the branch has no
    channel for makes the loss NaN, on every device: looked up on a GPU, it would end the process instead.
    """
    weights = target.valid.float() if cell_weights is None else cell_weights * target.valid
    # What stands in cells that are not valid must not matter, not even if it is NaN: it is taken out before anything is
    # computed from it, since a gradient of 0 times NaN would be NaN again.
    if target.kind == "classes":
        truth = target.values.where(target.valid, 0)[:, 0]
        unknown = (truth < 0) | (truth >= said.shape[1])
        truth = truth.where(~unknown, 0)
        if class_weights is not None:
            weights = weights * class_weights[truth][:, None]
        error = cross_entropy(said, truth, reduction="none").masked_fill(unknown, torch.nan)[:, None]
    else:
        error = (said - target.values).where(target.valid, 0.0).square().mean(1, keepdim=True)
    total = (error * weights).sum((1, 2, 3))
    return (total / weights.sum((1, 2, 3)).clamp(min=1e-6)).mean()


def object_cells(targets: Mapping[str, Target]) -> Tensor | None:
    """Return bool [B, 1, h, w], the cells in which a teacher of classes sees an object; None without such a teacher."""
    seen = [target.valid & (target.values > 0) for target in targets.values() if target.kind == "classes"]
    return torch.stack(seen).any(0) if seen else None


def balanced_weights(shares: Tensor, most: float = 10.0) -> Tensor:
    """Return weights float32 [K] for classes that fill these shares [K] of the cells.

    A class counts as the square root of how rare it is, within `most` times the commonest; with 1 / share a few cells
    of the rarest class would decide. Over all cells the weights' mean is 1. A class that was never seen counts as much
    as the rarest that was.
    """
    seen = shares > 0
    if not bool(seen.any()):
        return torch.ones_like(shares)
    rare = torch.where(seen, shares, shares[seen].min())
    weights = (rare.max() / rare).sqrt().clamp(max=most)
    return weights / (weights * shares).sum().clamp(min=1e-6)
