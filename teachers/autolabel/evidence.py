"""What both teachers say of each box that the mask teacher proposes."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from teachers.autolabel.lidar_objects import LidarObjects
from teachers.autolabel.nearest_cluster import nearest_cluster
from teachers.autolabel.seen_points import SeenPoints
from teachers.mask_rcnn.mask_grid import masks_at
from teachers.mask_rcnn.teacher import MaskDetections
from training.boxes import pairwise_iou

_INSIDE = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """The N detections of one image, in numpy: they travel between processes.

    boxes: float32 [N, 4], x0, y0, x1, y1 in pixels of the sample, within the image
    types: int64 [N], index into `MASK_CLASSES`, never 0
    mask_score: float32 [N], what the mask teacher says
    duplicate: float32 [N], IoU with the more confident detection of its type that it overlaps most
    points: int32 [N], returns of all lasers that are seen within the mask
    depth_m, depth_median_m: float32 [N], mean and median of their distances from the camera's center; NaN without any
    depth_nearest_m: float32 [N], the median of their nearest cluster (`nearest_cluster`)
    agreement: float32 [N], how likely that cluster's points are of the detection's type, by the lidar teacher; their
        mean. NaN where it says nothing: in a frame without lidar, and without a point of its laser in the cluster
    other: float32 [N], how likely they are of one of the other types; NaN likewise
    lidar_iou: float32 [N], IoU with the box of its type that fits best among what the lidar teacher finds alone
    lidar: whether the lidar teacher was asked, and the frame has points of its laser
    """

    boxes: NDArray[np.float32]
    types: NDArray[np.int64]
    mask_score: NDArray[np.float32]
    duplicate: NDArray[np.float32]
    points: NDArray[np.int32]
    depth_m: NDArray[np.float32]
    depth_median_m: NDArray[np.float32]
    depth_nearest_m: NDArray[np.float32]
    agreement: NDArray[np.float32]
    other: NDArray[np.float32]
    lidar_iou: NDArray[np.float32]
    lidar: bool

    def __len__(self) -> int:
        return len(self.boxes)

    def kept(self, chosen: NDArray[np.bool_]) -> Evidence:
        """Return some, bool [N], of the detections alone."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "lidar"}
        return Evidence(**{name: values[chosen] for name, values in arrays.items()}, lidar=self.lidar)


def evidence_of(found: MaskDetections, seen: SeenPoints, objects: LidarObjects, size: tuple[int, int]) -> Evidence:
    """Return what is known of the detections of an image of (height, width) pixels. Those without an area are left out.

    found: on the CPU, each of one of `MASK_CLASSES` but background
    objects: what the lidar teacher finds alone
    """
    height, width = size
    limits = torch.tensor([width, height, width, height])
    boxes = found.boxes.clamp(min=0).minimum(limits)
    usable = (boxes[:, 2:] > boxes[:, :2]).all(1)
    boxes, types, scores = boxes[usable], found.classes[usable], found.scores[usable]
    inside = _points_inside(found.masks[usable], boxes, seen)
    count = len(boxes)
    depth_m, median_m, nearest_m, agreement, other = np.full((5, count), np.nan, np.float32)
    for row, (of_mask, kind) in enumerate(zip(inside, types.tolist(), strict=True)):
        depths = seen.depth_m[of_mask]
        if not len(depths):
            continue
        depth_m[row], median_m[row] = depths.mean(dtype=np.float64), np.median(depths)
        cluster = nearest_cluster(depths)
        nearest_m[row] = np.median(depths[cluster])
        told = seen.type_probability[of_mask][cluster]
        told = told[np.isfinite(told[:, 0])]
        if len(told):
            mean = told.mean(0, dtype=np.float64)
            agreement[row], other[row] = mean[kind], mean[1:].sum() - mean[kind]
    return Evidence(
        boxes=boxes.numpy(),
        types=types.numpy(),
        mask_score=scores.numpy(),
        duplicate=_best_iou(boxes, boxes, (types[:, None] == types) & (scores[:, None] < scores)),
        points=inside.sum(1, dtype=np.int32),
        depth_m=depth_m,
        depth_median_m=median_m,
        depth_nearest_m=nearest_m,
        agreement=agreement,
        other=other,
        lidar_iou=_best_iou(boxes, torch.from_numpy(objects.boxes), types[:, None] == torch.from_numpy(objects.types)),
        lidar=seen.lidar,
    )


def _points_inside(masks: Tensor, boxes: Tensor, seen: SeenPoints) -> NDArray[np.bool_]:
    """Return bool [N, n], which of the points lie in each of the boxes [N, 4] and its mask [N, m, m]."""
    inside = np.zeros((len(boxes), len(seen.u)), bool)
    edges = torch.cat([boxes[:, :2].floor(), boxes[:, 2:].ceil()], 1).long().tolist()
    for row, (x0, y0, x1, y1) in enumerate(edges):
        here = np.flatnonzero((seen.u >= x0) & (seen.u < x1) & (seen.v >= y0) & (seen.v < y1))
        if not len(here):
            continue
        rows, columns = torch.arange(float(y0), y1)[None], torch.arange(float(x0), x1)[None]
        mask = masks_at(masks[row : row + 1], boxes[row : row + 1], rows, columns)[0].numpy()
        inside[row, here] = mask[seen.v[here] - y0, seen.u[here] - x0] >= _INSIDE
    return inside


def _best_iou(boxes: Tensor, others: Tensor, compared: Tensor) -> NDArray[np.float32]:
    """Return float32 [N], the most IoU of each box with one of the others [M, 4] that it is `compared` with."""
    if not len(others):
        return np.zeros(len(boxes), np.float32)
    return pairwise_iou(boxes, others).where(compared, 0.0).amax(1).numpy()
