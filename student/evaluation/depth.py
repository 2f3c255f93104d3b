"""Depth errors of the student's correct detections."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_iou

from datalake.sample import Objects
from student.detections import Detections
from student.evaluation.image import detections_on_cpu, objects_on_cpu
from student.evaluation.ranges import DISTANCES

_MIN_IOU = 0.5
_DELTA1 = 1.25
# A student that finds the easy objects alone looks good. At one recall two students are compared fairly.
_EQUAL_RECALLS = (25, 50)


class DepthScores:
    """Errors of the distance, over the detections that are right.

    In each image the detections, the most confident first, take the object of their class that they overlap best,
    with IoU 0.5 or more, among those not yet taken. What takes an object whose distance is not known, or is beyond
    `max_depth_m`, takes no part in any figure, nor does the object.
    """

    def __init__(self, max_depth_m: float = 75.0) -> None:
        self._max_depth_m = max_depth_m
        self._objects = 0
        self._true: list[Tensor] = []
        self._predicted: list[Tensor] = []
        self._scores: list[Tensor] = []

    def add(self, found: Detections, objects: Objects) -> None:
        """Count one image; raises ValueError where it is not what Detections and Objects say."""
        found, objects = detections_on_cpu(found), objects_on_cpu(objects)
        known = objects.depth_m <= self._max_depth_m
        self._objects += int(known.sum())
        detection, taken = _match(found, objects)
        detection, taken = detection[known[taken]], taken[known[taken]]
        self._true.append(objects.depth_m[taken])
        self._predicted.append(found.depth_m[detection])
        self._scores.append(found.scores[detection])

    @property
    def pairs(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The true and the predicted distance, float32 [K] each, of the K detections that are right."""
        true, predicted, _ = self._matched()
        return true.numpy(), predicted.numpy()

    def metrics(self) -> dict[str, float]:
        """Return the metrics, all named `depth/…`; {} where no object's distance is known.

        `matched` and `recall`: how many objects of known distance were found, and the share of them.
        `AbsRel`: mean of |p - t| / t. `RMSE`: in metres. `delta1`: share with max(p / t, t / p) < 1.25.
        `AbsRel/0-20m` and so on: by the true distance. `AbsRel@recall50` and `@recall25`: of the most confident of the
        right detections, just so many that they are half (a quarter) of the objects; left out where there are fewer.
        `AbsRel/constant`: the same of the best constant prediction for these very detections.
        """
        if not self._objects:
            return {}
        true, predicted, scores = (values.double() for values in self._matched())
        matched = len(true)
        metrics = {"matched": float(matched), "recall": matched / self._objects}
        if matched:
            relative = (predicted - true).abs() / true
            ratio = torch.maximum(predicted / true, true / predicted)
            metrics |= {
                "AbsRel": float(relative.mean()),
                "RMSE": float((predicted - true).square().mean().sqrt()),
                "delta1": float((ratio < _DELTA1).double().mean()),
                "AbsRel/constant": float(((_best_constant(true) - true).abs() / true).mean()),
            }
            for one in DISTANCES:
                if (inside := one.contains(true)).any():
                    metrics[f"AbsRel/{one.name}"] = float(relative[inside].mean())
            by_score = relative[scores.argsort(descending=True, stable=True)]
            for percent in _EQUAL_RECALLS:
                needed = math.ceil(self._objects * percent / 100)
                if matched >= needed:
                    metrics[f"AbsRel@recall{percent}"] = float(by_score[:needed].mean())
        return {f"depth/{name}": value for name, value in metrics.items()}

    def _matched(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return true and predicted distance and score, float32 [K] each."""
        nothing = torch.zeros(0)
        return (
            torch.cat([nothing, *self._true]),
            torch.cat([nothing, *self._predicted]),
            torch.cat([nothing, *self._scores]),
        )


def _match(found: Detections, objects: Objects) -> tuple[Tensor, Tensor]:
    """Return which detections are right and the object that each of them takes, int64 [K] both."""
    iou = box_iou(found.boxes.double(), objects.boxes.double())
    iou[found.classes[:, None] != objects.classes] = 0
    pairs = []
    for detection in found.scores.argsort(descending=True, stable=True).tolist() if len(objects.boxes) else []:
        best = int(iou[detection].argmax())
        if iou[detection, best] >= _MIN_IOU:
            pairs.append((detection, best))
            iou[:, best] = 0
    detection, taken = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(1)
    return detection, taken


def _best_constant(true: Tensor) -> Tensor:
    """Return the c with the least mean of |c - t| / t: the median of t [K] where each weighs 1 / t."""
    ascending = true.sort().values
    weight = (1 / ascending).cumsum(0)
    return ascending[int((weight < weight[-1] / 2).sum())]
