"""Which pixels of two images of one drive show the same place: lidar returns, moved by the poses of both exposures."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datalake.sample import Lidar, Sample

Floats = NDArray[np.float64]

# A return of the image's own must be that near, in shares of its height, and agree in its distance.
_NEAR = 1 / 128
_AGREE_M, _AGREE_SHARE = 0.3, 0.02
# Nearer than that to the image plane nothing is projected.
_LEAST_M = 0.5
# Rounds in which the distortion is taken out of a pixel; of Waymo's cameras it is a few percent.
_ROUNDS = 12
# The ground is a plane through the lowest returns of cells of so many metres, of those near it in the round before.
_CELL_M, _ABOVE_M, _PLANE_ROUNDS = 2.0, 0.3, 5


@dataclass(frozen=True, slots=True, eq=False)
class Correspondences:
    """n pairs of places that two images show.

    first, second: float64 [n, 2], u and v in pixels of each
    raised: bool [n], whether the place is above the ground
    """

    first: Floats
    second: Floats
    raised: NDArray[np.bool_]

    def __len__(self) -> int:
        """How many there are."""
        return len(self.first)


def correspondences(one: Sample, other: Sample) -> Correspondences:
    """Return which places of one image the other shows as well, as far as returns say that they still are there.

    A return of the first image lies on its pixel's ray at the distance that was measured. In the second image, its
    own returns around that pixel must be as far away: it shows nothing that stands before the place, and nothing that
    has moved. That needs no label. Images with no pose, calibration or points have none.
    """
    nothing = Correspondences(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0, bool))
    matrices = [m for s in (one, other) for m in (s.intrinsic, s.camera_to_vehicle, s.exposed_vehicle_to_world)]
    if one.lidar is None or other.lidar is None or any(matrix is None for matrix in matrices):
        return nothing
    of_one, to_vehicle, to_world, of_other, other_vehicle, other_world = (
        np.asarray(matrix, np.float64) for matrix in matrices
    )
    seen = one.lidar.pixel_uv.numpy().T.astype(np.float64)
    distance = one.lidar.pixel_depth_m.numpy().astype(np.float64)
    points = rays(seen, of_one) * distance[:, None]
    # From the one camera to the other: numbers of the world are large, differences of two poses are not.
    between = np.linalg.inv(other_vehicle) @ (np.linalg.inv(other_world) @ to_world) @ to_vehicle
    moved = points @ between[:3, :3].T + between[:3, 3]
    pixels = project(moved, of_other)
    width, height = other.image.shape[2], other.image.shape[1]
    inside = (moved[:, 0] > _LEAST_M) & (pixels >= 0).all(1) & (pixels < (width, height)).all(1)
    kept = np.flatnonzero(inside)
    kept = kept[_agree(pixels[kept], np.linalg.norm(moved[kept], axis=1), other)]
    # What stands before the place in the first image may hide it there: the laser sees past where the camera does not.
    kept = kept[_agree(seen[kept], distance[kept], one)]
    raised = above_ground(one.lidar)[one.lidar.pixel_point.numpy()[kept]] > _ABOVE_M
    return Correspondences(seen[kept], pixels[kept], raised)


def rays(pixels: Floats, intrinsic: Floats) -> Floats:
    """Return the unit vectors [n, 3] of pixels [n, 2] in the camera's frame: x forward, y left, z up.

    intrinsic: f_u, f_v, c_u, c_v, k1, k2, p1, p2, k3 of the Brown model
    """
    bent = (pixels - intrinsic[2:4]) / intrinsic[:2]
    straight = bent
    for _ in range(_ROUNDS):
        straight = straight + bent - _distorted(straight, intrinsic)
    forward = np.stack([np.ones(len(pixels)), -straight[:, 0], -straight[:, 1]], 1)
    return forward / np.linalg.norm(forward, axis=1, keepdims=True)


def project(points: Floats, intrinsic: Floats) -> Floats:
    """Return the pixels [n, 2] of points [n, 3] in the camera's frame; of those behind it they mean nothing."""
    depth = np.maximum(points[:, :1], _LEAST_M)
    return _distorted(-points[:, 1:] / depth, intrinsic) * intrinsic[:2] + intrinsic[2:4]


def above_ground(lidar: Lidar) -> Floats:
    """Return the height in metres of each of the frame's points [P] above the plane that fits the ground best."""
    points = lidar.points.numpy()[:3].astype(np.float64)
    if not points.shape[1]:
        return np.zeros(0)
    cells = np.floor(points[:2] / _CELL_M).astype(np.int64)
    order = np.lexsort((points[2], cells[1], cells[0]))
    first = np.ones(len(order), bool)
    first[1:] = (cells[:, order[1:]] != cells[:, order[:-1]]).any(0)
    low = points[:, order[first]]
    # x, y and 1 times the plane is z.
    plane = np.array([0.0, 0.0, float(np.quantile(low[2], 0.25))])
    for _ in range(_PLANE_ROUNDS):
        near = np.abs(low[2] - plane @ np.stack([low[0], low[1], np.ones(low.shape[1])])) < _ABOVE_M
        if near.sum() < 3:
            break
        sides = np.stack([low[0, near], low[1, near], np.ones(near.sum())], 1)
        plane = np.linalg.lstsq(sides, low[2, near], rcond=None)[0]
    height: Floats = points[2] - plane @ np.stack([points[0], points[1], np.ones(points.shape[1])])
    return height


def _distorted(straight: Floats, intrinsic: Floats) -> Floats:
    k1, k2, p1, p2, k3 = intrinsic[4:9]
    right, down = straight.T
    r2 = right**2 + down**2
    radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
    return np.stack(
        [
            right * radial + 2 * p1 * right * down + p2 * (r2 + 2 * right**2),
            down * radial + p1 * (r2 + 2 * down**2) + 2 * p2 * right * down,
        ],
        1,
    )


def _agree(pixels: Floats, distance: Floats, sample: Sample) -> NDArray[np.bool_]:
    """Return of each place [n] whether the image's own returns around it are as far away, and none is much nearer."""
    assert sample.lidar is not None, "it was asked for before"
    height, width = sample.image.shape[1:]
    own = sample.lidar.pixel_uv.numpy().T.astype(np.float64)
    metres = sample.lidar.pixel_depth_m.numpy().astype(np.float64)
    columns, rows = np.clip(np.floor(own).astype(np.int64), 0, (width - 1, height - 1)).T
    numbers = rows * width + columns
    order = np.argsort(numbers, kind="stable")
    starts = np.searchsorted(numbers[order], np.arange(height * width + 1))
    most = int(np.diff(starts).max(initial=0))
    tolerance, near = _AGREE_M + _AGREE_SHARE * distance, _NEAR * height
    agrees, hidden = np.zeros(len(pixels), bool), np.zeros(len(pixels), bool)
    at_column, at_row = np.floor(pixels).astype(np.int64).T
    reach = range(-math.ceil(near), math.ceil(near) + 1)
    for down, right, number in itertools.product(reach, reach, range(most)):
        row, column = at_row + down, at_column + right
        there = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        cell = np.where(there, row * width + column, 0)
        there &= starts[cell] + number < starts[cell + 1]
        found = order[np.where(there, starts[cell] + number, 0)]
        there &= np.hypot(*(own[found] - pixels).T) <= near
        agrees |= there & (np.abs(metres[found] - distance) <= tolerance)
        hidden |= there & (metres[found] < distance - tolerance)
    return agrees & ~hidden
