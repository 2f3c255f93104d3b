"""Which of the depths inside a mask are the object's: those nearest to the camera that are no stray points."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Two points that lie further apart than both belong to different surfaces.
_APART_M, _APART_SHARE = 1.0, 0.05
# Fewer of the points are strays, such as those of a pole in front.
_DOMINANT_SHARE = 0.25


def nearest_cluster(depth_m: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return bool [P], the nearest cluster of depths float32 [P] that holds a quarter of them, else the largest.

    Clusters are cut where the next depth is more than 1 m and more than 5 % further away.
    """
    if not len(depth_m):
        return np.zeros(0, bool)
    order = np.argsort(depth_m, kind="stable")
    ascending = depth_m[order]
    cut = np.diff(ascending) > np.maximum(_APART_M, _APART_SHARE * ascending[:-1])
    cluster = np.concatenate([[0], np.cumsum(cut)])
    sizes = np.bincount(cluster)
    dominant = np.flatnonzero(sizes >= _DOMINANT_SHARE * len(depth_m))
    chosen = dominant[0] if len(dominant) else sizes.argmax()
    inside = np.empty(len(depth_m), bool)
    inside[order] = cluster == chosen
    return inside
