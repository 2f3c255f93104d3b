"""What the lidar teacher finds without the mask teacher: boxes around clusters of points of one type."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from teachers.autolabel.seen_points import SeenPoints

# Points whose cells of this size touch, seen from above, are of one object.
_CELL_M = 0.5
_LEAST_POINTS = 3
# So many points are as sure as any number.
_MANY_POINTS = 20


@dataclass(frozen=True, slots=True, eq=False)
class LidarObjects:
    """The N objects of one image.

    boxes: float32 [N, 4], x0, y0, x1, y1 in pixels, around the pixels of the points
    types: int64 [N], index into `MASK_CLASSES`, never 0
    score: float32 [N] within 0 … 1: the points' mean probability, times the share of 20 that they are
    depth_m: float32 [N], the mean distance of the points
    points: int32 [N], how many there are
    """

    boxes: NDArray[np.float32]
    types: NDArray[np.int64]
    score: NDArray[np.float32]
    depth_m: NDArray[np.float32]
    points: NDArray[np.int32]


def lidar_objects(seen: SeenPoints) -> LidarObjects:
    """Return the objects of at least three of the points that an image shows."""
    told = np.isfinite(seen.type_probability[:, 0])
    probability = np.where(told[:, None], seen.type_probability, 0.0)
    likeliest = np.where(told, probability.argmax(1), 0)
    boxes, types, scores, depths_m, counts = [], [], [], [], []
    for kind in range(1, probability.shape[1]):
        of_type = np.flatnonzero(likeliest == kind)
        cluster = _connected(np.floor(seen.xy_m[of_type] / _CELL_M).astype(np.int64))
        for number in range(cluster.max(initial=-1) + 1):
            points = of_type[cluster == number]
            if len(points) < _LEAST_POINTS:
                continue
            u, v = seen.u[points], seen.v[points]
            boxes.append((u.min(), v.min(), u.max() + 1, v.max() + 1))
            types.append(kind)
            scores.append(probability[points, kind].mean() * min(1.0, len(points) / _MANY_POINTS))
            depths_m.append(seen.depth_m[points].mean(dtype=np.float64))
            counts.append(len(points))
    return LidarObjects(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(types, np.int64),
        np.array(scores, np.float32),
        np.array(depths_m, np.float32),
        np.array(counts, np.int32),
    )


def _connected(cells: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return int64 [P], the number of the component of each of the cells [P, 2]; the eight around a cell touch it."""
    places, place_of = np.unique(cells, axis=0, return_inverse=True)
    component_of = {}
    rest = {(x, y): number for number, (x, y) in enumerate(places.tolist())}
    count = 0
    while rest:
        start, _ = next(iter(rest.items()))
        waiting = [start]
        while waiting:
            x, y = waiting.pop()
            if (number := rest.pop((x, y), None)) is None:
                continue
            component_of[number] = count
            waiting += [near for dx in (-1, 0, 1) for dy in (-1, 0, 1) if (near := (x + dx, y + dy)) in rest]
        count += 1
    components = np.array([component_of[number] for number in range(len(places))], np.int64)
    return components[place_of.reshape(-1)] if len(cells) else np.zeros(0, np.int64)
