"""The ranges of size and distance by which metrics are reported."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers from `first` to `last`, both of them included; NaN is in no range."""

    name: str
    first: float
    last: float

    def contains(self, values: Tensor) -> Tensor:
        """Return bool [N]: which of the values [N] are in the range."""
        # In float32 the neighbor of a limit would be the limit itself.
        exact = values.double()
        return (exact >= self.first) & (exact <= self.last)


def _below(limit: float) -> float:
    return math.nextafter(limit, -math.inf)


def _above(limit: float) -> float:
    return math.nextafter(limit, math.inf)


EVERYTHING = Range("all", -math.inf, math.inf)

# The square root of a box's area in pixels. COCO's own limits, 32 and 96, are for images of some 640 x 480; ours are
# 384 x 256 and the median object has 17.
SIZES = (Range("small", 0, _below(16)), Range("medium", 16, 48), Range("large", _above(48), math.inf))
# Without the objects that a grid of four or eight pixels can hardly see.
ABOVE_16_PIXELS = Range(">16px", _above(16), math.inf)

# Metres from the camera's center.
DISTANCES = (Range("0-20m", 0, _below(20)), Range("20-40m", 20, _below(40)), Range("40m+", 40, math.inf))
