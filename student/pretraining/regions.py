"""Regions of images that methods compare: of lidar segments or of labels, and where views show them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool2d, one_hot

from datalake.sample import Sample
from student.config import StudentError
from student.pretraining.correspondence import above_ground, rays
from student.pretraining.views import Crop, centers

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

# Returns so near each other are one thing, up to such a range; farther ones lie farther apart.
_LINKS_M = ((0.5, 0.0, 32.0), (1.0, 28.0, np.inf))
# Nearer the ground nothing can be told from it.
_RAISED_M, _LEAST_RETURNS = 0.3, 10
# Points of a cell of a view, to a side, whose regions are counted.
_POINTS = 4
_NEIGHBORS = [offset for offset in itertools.product((-1, 0, 1), repeat=3) if offset > (0, 0, 0)]


def lidar_regions(pair: Sequence[Sample], grid: tuple[int, int], most: int) -> Integers:
    """Return the lidar segments of one image, or of two of one drive together, on a grid: int64 [n, h, w].

    A segment is what is above the ground and hangs together; those of both images are one where they are at the same
    place in the world: things that have moved are two. The `most` largest ones are 0, 1 …; -1 is everywhere else.
    Raises StudentError where an image has no points, pose or calibration.
    """
    places, owners, cells = [], [], []
    for number, sample in enumerate(pair):
        world, ranges, cell = _raised_returns(sample, grid)
        places.append((world, ranges))
        owners.append(np.full(len(cell), number))
        cells.append(cell)
    world, ranges = (np.concatenate(each) for each in zip(*places, strict=True))
    segments = connected(world, ranges)
    owner, cell = np.concatenate(owners), np.concatenate(cells)
    sizes = np.bincount(segments, minlength=1)
    kept = [int(s) for s in np.argsort(-sizes, kind="stable")[:most] if sizes[s] >= _LEAST_RETURNS]
    renamed = np.full(len(sizes), -1)
    renamed[kept] = range(len(kept))
    # Of each cell the segment with most returns.
    table = np.zeros((len(pair), grid[0] * grid[1], most), np.int64)
    named = renamed[segments] if len(segments) else segments
    np.add.at(table, (owner[named >= 0], cell[named >= 0], named[named >= 0]), 1)
    found = np.where(table.any(2), table.argmax(2), -1)
    return found.reshape(len(pair), *grid)


def panoptic_regions(pair: Sequence[Sample], grid: tuple[int, int], most: int) -> Integers:
    """Return the labelled things and classes of one image, or of two together, on a grid: int64 [n, h, w].

    The `most` largest ones are 0, 1 …, the same number in both images where class and instance are; -1 is everywhere
    else. Raises StudentError where an image has no panoptic label.
    """
    ids = []
    for sample in pair:
        if sample.panoptic is None:
            raise StudentError(f"{sample.key}: no panoptic label; choose other --odin.masks")
        both = sample.panoptic.semantic_class.numpy().astype(np.int64) << 32 | sample.panoptic.instance.numpy()
        height, width = both.shape
        rows, columns = (
            ((np.arange(cells) + 0.5) * pixels / cells).astype(np.int64)
            for cells, pixels in zip(grid, (height, width), strict=True)
        )
        ids.append(both[rows[:, None], columns])
    names, places, counts = np.unique(np.stack(ids), return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:most]
    # Undefined is no class.
    order = order[names[order] >> 32 > 0]
    renamed = np.full(len(names), -1)
    renamed[order] = np.arange(len(order))
    return renamed[places].reshape(len(pair), *grid)


def connected(points: Floats, ranges: Floats) -> Integers:
    """Return the part of each point [n, 3] of those that hang together, 0, 1 …: int64 [n].

    Points in neighboring voxels do; voxels of distant points are larger.
    """
    nodes = np.arange(len(points))
    edges = []
    for side, low, high in _LINKS_M:
        some = np.flatnonzero((ranges >= low) & (ranges < high))
        if not len(some):
            continue
        voxels, of_point = np.unique(np.floor(points[some] / side).astype(np.int64), axis=0, return_inverse=True)
        of_point = of_point.ravel()
        first = np.full(len(voxels), -1)
        # Backwards, so that each voxel is left with its first point.
        first[of_point[::-1]] = some[::-1]
        edges.append(np.stack([some, first[of_point]]))
        known = {tuple(voxel): number for number, voxel in enumerate(voxels.tolist())}
        pairs = [
            (number, other)
            for voxel, number in known.items()
            for offset in _NEIGHBORS
            if (other := known.get((voxel[0] + offset[0], voxel[1] + offset[1], voxel[2] + offset[2]))) is not None
        ]
        if pairs:
            edges.append(first[np.array(pairs).T])
    linked = np.concatenate(edges, 1) if edges else np.zeros((2, 0), np.int64)
    while True:
        least = nodes.copy()
        np.minimum.at(least, linked[0], nodes[linked[1]])
        np.minimum.at(least, linked[1], nodes[linked[0]])
        least = least[least]
        if np.array_equal(least, nodes):
            break
        nodes = least
    found: Integers = np.unique(nodes, return_inverse=True)[1].ravel()
    return found


def view_masks(
    regions: Tensor, size: tuple[int, int], crops: Sequence[Crop], grid: tuple[int, int], count: int
) -> Tensor:
    """Return which cell of each view's grid [h, w] shows which region, float32 [B, count, h, w] of 0 and 1.

    regions: int64 [B, h0, w0] of the whole images, 0 … count - 1, or -1 for none
    size: width and height of these in pixels; crops: what of them each view shows

    A cell shows the region that most of it does, the first one of several; where that is none, none.
    """
    fine = (grid[0] * _POINTS, grid[1] * _POINTS)
    places = centers(crops, fine).to(regions.device)
    height, width = regions.shape[1:]
    column = (places[..., 0] * width / size[0]).long().clamp(0, width - 1)
    row = (places[..., 1] * height / size[1]).long().clamp(0, height - 1)
    shown = regions.flatten(1).gather(1, row * width + column)
    # None comes last: a region that is as large is preferred.
    shares = one_hot(torch.where(shown < 0, count, shown), count + 1).float()
    pooled = avg_pool2d(shares.transpose(1, 2).unflatten(2, fine), _POINTS)
    return one_hot(pooled.argmax(1), count + 1)[..., :count].permute(0, 3, 1, 2).float()


def _raised_returns(sample: Sample, grid: tuple[int, int]) -> tuple[Floats, Floats, Integers]:
    """Return where in the world the image's returns above the ground lie [n, 3], their range, and their cell."""
    if sample.lidar is None or sample.intrinsic is None or sample.camera_to_vehicle is None:
        raise StudentError(f"{sample.key}: no points or calibration; choose other --odin.masks")
    if sample.exposed_vehicle_to_world is None:
        raise StudentError(f"{sample.key}: no pose; choose other --odin.masks")
    raised = above_ground(sample.lidar)[sample.lidar.pixel_point.numpy()] > _RAISED_M
    pixels = sample.lidar.pixel_uv.numpy().T[raised].astype(np.float64)
    ranges = sample.lidar.pixel_depth_m.numpy()[raised].astype(np.float64)
    camera = rays(pixels, sample.intrinsic.numpy()) * ranges[:, None]
    to_world = (sample.exposed_vehicle_to_world @ sample.camera_to_vehicle).numpy()
    height, width = sample.image.shape[1:]
    cell = np.clip((pixels[:, ::-1] * grid / (height, width)).astype(np.int64), 0, (grid[0] - 1, grid[1] - 1))
    return camera @ to_world[:3, :3].T + to_world[:3, 3], ranges, cell[:, 0] * grid[1] + cell[:, 1]
