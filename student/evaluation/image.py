"""What is compared in one image, checked and on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from datalake.sample import Objects, Panoptic
from student.detections import CLASS_NAMES, Detections


def detections_on_cpu(found: Detections) -> Detections:
    """Return the detections on the CPU.

    Raises ValueError where a class is none of CLASS_NAMES or background, a box, score or distance is not finite, or a
    distance is negative: no comparison would be true of NaN, so it would pass for a wrong detection or for none.
    """
    _check_classes("detections", found.classes)
    if (name := found.not_finite) is not None:
        raise ValueError(f"Expected finite {name} of detections, got one that is not")
    if bool((found.depth_m < 0).any()):
        raise ValueError(f"Expected depth_m of detections of at least 0, got: {found.depth_m.min()}")
    return Detections(*(values.detach().cpu() for values in (found.boxes, found.classes, found.scores, found.depth_m)))


def objects_on_cpu(objects: Objects) -> Objects:
    """Return the labelled objects on the CPU.

    Raises ValueError where the shapes do not fit, a class is none of CLASS_NAMES or background, a box is not finite, or
    a distance is neither positive nor NaN.
    """
    count = len(objects.boxes)
    if objects.boxes.shape != (count, 4):
        raise ValueError(f"Expected boxes of objects [M, 4], got: {list(objects.boxes.shape)}")
    difficulty = objects.difficulty
    for name, values in (("classes", objects.classes), ("depth_m", objects.depth_m), ("difficulty", difficulty)):
        if values is not None and values.shape != (count,):
            raise ValueError(f"Expected {name} of objects [{count}], got: {list(values.shape)}")
    _check_classes("objects", objects.classes)
    if not bool(objects.boxes.isfinite().all()):
        raise ValueError("Expected finite boxes of objects, got one that is not")
    if bool((objects.depth_m <= 0).any()):
        raise ValueError(f"Expected depth_m of objects above 0 or NaN, got: {objects.depth_m.nan_to_num(1).min()}")
    return Objects(
        objects.boxes.detach().cpu(),
        objects.classes.cpu(),
        objects.depth_m.detach().cpu(),
        None if difficulty is None else difficulty.cpu(),
    )


def box_sizes(boxes: Tensor) -> Tensor:
    """Return float64 [N], the square root of each box's area in pixels; boxes are [N, 4] as x0, y0, x1, y1."""
    sides = (boxes[:, 2:].double() - boxes[:, :2].double()).clamp(min=0)
    return sides.prod(1).sqrt()


def classes_of_cells(panoptic: Panoptic, height: int, width: int) -> Tensor:
    """Return the panoptic class, int64 [height, width], of the pixel in the middle of each cell of a grid."""
    classes = panoptic.semantic_class.long()
    rows, columns = classes.shape[0] // height, classes.shape[1] // width
    return classes[rows // 2 :: rows, columns // 2 :: columns]


def _check_classes(whose: str, classes: Tensor) -> None:
    strange = classes[(classes < 1) | (classes >= len(CLASS_NAMES))]
    if len(strange):
        raise ValueError(f"Expected classes of {whose} within 1 … {len(CLASS_NAMES) - 1}, got: {int(strange[0])}")
    if classes.dtype != torch.int64:
        raise ValueError(f"Expected classes of {whose} int64, got: {classes.dtype}")
