"""What features know of objects and classes without ever having seen a label: clusters of cells against the truth.

A    objects, in each image: clusters, split into connected parts, matched one-to-one with the labelled objects
B    all objects together, in each image: the cluster that is most like them, and that which a fixed rule names
C    groups of classes, over all images: one clustering for the whole set
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from student.evaluation.bootstrap import PerSegment, interval, mean_per_segment
from student.evaluation.class_masks import class_metric, confusion
from student.evaluation.knee import knee, null_knee
from student.evaluation.object_masks import (
    HEIGHT_BINS,
    RULES,
    ObjectTruth,
    components,
    object_scores,
    rule_scores,
    union_scores,
)
from student.evaluation.principal import Principal
from student.pretraining.kmeans import kmeans, lloyd
from training.generators import sample_generator

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
# Images that are clustered at once.
_AT_ONCE = 16
_CLASS_RESTARTS = 3
_ROWS_AT_ONCE = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """How cells are clustered. The knee depends on `most` more than on anything else: it is no setting to tune."""

    # Clusters of an image in protocol A, beside as many as the knee says.
    clusters: int = 8
    # The knee is looked for among 1 … so many clusters.
    most: int = 12
    # Clusters of the whole set in protocol C: of the first number each is one group, of the others several may share
    # one.
    class_clusters: tuple[int, ...] = (8, 24, 64)
    # So many cells of all images together are clustered in protocol C; the others get the nearest center.
    class_cells: int = 50_000
    # Connected parts of fewer cells are no pieces.
    least_cells: int = 4
    # Beginnings of each clustering, of which the best is kept.
    restarts: int = 5


@dataclass(frozen=True, slots=True, eq=False)
class LabelledImage:
    """What is known of one image.

    segment: of which drive
    image: uint8 [3, H, W]
    truth: its objects
    groups: int64 [H, W], the group of classes of each pixel, -1 for those of none
    """

    segment: str
    image: Tensor
    truth: ObjectTruth
    groups: Integers


@dataclass(frozen=True, slots=True, eq=False)
class ImageClusters:
    """The clusters of each of M images, for every number of them.

    labels: uint8 [M, K, h, w], of k + 1 clusters each
    inertia: float64 [M, K]
    knees: int64 [M], 1 … K
    """

    labels: NDArray[np.uint8]
    inertia: Floats
    knees: Integers

    def of(self, count: int) -> Integers:
        """Return the labels [M, h, w] of so many clusters."""
        return self.labels[:, count - 1].astype(np.int64)

    def at_knee(self) -> Integers:
        """Return the labels [M, h, w] of as many clusters as each image's knee says."""
        return self.labels[np.arange(len(self.knees)), self.knees - 1].astype(np.int64)


def cluster_images(
    rows: Tensor, grid: tuple[int, int], counts: Sequence[int], config: ClusterConfig, seed: int
) -> ImageClusters:
    """Return the clusters of images whose cells are rows [M, h * w, D], for these numbers of clusters alone.

    The knee is that of all of them, if they are 1 … `config.most`, and 1 otherwise.
    """
    labels = np.zeros((len(rows), max(counts), *grid), np.uint8)
    inertia = np.full((len(rows), max(counts)), np.nan)
    for first in range(0, len(rows), _AT_ONCE):
        some = rows[first : first + _AT_ONCE]
        for count in counts:
            generators = [sample_generator(seed, 0, first + i, f"clusters/{count}") for i in range(len(some))]
            found = kmeans(some, count, generators, restarts=config.restarts)
            labels[first : first + len(some), count - 1] = found.labels.reshape(-1, *grid).numpy()
            inertia[first : first + len(some), count - 1] = found.inertia.numpy()
    complete = list(counts) == list(range(1, config.most + 1))
    knees = [knee(each) if complete else 1 for each in inertia]
    return ImageClusters(labels, inertia, np.array(knees, np.int64))


def object_metrics(
    images: Sequence[LabelledImage], pieces: Sequence[Integers], order: Sequence[str]
) -> dict[str, PerSegment]:
    """Return protocol A of pieces [h, w] of each image: `iou` and `best` of all objects, and `iou` by their height."""
    segments, matched, best, heights = [], [], [], []
    for image, piece in zip(images, pieces, strict=True):
        found = object_scores(image.truth, piece)
        segments += [image.segment] * image.truth.count
        matched += found.matched.tolist()
        best += found.best.tolist()
        heights += image.truth.heights.tolist()
    metrics = {
        "iou": mean_per_segment(segments, matched, order),
        "best": mean_per_segment(segments, best, order),
    }
    for low, high in pairwise(HEIGHT_BINS):
        chosen = [i for i, height in enumerate(heights) if low <= height < high]
        name = f"iou/{low}-{high}px" if high < HEIGHT_BINS[-1] else f"iou/{low}px+"
        metrics[name] = mean_per_segment([segments[i] for i in chosen], [matched[i] for i in chosen], order)
    return metrics


def parts(clusters: Integers, least_cells: int) -> list[Integers]:
    """Return the connected parts [h, w] of each image's clusters [M, h, w]."""
    return [components(each, least_cells) for each in clusters]


def union_metrics(
    images: Sequence[LabelledImage], clusters: Integers, rule: str, order: Sequence[str]
) -> dict[str, PerSegment]:
    """Return protocol B of clusters [M, h, w]: `oracle`, the best cluster's IoU, and `rule`, that of a fixed rule's.

    Images without objects do not count.
    """
    pairs = [(image, each) for image, each in zip(images, clusters, strict=True) if image.truth.count]
    segments = [image.segment for image, _ in pairs]
    return {
        "oracle": mean_per_segment(segments, [float(union_scores(i.truth, c).max()) for i, c in pairs], order),
        "rule": mean_per_segment(segments, [rule_scores(i.truth, c)[rule] for i, c in pairs], order),
    }


def best_rule(images: Sequence[LabelledImage], clusters: Integers) -> str:
    """Return the rule whose clusters are most like the objects, on images that nothing is measured on."""
    found = [rule_scores(i.truth, c) for i, c in zip(images, clusters, strict=True) if i.truth.count]
    return max(RULES, key=lambda name: float(np.mean([scores[name] for scores in found])) if found else 0.0)


def cluster_set(rows: Tensor, count: int, config: ClusterConfig, seed: int) -> Integers:
    """Return the cluster of each cell of all images [M, N], clustered together, of rows [M, N, D]."""
    flat = rows.reshape(-1, rows.shape[-1])
    chance = sample_generator(seed, 0, 0, f"classes/{count}")
    chosen = flat[torch.randperm(len(flat), generator=chance)[: config.class_cells]]
    centers = kmeans(chosen[None], count, [chance], restarts=_CLASS_RESTARTS).centers
    nearest = [lloyd(some[None], centers, rounds=0).labels[0] for some in flat.split(_ROWS_AT_ONCE)]
    return torch.cat(nearest).reshape(rows.shape[:2]).numpy()


def set_metric(
    images: Sequence[LabelledImage], clusters: Integers, count: int, order: Sequence[str], one_to_one: bool
) -> PerSegment:
    """Return protocol C of the clusters [M, h, w] of all images, 0 … count - 1, as mean IoU over groups of classes."""
    tables = [confusion(image.groups, each, count) for image, each in zip(images, clusters, strict=True)]
    return class_metric([image.segment for image in images], tables, order, one_to_one)


def measure_cells(
    images: Sequence[LabelledImage],
    rows: Tensor,
    found: ImageClusters,
    rules: Mapping[str, str],
    order: Sequence[str],
    config: ClusterConfig,
    seed: int,
) -> dict[str, PerSegment]:
    """Return all protocols of cells as rows [M, h * w, D], whose clusters in each image were found.

    rules: that of protocol B for two clusters, and for the knee's, by `2` and `knee`
    """
    grid = found.labels.shape[2:]
    metrics: dict[str, PerSegment] = {}
    for name, clusters in ((str(config.clusters), found.of(config.clusters)), ("knee", found.at_knee())):
        scored = object_metrics(images, parts(clusters, config.least_cells), order)
        metrics |= {f"A@{name}/{metric}": value for metric, value in scored.items()}
    for name, clusters in (("2", found.of(2)), ("knee", found.at_knee())):
        scored = union_metrics(images, clusters, rules[name], order)
        metrics |= {f"B@{name}/{metric}": value for metric, value in scored.items()}
    for number, count in enumerate(config.class_clusters):
        of_set = cluster_set(rows, count, config, seed).reshape(-1, *grid)
        metrics[f"C@{count}/miou"] = set_metric(images, of_set, count, order, one_to_one=number == 0)
    return metrics


def measure_components(
    images: Sequence[LabelledImage],
    rows: Tensor,
    fit: Principal,
    dimensions: Sequence[int],
    grid: tuple[int, int],
    order: Sequence[str],
    config: ClusterConfig,
    seed: int,
) -> Iterator[tuple[str, PerSegment]]:
    """Yield protocol A of the cells' first principal components, as many as each of the numbers says."""
    for count in dimensions:
        projected = fit.project(rows, count)
        clusters = cluster_images(projected, grid, [config.clusters], config, seed).of(config.clusters)
        metric = object_metrics(images, parts(clusters, config.least_cells), order)["iou"]
        yield f"PCA{count}/A@{config.clusters}/iou", metric


def knee_metrics(images: Sequence[LabelledImage], found: ImageClusters) -> dict[str, float]:
    """Return how much the knees say: their mean, the share that is not the null value, their rank correlation with
    the number of objects."""
    objects = [float(image.truth.count) for image in images]
    return {
        "knee/mean": float(found.knees.mean()),
        "knee/off_null": float((found.knees != null_knee(found.labels.shape[1])).mean()),
        "knee/spearman_objects": rank_correlation(found.knees.astype(np.float64), np.array(objects)),
    }


def rank_correlation(one: Floats, other: Floats) -> float:
    """Return Spearman's coefficient of two series [n], equal values sharing their mean rank; NaN where one is flat."""
    first, second = _ranks(one), _ranks(other)
    first, second = first - first.mean(), second - second.mean()
    scale = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / scale if scale > 0 else float("nan")


def with_intervals(metrics: Mapping[str, PerSegment], draws: int, seed: int) -> dict[str, dict[str, float]]:
    """Return each metric's value and its 95 % interval over segments, `low` and `high`."""
    found = {}
    for name, metric in metrics.items():
        low, high = interval(metric.draws(draws, seed))
        found[name] = {"value": metric.value, "low": low, "high": high}
    return found


def differences(
    metrics: Mapping[str, PerSegment], base: Mapping[str, PerSegment], draws: int, seed: int
) -> dict[str, dict[str, float]]:
    """Return how much each metric is above the base's, with its 95 % interval over the same drawn segments."""
    found = {}
    for name, metric in metrics.items():
        if name in base:
            low, high = interval(metric.draws(draws, seed) - base[name].draws(draws, seed))
            found[name] = {"value": metric.value - base[name].value, "low": low, "high": high}
    return found


def _ranks(values: Floats) -> Floats:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[places]
