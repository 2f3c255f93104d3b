"""How well clusters of all images' cells are groups of classes: one clustering for the whole set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from student.evaluation.bootstrap import PerSegment
from student.evaluation.incremental_assignment import IncrementalAssignment
from student.evaluation.object_masks import enlarged
from teachers.classes import CAMERA_CLASSES

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "road": ("ROAD", "LANE_MARKER", "ROAD_MARKER"),
        "pavement": ("SIDEWALK", "GROUND"),
        "building": ("BUILDING",),
        "vegetation": ("VEGETATION",),
        "sky": ("SKY",),
        "vehicle": (*("CAR", "TRUCK", "BUS", "OTHER_LARGE_VEHICLE", "MOTORCYCLE", "TRAILER", "MOTORCYCLIST"),),
        "person": ("PEDESTRIAN", "CYCLIST", "BICYCLE"),
        "pole": ("POLE", "SIGN", "TRAFFIC_LIGHT", "CONSTRUCTION_CONE_POLE"),
    }
)
# The group of each class of the camera's labels, -1 for those of none.
GROUP_OF = np.array(
    [next((i for i, names in enumerate(GROUPS.values()) if name in names), -1) for name in CAMERA_CLASSES], np.int64
)
_EXACT = 1 << 40


def group_truth(semantic_class: NDArray[np.integer]) -> Integers:
    """Return the group of each pixel of official classes [H, W], -1 for those of none."""
    return GROUP_OF[semantic_class]


def confusion(truth: Integers, clusters: NDArray[np.integer], count: int) -> Floats:
    """Return how many pixels of each group lie in each of `count` clusters, float64 [groups, count].

    truth: [H, W] as `group_truth` has it; clusters: int [h, w]
    """
    pieces = enlarged(clusters, truth.shape)
    counted = truth >= 0
    table = np.bincount(truth[counted] * count + pieces[counted], minlength=len(GROUPS) * count)
    return table.reshape(len(GROUPS), count).astype(np.float64)


def matched_groups(table: Floats) -> Integers:
    """Return the group of each cluster, int64 [K]: one-to-one with the largest sum of IoUs; -1 for those left over."""
    union = table.sum(1, keepdims=True) + table.sum(0) - table
    overlap = table / np.maximum(union, 1)
    matching = IncrementalAssignment()
    for row in overlap:
        matching.add([(cluster, round(iou * _EXACT)) for cluster, iou in enumerate(row.tolist()) if iou > 0])
    found = np.full(table.shape[1], -1)
    for group, cluster in matching.pairs.items():
        found[cluster] = group
    return found


def likeliest_groups(table: Floats) -> Integers:
    """Return the group of each cluster, int64 [K]: that which most of its pixels belong to; several may share one."""
    return table.argmax(0)


def class_metric(
    segments: Sequence[str], tables: Sequence[Floats], order: Sequence[str], one_to_one: bool
) -> PerSegment:
    """Return the mean IoU over groups of the images' confusions [groups, K], as a metric of the set.

    order: all segments

    Which cluster is which group follows from all images, and stays as it is when segments are drawn.
    """
    total = np.sum(tables, 0)
    groups = matched_groups(total) if one_to_one else likeliest_groups(total)
    sums = np.zeros((len(order), len(GROUPS), len(GROUPS) + 1))
    place = {segment: number for number, segment in enumerate(order)}
    for segment, table in zip(segments, tables, strict=True):
        for cluster, group in enumerate(groups.tolist()):
            sums[place[segment], :, group] += table[:, cluster]
    return PerSegment(sums, mean_iou)


def mean_iou(table: Floats) -> float:
    """Return the mean IoU of the groups that there are; table: float64 [groups, groups + 1], the last is no group."""
    right = np.diagonal(table)
    union = table.sum(1) + table[:, :-1].sum(0) - right
    there = table.sum(1) > 0
    return float((right / np.maximum(union, 1))[there].mean()) if there.any() else float("nan")
