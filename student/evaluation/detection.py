"""Average precision of the student's detections, as COCO and as Waymo compute it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools.coco import COCO  # type: ignore[import-untyped]
from pycocotools.cocoeval import COCOeval  # type: ignore[import-untyped]
from torch import Tensor

from datalake.sample import Objects
from student.detections import CLASS_NAMES, Detections
from student.evaluation.image import box_sizes, detections_on_cpu, objects_on_cpu
from student.evaluation.ranges import ABOVE_16_PIXELS, DISTANCES, EVERYTHING, SIZES, Range
from student.evaluation.waymo import LabelledBoxes, MatchedBoxes, ScoredBoxes, match_for_waymo

# In per cent: COCO's AP is the mean over these.
_IOUS = tuple(range(50, 100, 5))
# COCO evaluates so many detections of a class in an image.
_MOST_DETECTIONS = 100


@dataclass(frozen=True, slots=True, eq=False)
class PrecisionRecall:
    """The curve of one class at IoU 0.5, at COCO's 101 recalls; the mean of `precision` is the class's AP50.

    recall: float64 [101], 0, 0.01, … 1
    precision: float64 [101], the best that is reached at this recall or a higher one; 0 where the recall is not reached
    scores: float64 [101], the threshold on the score that gives the recall; 0 where the recall is not reached
    """

    class_name: str
    recall: NDArray[np.float64]
    precision: NDArray[np.float64]
    scores: NDArray[np.float64]


class DetectionScores:
    """Average precision over the images that were added, at most the 100 best detections of a class in each.

    Within a range of sizes or distances COCO's rule holds: objects outside the range are ignored, and so are the
    detections that match one of them; a detection that matches nothing is a false positive only in the range of its own
    size, or of the distance it predicts. Objects whose distance is not known are ignored in the ranges of distances. A
    detection that could match an object in the range and one outside of it is matched with the one in the range.
    """

    def __init__(self) -> None:
        self._images: list[tuple[Detections, Objects]] = []

    def add(self, found: Detections, objects: Objects) -> None:
        """Count one image; raises ValueError where it is not what Detections and Objects say."""
        self._images.append((detections_on_cpu(found), objects_on_cpu(objects)))

    def metrics(self) -> dict[str, float]:
        """Return the average precisions, each a mean over the classes that have an object; {} without objects.

        `AP` (mean over IoU 0.50, 0.55 … 0.95), `AP50`, `AP75`, `AP/<class>`, `AP50/<class>`; at IoU 0.5 also
        `AP50/small`, `/medium`, `/large`, `/>16px`, `/0-20m`, `/20-40m` and `/40m+`: these are COCO's. Waymo's are
        `waymo/…`, see `student.evaluation.waymo`. What no object belongs to is left out.
        """
        precision = _evaluate(self._images, _size, (EVERYTHING,), _IOUS).precision[:, :, :, 0]
        at = {iou: _by_class(precision[[place]]) for place, iou in enumerate(_IOUS)}
        metrics = {
            **_mean_and_classes("AP", _by_class(precision)),
            **_mean_and_classes("AP50", at[50]),
            **_mean("AP75", at[75]),
        }
        for measure, ranges in ((_size, (*SIZES, ABOVE_16_PIXELS)), (_distance, DISTANCES)):
            in_ranges = _evaluate(self._images, measure, ranges, (50,)).precision
            for number, one in enumerate(ranges):
                metrics |= _mean(f"AP50/{one.name}", _by_class(in_ranges[..., number]))
        return metrics | self._matched_as_waymo().metrics()

    def _matched_as_waymo(self) -> MatchedBoxes:
        """Return the detections and objects of all images, matched as Waymo does."""
        found = [detections for detections, _ in self._images]
        there = [objects for _, objects in self._images]
        levels = [
            torch.zeros(len(objects.boxes), dtype=torch.int8) if objects.difficulty is None else objects.difficulty
            for objects in there
        ]
        return match_for_waymo(
            ScoredBoxes(
                image=_numbers([one.boxes for one in found]),
                boxes=_joined([one.boxes for one in found], (0, 4)),
                types=_joined([one.classes for one in found]),
                scores=_joined([one.scores for one in found]),
                distance_m=_joined([one.depth_m for one in found]),
            ),
            LabelledBoxes(
                image=_numbers([one.boxes for one in there]),
                boxes=_joined([one.boxes for one in there], (0, 4)),
                types=_joined([one.classes for one in there]),
                difficulty=_joined(levels),
                distance_m=_joined([one.depth_m for one in there]),
            ),
        )

    def curves(self) -> tuple[PrecisionRecall, ...]:
        """Return the curve of each class that has an object, in the order of CLASS_NAMES."""
        curves = _evaluate(self._images, _size, (EVERYTHING,), (50,))
        return tuple(
            PrecisionRecall(name, curves.recall, curves.precision[0, :, number, 0], curves.scores[0, :, number, 0])
            for number, name in enumerate(CLASS_NAMES[1:])
            if curves.precision[0, 0, number, 0] >= 0
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Curves:
    """recall: float64 [R]; precision and scores: float64 [T, R, K, A], -1 where class K has no object in range A."""

    recall: NDArray[np.float64]
    precision: NDArray[np.float64]
    scores: NDArray[np.float64]


def _evaluate(
    images: Sequence[tuple[Detections, Objects]],
    measure: Callable[[Detections | Objects], Tensor],
    ranges: Sequence[Range],
    ious: Sequence[int],
) -> _Curves:
    """Return the curves at T IoUs (in per cent) and in A ranges of what `measure` gives for detections and objects."""
    found: list[dict[str, Any]] = []
    there: list[dict[str, Any]] = []
    for image, (detections, objects) in enumerate(images):
        boxes = _annotations(image, detections, measure(detections))
        found += [{**box, "score": score} for box, score in zip(boxes, detections.scores.tolist(), strict=True)]
        there += _annotations(image, objects, measure(objects))
    # It prints its progress and has no switch for that.
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_data_set(len(images), there), _data_set(len(images), found), "bbox")
        evaluation.params.iouThrs = np.array(ious) / 100
        evaluation.params.areaRng = [(one.first, one.last) for one in ranges]
        evaluation.params.areaRngLbl = [one.name for one in ranges]
        evaluation.params.maxDets = [_MOST_DETECTIONS]
        evaluation.evaluate()
        evaluation.accumulate()
    curves = evaluation.eval
    return _Curves(evaluation.params.recThrs, curves["precision"][..., 0], curves["scores"][..., 0])


def _annotations(image: int, boxes_of: Detections | Objects, measured: Tensor) -> list[dict[str, Any]]:
    """Return what COCO calls annotations, with what its ranges are to be of in the place of the area."""
    corners = boxes_of.boxes.double()
    boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
    rows = zip(boxes.tolist(), boxes_of.classes.tolist(), measured.tolist(), strict=True)
    return [
        {"image_id": image, "category_id": number, "bbox": box, "area": area, "iscrowd": 0}
        for box, number, area in rows
    ]


def _data_set(images: int, boxes: list[dict[str, Any]]) -> COCO:
    data = COCO()
    data.dataset = {
        "images": [{"id": image} for image in range(images)],
        "categories": [{"id": number, "name": name} for number, name in enumerate(CLASS_NAMES) if number],
        # COCO reads ids as truth values: 0 would be "no match".
        "annotations": [{"id": number, **box} for number, box in enumerate(boxes, start=1)],
    }
    data.createIndex()
    return data


def _numbers(boxes: Sequence[Tensor]) -> NDArray[np.int64]:
    """Return the number of the image of each box."""
    return np.repeat(np.arange(len(boxes)), [len(one) for one in boxes])


def _joined(parts: Sequence[Tensor], empty: tuple[int, ...] = (0,)) -> NDArray[Any]:
    return torch.cat(list(parts)).numpy() if parts else np.zeros(empty, np.int64)


def _size(boxes_of: Detections | Objects) -> Tensor:
    return box_sizes(boxes_of.boxes)


def _distance(boxes_of: Detections | Objects) -> Tensor:
    # NaN would be neither below nor above a range, and so in all of them.
    return boxes_of.depth_m.double().nan_to_num(nan=-1.0)


def _by_class(precision: NDArray[np.float64]) -> dict[str, float]:
    """Return class name -> mean of the precisions [T, R, K], without the classes that have no object."""
    areas = precision.mean((0, 1)).tolist()
    return {name: area for name, area in zip(CLASS_NAMES[1:], areas, strict=True) if area >= 0}


def _mean(name: str, by_class: dict[str, float]) -> dict[str, float]:
    return {name: sum(by_class.values()) / len(by_class)} if by_class else {}


def _mean_and_classes(name: str, by_class: dict[str, float]) -> dict[str, float]:
    return {**_mean(name, by_class), **{f"{name}/{class_name}": area for class_name, area in by_class.items()}}
