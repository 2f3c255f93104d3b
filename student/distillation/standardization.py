"""Features of mean 0 and variance 1, of which it is the pattern over cells alone that is compared."""

from __future__ import annotations

import torch
from torch import Tensor


def standardized(features: Tensor, epsilon: float) -> Tensor:
    """Return [B, C, h, w] with mean 0 and variance 1 over the cells of each image and channel.

    epsilon: added to the variance; a channel that does not vary, as of one cell, becomes 0
    """
    # torch's instance norm refuses maps of one cell.
    variance, mean = torch.var_mean(features, (2, 3), correction=0, keepdim=True)
    return (features - mean) * (variance + epsilon).rsqrt()
