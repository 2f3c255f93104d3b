"""A mirrored image, its labels and its targets still belong together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from datalake.sample import Objects
from student.augmentation import lit, mirrored_objects, mirrored_target
from tests.student.students import WIDTH, ColorTeacher, image, objects_of, sample, samples, targets_of

BOXES = st.lists(
    st.tuples(st.integers(0, 47), st.integers(0, 31), st.integers(48, 96), st.integers(32, 64), st.integers(1, 4)),
    max_size=4,
)


@given(rows=BOXES)
def test_objects_mirrored_twice_are_where_they_were(rows: list[tuple[int, int, int, int, int]]) -> None:
    objects = objects_of(*((*row, 5.0) for row in rows))
    once = mirrored_objects(objects, WIDTH)
    twice = mirrored_objects(once, WIDTH)
    assert torch.equal(twice.boxes, objects.boxes)
    assert bool((once.boxes[:, 2:] > once.boxes[:, :2]).all())
    assert torch.equal(twice.classes, objects.classes)
    assert torch.equal(twice.depth_m, objects.depth_m)


def extent(image: Tensor) -> list[int]:
    """Return x0, y0, x1, y1 of the bright pixels of uint8 [3, H, W]."""
    rows, columns = (image.amax(0) > 100).any(1).nonzero(), (image.amax(0) > 100).any(0).nonzero()
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


def test_a_mirrored_box_lies_on_the_mirrored_object() -> None:
    objects = objects_of((10, 20, 31, 27, 1, 5.0))
    drawn = image(objects)
    assert extent(drawn) == objects.boxes[0].tolist()
    assert extent(drawn.flip(-1)) == mirrored_objects(objects, WIDTH).boxes[0].tolist()


def test_a_image_without_objects_can_be_mirrored() -> None:
    assert mirrored_objects(objects_of(), WIDTH).boxes.shape == (0, 4)


def test_the_mirrored_target_is_what_a_teacher_says_of_the_mirrored_image() -> None:
    some = samples(3)
    mirror = torch.tensor([True, False, True])
    turned = [replace(one, image=one.image.flip(-1)) if flip else one for one, flip in zip(some, mirror, strict=True)]
    for name, target in targets_of(some).items():
        expected = targets_of(turned)[name]
        found = mirrored_target(target, mirror)
        assert torch.allclose(found.values.float(), expected.values.float(), atol=1e-5)
        assert torch.equal(found.valid, expected.valid)
        assert not torch.equal(found.values, target.values)
        again = mirrored_target(found, mirror)
        assert torch.equal(again.values, target.values)


def test_validity_and_confidence_are_mirrored_with_the_values() -> None:
    target = ColorTeacher().predict([sample()], 16, 24)
    valid = torch.rand(1, 1, 16, 24, generator=torch.Generator().manual_seed(0)) > 0.5
    predicted = replace(target, values=target.values * valid, valid=valid, confidence=valid.float())
    turned = mirrored_target(predicted, torch.tensor([True]))
    assert torch.equal(turned.valid, valid.flip(-1))
    assert turned.confidence is not None
    assert torch.equal(turned.confidence, valid.float().flip(-1))


def test_light_changes_brightness_and_contrast_of_each_image() -> None:
    images = 0.25 + 0.25 * torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    bright, hard, same = lit(images, torch.tensor([[1.2, 1.0], [1.0, 1.2], [1.0, 1.0]]))
    assert torch.allclose(bright, 1.2 * images[0])
    assert torch.allclose(hard.mean(), images[1].mean())
    assert torch.allclose(hard.std(), 1.2 * images[1].std())
    assert torch.allclose(same, images[2])


@pytest.mark.parametrize("light", [0.0, 3.0])
def test_lit_images_stay_within_0_and_1(light: float) -> None:
    images = lit(torch.rand(1, 3, 8, 8), torch.full((1, 2), light))
    assert 0 <= float(images.min()) <= float(images.max()) <= 1


def test_classes_and_depths_stay_with_their_boxes() -> None:
    objects = Objects(torch.tensor([[0.0, 0, 5, 5], [50, 0, 60, 9]]), torch.tensor([1, 2]), torch.tensor([4.0, 8.0]))
    mirrored = mirrored_objects(objects, WIDTH)
    assert mirrored.boxes.tolist() == [[91, 0, 96, 5], [36, 0, 46, 9]]
    assert mirrored.classes.tolist() == [1, 2]
    assert mirrored.depth_m.tolist() == [4.0, 8.0]
