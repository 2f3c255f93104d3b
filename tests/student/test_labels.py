"""Labels go to the device padded and whole; classes that are none go nowhere."""

from __future__ import annotations

import math

import pytest
import torch

from student.config import StudentError
from student.labels import labels_on
from tests.student.students import objects_of

CPU = torch.device("cpu")


def test_objects_stand_first_in_their_image_and_padding_is_no_object() -> None:
    first = objects_of((1, 2, 30, 40, 1, 12.5), (5, 6, 7, 8, 4, math.nan))
    labels = labels_on(CPU, [first, objects_of(), objects_of((9, 9, 10, 10, 2, 3.0))])
    assert labels.counts == (2, 0, 1)
    assert labels.boxes.tolist() == [[[1, 2, 30, 40], [5, 6, 7, 8]], [[0] * 4] * 2, [[9, 9, 10, 10], [0] * 4]]
    assert labels.classes.tolist() == [[1, 4], [0, 0], [2, 0]]
    assert labels.valid.tolist() == [[True, True], [False, False], [True, False]]
    assert labels.depth_m.nan_to_num(-1).tolist() == [[12.5, -1], [-1, -1], [3, -1]]


def test_images_without_any_object_still_have_a_place() -> None:
    labels = labels_on(CPU, [objects_of(), objects_of()])
    assert labels.boxes.shape == (2, 1, 4)
    assert not bool(labels.valid.any())


def test_boxes_without_an_area_are_left_out() -> None:
    labels = labels_on(CPU, [objects_of((5, 5, 5, 9, 1, 1.0), (1, 1, 3, 3, 2, 2.0), (4, 9, 8, 9, 3, 3.0))])
    assert labels.counts == (1,)
    assert labels.classes.tolist() == [[2]]
    assert labels.depth_m.tolist() == [[2.0]]


@pytest.mark.parametrize("wrong", [5, 0, -1])
def test_a_class_that_is_none_is_refused_before_it_reaches_a_gpu(wrong: int) -> None:
    objects = [objects_of((1, 1, 3, 3, 2, 2.0)), objects_of((1, 1, 3, 3, 2, 2.0), (1, 1, 3, 3, wrong, 2.0))]
    with pytest.raises(StudentError, match=rf"image 1 of the batch: expected classes 1 … 4, got: {wrong}$"):
        labels_on(CPU, objects)
