"""What does not fit is refused before it becomes a figure."""

from __future__ import annotations

import math

import pytest
import torch

from datalake.sample import Objects
from student.evaluation.image import box_sizes, detections_on_cpu, objects_on_cpu
from tests.student.evaluation.images import CAR, VEHICLE, found, there


def test_size_is_the_root_of_the_area() -> None:
    boxes = torch.tensor([[10.0, 100, 50, 110], [0, 0, 3, 12], [5, 5, 5, 9], [9, 9, 5, 5]])
    assert box_sizes(boxes).tolist() == [20, 6, 0, 0]


def test_detections_of_background_or_unknown_classes_are_refused() -> None:
    for number in (-1, 0, 5):
        with pytest.raises(ValueError, match=f"classes of detections within 1 … 4, got: {number}"):
            detections_on_cpu(found((CAR, number, 0.5)))
        with pytest.raises(ValueError, match=f"classes of objects within 1 … 4, got: {number}"):
            objects_on_cpu(there((CAR, number)))


def test_detections_that_are_not_finite_are_refused() -> None:
    for row, name in (
        (((10, 20, math.inf, 40), VEHICLE, 0.5), "boxes"),
        ((CAR, VEHICLE, math.nan), "scores"),
        ((CAR, VEHICLE, 0.5, math.nan), "depth_m"),
    ):
        with pytest.raises(ValueError, match=f"finite {name}"):
            detections_on_cpu(found(row))


def test_negative_distances_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 0, got: -1"):
        detections_on_cpu(found((CAR, VEHICLE, 0.5, -1.0)))
    with pytest.raises(ValueError, match="above 0 or NaN, got: 0"):
        objects_on_cpu(there((CAR, VEHICLE), (CAR, VEHICLE, 0.0)))


def test_objects_of_other_shapes_are_refused() -> None:
    good = there((CAR, VEHICLE))
    with pytest.raises(ValueError, match=r"boxes of objects \[M, 4\], got: \[1, 5\]"):
        objects_on_cpu(Objects(torch.zeros(1, 5), good.classes, good.depth_m))
    with pytest.raises(ValueError, match=r"classes of objects \[1\], got: \[1, 1\]"):
        objects_on_cpu(Objects(good.boxes, good.classes[:, None], good.depth_m))
    with pytest.raises(ValueError, match=r"depth_m of objects \[1\], got: \[2\]"):
        objects_on_cpu(Objects(good.boxes, good.classes, good.depth_m.repeat(2)))
    with pytest.raises(ValueError, match="int64"):
        objects_on_cpu(Objects(good.boxes, good.classes.int(), good.depth_m))
    with pytest.raises(ValueError, match="finite boxes"):
        objects_on_cpu(Objects(good.boxes * math.nan, good.classes, good.depth_m))
