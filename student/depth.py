"""Depth normalization: metres to the number that the network predicts, and back (paper, section 3.2)."""

from __future__ import annotations

from torch import Tensor

# Spends more of the range on near objects; an exponent known from displays.
GAMMA = 2.2


def encode_depth(depth_m: Tensor, max_depth_m: float) -> Tensor:
    """Return (d / d_max)^(1 / 2.2) within 0 … 1; NaN stays NaN."""
    return (depth_m / max_depth_m).clamp(0, 1) ** (1 / GAMMA)


def decode_depth(predicted: Tensor, max_depth_m: float) -> Tensor:
    """Return metres within 0 … d_max: the inverse of `encode_depth`."""
    return max_depth_m * predicted.clamp(0, 1) ** GAMMA
