"""How far a metric would move with other drives: the bootstrap over segments (Efron 1979)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class PerSegment:
    """A metric as what each segment adds to it: images of one drive are no independent samples.

    sums: float64 [S, ...]
    estimate: makes the metric of the sum over segments [...]
    """

    sums: Floats
    estimate: Callable[[Floats], float]

    @property
    def value(self) -> float:
        """The metric over all segments."""
        return self.estimate(self.sums.sum(0))

    def draws(self, count: int, seed: int) -> Floats:
        """Return the metric [count] of as many segments drawn with replacement; with one seed, always the same ones."""
        segments = len(self.sums)
        random = np.random.default_rng(seed)
        drawn = random.multinomial(segments, np.full(segments, 1 / segments), size=count).astype(np.float64)
        sums = np.tensordot(drawn, self.sums, 1)
        return np.array([self.estimate(each) for each in sums])


def mean_per_segment(segments: Sequence[str], values: Sequence[float], order: Sequence[str]) -> PerSegment:
    """Return the mean of values, each of the segment beside it, as a metric.

    order: all segments, those without a value too
    """
    sums = np.zeros((len(order), 2))
    place = {segment: number for number, segment in enumerate(order)}
    for segment, value in zip(segments, values, strict=True):
        sums[place[segment]] += (value, 1)
    return PerSegment(sums, _mean)


def interval(draws: Floats, level: float = 0.95) -> tuple[float, float]:
    """Return what so large a share of the draws lies between; draws without a value (NaN) are left out."""
    if np.isnan(draws).all():
        return float("nan"), float("nan")
    low, high = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _mean(sums: Floats) -> float:
    return float(sums[0] / sums[1]) if sums[1] else float("nan")
