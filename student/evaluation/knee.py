"""How many clusters an image has: where the curve of their inertia bends (Satopaa et al. 2011, "Kneedle")."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def knee(inertia: Sequence[float] | NDArray[np.floating], sensitivity: float = 1.0) -> int:
    """Return the number of clusters, 1 … K, at the knee of the inertia [K] of 1 … K clusters.

    1 where the inertia is the same for all. Where no point of the curve is bent enough, that which is farthest below
    the line from its first to its last one.
    """
    found = kneedle(inertia, sensitivity)
    if found is not None:
        return found
    bend = _bend(inertia)
    return 1 if bend is None else int(bend.argmax()) + 1


def kneedle(inertia: Sequence[float] | NDArray[np.floating], sensitivity: float = 1.0) -> int | None:
    """Return the first knee of a convex falling curve over 1 … K, or None.

    It is the first local maximum of how far the curve is below its chord, from which that falls, before the next
    extremum, by more than the sensitivity times the step from one number to the next, all in shares of the ranges.
    """
    bend = _bend(inertia)
    if bend is None:
        return None
    fall, candidate, threshold = sensitivity / (len(bend) - 1), -1, -np.inf
    for i in range(len(bend) - 1):
        before = bend[max(i - 1, 0)]
        if bend[i] >= before and bend[i] >= bend[i + 1]:
            candidate, threshold = i, bend[i] - fall
        elif bend[i] <= before and bend[i] <= bend[i + 1]:
            # Behind a minimum a fall below the chord alone counts.
            threshold = 0.0 if candidate >= 0 else threshold
        if candidate >= 0 and bend[i + 1] < threshold:
            return candidate + 1
    return None


def null_knee(most: int) -> int:
    """Return the knee of an inertia that is 1/K, of 1 … `most`: points without clusters in two dimensions."""
    return knee(1 / np.arange(1, most + 1))


def _bend(inertia: Sequence[float] | NDArray[np.floating]) -> NDArray[np.float64] | None:
    """Return how far the curve is below its chord, both axes scaled to 0 … 1; None where it is level."""
    values = np.asarray(inertia, np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"Expected the inertia of 1, 2 and more clusters, got: {list(values.shape)}")
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-9 * max(abs(high), 1e-30):
        return None
    return 1 - (values - low) / (high - low) - np.linspace(0, 1, len(values))
