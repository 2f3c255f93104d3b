"""The loss of box regression in both stages."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import smooth_l1_loss


def box_loss(predicted: Tensor, truth: Tensor, beta: float, weight: Tensor | None) -> Tensor:
    """Return the sum of the smooth L1 losses of deltas [..., 4], each box times its weight [...]; None: all 1."""
    if weight is None:
        return smooth_l1_loss(predicted, truth, beta=beta, reduction="sum")
    return (smooth_l1_loss(predicted, truth, beta=beta, reduction="none").sum(-1) * weight).sum()
