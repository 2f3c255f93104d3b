"""What the lidar says of a proposed box, in cases built by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from datalake.sample import Lidar
from teachers.autolabel.evidence import Evidence, evidence_of
from teachers.autolabel.lidar_objects import lidar_objects
from teachers.autolabel.seen_points import SeenPoints
from teachers.classes import MASK_CLASSES, lidar_to_mask
from teachers.mask_rcnn.teacher import MaskDetections

SIZE = (64, 96)
CLASSES = ("CAR", "BUILDING", "PEDESTRIAN", "BICYCLE")
TYPE_OF_CLASS = torch.tensor(lidar_to_mask(CLASSES))
VEHICLE, PEDESTRIAN = MASK_CLASSES.index("VEHICLE"), MASK_CLASSES.index("PEDESTRIAN")
TOP, FRONT = 1, 2
# u, v, depth, laser, and how likely the point is of each class.
Point = tuple[float, float, float, int, tuple[float, ...]]
CAR, WALL = (0.9, 0.1, 0.0, 0.0), (0.05, 0.95, 0.0, 0.0)


def seen_points(points: Sequence[Point], *, asked: bool = True) -> SeenPoints:
    """Return what an image shows of points; they lie at their depth, 10 cm from each other."""
    xyzi = torch.zeros(4, len(points))
    xyzi[0] = torch.tensor([point[2] for point in points])
    xyzi[1] = 0.1 * torch.arange(len(points))
    laser = torch.tensor([point[3] for point in points], dtype=torch.int8)
    lidar = Lidar(
        points=xyzi,
        laser=laser,
        semantic_class=None,
        pixel_point=torch.arange(len(points), dtype=torch.int32),
        pixel_uv=torch.tensor([point[:2] for point in points]).reshape(-1, 2).T,
        pixel_depth_m=torch.tensor([point[2] for point in points]),
    )
    told = torch.tensor([point[4] for point in points if point[3] == TOP]).reshape(-1, len(CLASSES))
    return SeenPoints.of(lidar, TOP, told if asked else None, TYPE_OF_CLASS, len(MASK_CLASSES), SIZE)


def detection(masks: Tensor | None = None, *, boxes: Sequence[Sequence[float]] = ((10, 10, 50, 50),)) -> MaskDetections:
    """Return vehicles whose masks fill their boxes where none are given."""
    count = len(boxes)
    full = torch.ones(count, 28, 28) if masks is None else masks
    scores = torch.linspace(0.9, 0.5, count)
    return MaskDetections(torch.tensor(boxes).float(), torch.full((count,), VEHICLE), scores, full, (count,))


def of(points: Sequence[Point], found: MaskDetections | None = None, *, asked: bool = True) -> Evidence:
    seen = seen_points(points, asked=asked)
    return evidence_of(found or detection(), seen, lidar_objects(seen), SIZE)


def grid(depth_m: float, told: tuple[float, ...], laser: int = TOP) -> list[Point]:
    return [(15.5 + 6 * x, 15.5 + 6 * y, depth_m, laser, told) for x in range(5) for y in range(5)]


def test_a_vehicle_whose_points_are_a_cars_is_confirmed() -> None:
    found = of(grid(20.0, CAR))
    assert found.agreement.tolist() == pytest.approx([0.9])
    assert found.points.tolist() == [25]
    assert found.depth_m.tolist() == found.depth_nearest_m.tolist() == [20.0]
    # The points reach from pixel 15 to 39 of a box from 10 to 50.
    assert found.lidar_iou.tolist() == pytest.approx([25**2 / 40**2])


def test_lit_windows_whose_points_are_a_wall_are_refuted() -> None:
    found = of(grid(20.0, WALL))
    assert found.agreement.tolist() == pytest.approx([0.05])
    assert found.lidar_iou.tolist() == [0]


def test_points_of_the_wall_behind_do_not_refute_a_car() -> None:
    behind = [(42.0, 12.0 + 2 * y, 45.0, TOP, WALL) for y in range(10)]
    found = of([*grid(20.0, CAR), *behind])
    assert found.agreement.tolist() == pytest.approx([0.9])
    assert found.depth_nearest_m.tolist() == [20.0]
    assert found.depth_m.tolist() == pytest.approx([(25 * 20 + 10 * 45) / 35])
    assert found.depth_median_m.tolist() == [20.0]


def test_points_beside_the_mask_but_in_its_box_do_not_count() -> None:
    mask = torch.zeros(1, 28, 28)
    mask[..., :14] = 1
    left, right = (20.0, 30.0, 20.0, TOP, CAR), (40.0, 30.0, 60.0, TOP, WALL)
    found = of([left, right], detection(mask))
    assert found.points.tolist() == [1]
    assert found.depth_m.tolist() == [20.0]


@pytest.mark.parametrize("asked", [True, False], ids=["no point", "no teacher"])
def test_of_a_frame_without_lidar_nothing_is_said(asked: bool) -> None:
    found = of([] if asked else grid(20.0, CAR), asked=asked)
    assert not found.lidar
    assert np.isnan(found.agreement).all()
    assert np.isnan(found.other).all()


def test_other_lasers_say_how_far_an_object_is_but_not_what_it_is() -> None:
    found = of([*grid(20.0, CAR, FRONT), (90.0, 60.0, 9.0, TOP, WALL)])
    assert found.lidar
    assert found.depth_m.tolist() == [20.0]
    assert np.isnan(found.agreement).all()


def test_the_less_sure_of_two_boxes_is_a_duplicate() -> None:
    found = of([], detection(boxes=((10, 10, 50, 50), (10, 10, 50, 30))))
    assert found.duplicate.tolist() == [0.0, 0.5]


def test_boxes_end_with_the_image_and_have_an_area() -> None:
    found = of([], detection(boxes=((-5, 10, 50, 80), (96, 10, 99, 20))))
    assert found.boxes.tolist() == [[0, 10, 50, 64]]


def test_the_lidar_finds_an_object_for_each_cluster_of_a_type() -> None:
    person: tuple[float, ...] = (0.0, 0.2, 0.8, 0.0)
    points = [*grid(20.0, CAR), *((60.5 + x, 20.5, 30.0, TOP, person) for x in range(4)), (80.0, 5.0, 50.0, TOP, CAR)]
    found = lidar_objects(seen_points(points))
    assert found.types.tolist() == [VEHICLE, PEDESTRIAN]
    assert found.boxes.tolist() == [[15, 15, 40, 40], [60, 20, 64, 21]]
    assert found.score.tolist() == pytest.approx([0.9, 0.8 * 4 / 20])
    assert found.depth_m.tolist() == [20.0, 30.0]
