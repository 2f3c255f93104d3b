"""How well pieces of an image, found without labels, are its labelled objects.

All IoUs count pixels of the truth. A cell of the pieces' grid covers the pixels that are nearest to it: labels are
enlarged, not features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from datalake.sample import Panoptic
from student.evaluation.incremental_assignment import IncrementalAssignment
from teachers.classes import CAMERA_TO_MASK, IGNORED

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

# Bounds of the objects' heights in pixels, of which small, medium, large and very large are made.
HEIGHT_BINS = (0, 16, 32, 64, 1 << 30)
# IoUs as integers, for a matching that rounding does not decide.
_EXACT = 1 << 40


@dataclass(frozen=True, slots=True, eq=False)
class ObjectTruth:
    """The labelled objects of an image: vehicles, pedestrians, cyclists, without a difference.

    ids: int64 [H, W], 1 … n; 0 is the rest, smaller objects too
    heights: int64 [n], rows from the first to the last one of each, in pixels
    """

    ids: Integers
    heights: Integers

    @property
    def count(self) -> int:
        """How many objects there are."""
        return len(self.heights)


@dataclass(frozen=True, slots=True, eq=False)
class ObjectScores:
    """What each of n objects has of an image's pieces, float64 [n].

    matched: IoU with its piece of a one-to-one matching that has the largest sum, the rest being one of the objects;
        0 where it has none
    best: IoU with the piece that is most like it
    """

    matched: Floats
    best: Floats


def object_truth(panoptic: Panoptic, least_pixels: int = 100) -> ObjectTruth:
    """Return the objects of a panoptic label that have so many pixels, in the order of class and instance."""
    kinds = np.array(CAMERA_TO_MASK)[panoptic.semantic_class.numpy()]
    is_object = (kinds != 0) & (kinds != IGNORED)
    both = panoptic.semantic_class.numpy().astype(np.int64) << 32 | panoptic.instance.numpy()
    names, places, sizes = np.unique(np.where(is_object, both, -1), return_inverse=True, return_counts=True)
    kept = (names >= 0) & (sizes >= least_pixels)
    ids = np.where(kept, kept.cumsum(), 0)[places].reshape(both.shape)
    heights = []
    for number in range(1, int(kept.sum()) + 1):
        rows = np.flatnonzero((ids == number).any(1))
        heights.append(rows[-1] - rows[0] + 1)
    return ObjectTruth(ids, np.array(heights, np.int64))


def enlarged(labels: NDArray[np.integer], shape: tuple[int, int]) -> Integers:
    """Return the labels [h, w] of the nearest cell for each pixel, int64 [H, W]."""
    rows, columns = (
        ((np.arange(pixels) + 0.5) * cells / pixels).astype(np.int64)
        for pixels, cells in zip(shape, labels.shape, strict=True)
    )
    return labels[rows[:, None], columns].astype(np.int64)


def components(labels: NDArray[np.integer], least_cells: int = 4) -> Integers:
    """Return the connected parts (by sides) of each cluster of a grid [h, w], 0, 1 …; -1 in those of fewer cells."""
    cells = np.arange(labels.size).reshape(labels.shape)
    down, right = labels[1:] == labels[:-1], labels[:, 1:] == labels[:, :-1]
    while True:
        least = cells.copy()
        # The smallest number of a part goes from neighbor to neighbor …
        np.minimum(least[1:], cells[:-1], out=least[1:], where=down)
        np.minimum(least[:-1], cells[1:], out=least[:-1], where=down)
        np.minimum(least[:, 1:], cells[:, :-1], out=least[:, 1:], where=right)
        np.minimum(least[:, :-1], cells[:, 1:], out=least[:, :-1], where=right)
        # … and on to what that cell has by now.
        least = least.ravel()[least]
        if np.array_equal(least, cells):
            break
        cells = least
    _, parts, sizes = np.unique(cells, return_inverse=True, return_counts=True)
    kept = sizes >= least_cells
    return np.where(kept, kept.cumsum() - 1, -1)[parts].reshape(labels.shape)


def overlaps(truth: Integers, truths: int, pieces: Integers) -> Floats:
    """Return the IoU float64 [truths, P] of the ids 0 … truths - 1 with the pieces 0 … P - 1, both [H, W].

    Pixels whose piece is -1 belong to none.
    """
    count = int(pieces.max(initial=-1)) + 1
    table = np.bincount((truth * (count + 1) + pieces + 1).ravel(), minlength=truths * (count + 1))
    table = table.reshape(truths, count + 1)
    shared = table[:, 1:]
    union = table.sum(1, keepdims=True) + shared.sum(0) - shared
    return shared / np.maximum(union, 1)


def object_scores(truth: ObjectTruth, pieces: NDArray[np.integer]) -> ObjectScores:
    """Return what the objects have of pieces int [h, w], 0, 1 …, or -1 for none."""
    found = overlaps(truth.ids, truth.count + 1, enlarged(pieces, truth.ids.shape))
    matching = IncrementalAssignment()
    for row in found:
        matching.add([(piece, round(iou * _EXACT)) for piece, iou in enumerate(row.tolist()) if iou > 0])
    matched = np.zeros(truth.count + 1)
    for number, piece in matching.pairs.items():
        matched[number] = found[number, piece]
    return ObjectScores(matched[1:], found[1:].max(1, initial=0))


def union_scores(truth: ObjectTruth, clusters: NDArray[np.integer]) -> Floats:
    """Return the IoU of each cluster, of 0 … K - 1 in [h, w], with all objects together, float64 [K]."""
    return overlaps((truth.ids > 0).astype(np.int64), 2, enlarged(clusters, truth.ids.shape))[1]


def fewest_cells(clusters: Integers) -> int:
    """Return the smallest cluster of [h, w]."""
    return int(_sizes(clusters).argmin())


def second_most_cells(clusters: Integers) -> int:
    """Return the largest cluster but one."""
    sizes = np.bincount(clusters.ravel())
    return int(np.argsort(-sizes, kind="stable")[min(1, len(sizes) - 1)])


def least_at_the_border(clusters: Integers) -> int:
    """Return the cluster with the smallest share of its cells at the image's border."""
    border = np.ones(clusters.shape, bool)
    border[1:-1, 1:-1] = False
    at_border = np.bincount(clusters[border], minlength=int(clusters.max()) + 1)
    return int(_lowest(at_border / np.maximum(_sizes(clusters), 1), clusters))


def nearest_the_center(clusters: Integers) -> int:
    """Return the cluster whose cells are on average nearest the image's center, in shares of its sides."""
    rows, columns = (np.abs((np.arange(side) + 0.5) / side - 0.5) for side in clusters.shape)
    distance = np.hypot(rows[:, None], columns)
    total = np.bincount(clusters.ravel(), distance.ravel())
    return int(_lowest(total / np.maximum(np.bincount(clusters.ravel()), 1), clusters))


# Ways to say which cluster is the objects', that look at no label.
RULES = MappingProxyType(
    {
        "fewest cells": fewest_cells,
        "second most cells": second_most_cells,
        "least at the border": least_at_the_border,
        "nearest the center": nearest_the_center,
    }
)


def rule_scores(truth: ObjectTruth, clusters: Integers) -> Mapping[str, float]:
    """Return by each rule the IoU of the cluster that it names with all objects together."""
    found = union_scores(truth, clusters)
    return {name: float(found[rule(clusters)]) for name, rule in RULES.items()}


def cell_ids(truth: NDArray[np.integer], grid: tuple[int, int]) -> Integers:
    """Return the most frequent id of the pixels of each cell, int64 [h, w]: all that a grid can say of a truth [H, W].

    The smallest of several as frequent ones.
    """
    height, width = grid
    cell = enlarged(np.arange(height * width).reshape(grid), truth.shape)
    ids = int(truth.max()) + 1
    table = np.bincount((cell * ids + truth).ravel(), minlength=height * width * ids)
    return table.reshape(height, width, ids).argmax(2)


def tiles(grid: tuple[int, int], count: int) -> Integers:
    """Return a grid [h, w] in `count` equal tiles, as square as can be: pieces that know nothing of the image."""
    height, width = grid
    shapes = [(rows, count // rows) for rows in range(1, count + 1) if count % rows == 0]
    rows, columns = min(shapes, key=lambda shape: abs(np.log(height / shape[0] * shape[1] / width)))
    return (np.arange(height) * rows // height)[:, None] * columns + np.arange(width) * columns // width


def _sizes(clusters: Integers) -> Floats:
    """Return the cells of each cluster; of one without any, infinitely many."""
    sizes = np.bincount(clusters.ravel())
    return np.where(sizes > 0, sizes, np.inf)


def _lowest(values: Floats, clusters: Integers) -> int:
    present = np.bincount(clusters.ravel()) > 0
    return int(np.where(present, values, np.inf).argmin())
