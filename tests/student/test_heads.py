"""Depths: who is asked for one, and who learns from one."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from datalake.sample import Objects
from student.config import AnchorShapes, StudentConfig
from student.depth import encode_depth
from student.detector import Student
from student.heads import DepthHead
from tests.student.students import HEIGHT, TINY, WIDTH, build, generators, objects_of, picture

CAR = (10.0, 10.0, 34.0, 28.0, 1)
MAN = (50.0, 8.0, 60.0, 32.0, 2)


def losses(student: Student, objects: Objects) -> dict[str, Tensor]:
    features = student.features(picture(objects)[None])
    return student.detection_losses(features, (HEIGHT, WIDTH), [objects], generators(1))


def depth_gradient(student: Student, objects: Objects) -> Tensor:
    """Return the gradient of the depth loss with respect to the depth of each class, float32 [5, C]."""
    student.zero_grad()
    losses(student, objects)["depth"].backward()
    gradient = student.heads.depth_head.tell.weight.grad
    assert gradient is not None
    return gradient.clone()


def test_a_depth_is_told_for_each_box_and_class() -> None:
    head = DepthHead(TINY)
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 5, 50, 40], [1, 2, 3, 4]])
    assert head(torch.rand(3, TINY.head_width), boxes, (HEIGHT, WIDTH)).shape == (3, 5)


def test_half_a_pixel_more_is_another_distance_under_bfloat16_too() -> None:
    torch.manual_seed(0)
    head, features = DepthHead(TINY), torch.rand(1, TINY.head_width)
    lower, higher = torch.tensor([[300.0, 100, 340, 160.0]]), torch.tensor([[300.0, 100, 340, 160.5]])
    with torch.autocast("cpu", torch.bfloat16):
        told = [head(features, boxes, (256, 384)) for boxes in (lower, higher)]
    assert not torch.equal(*told)
    assert torch.equal(told[0], head(features, lower, (256, 384)))


@pytest.mark.parametrize(("preset", "sees"), [("classroom", True), ("paper", False)])
def test_only_the_default_student_sees_where_the_box_is(preset: str, sees: bool) -> None:
    torch.manual_seed(0)
    config = TINY if preset == "classroom" else StudentConfig.paper((), AnchorShapes())
    head, features = DepthHead(config), torch.rand(1, config.head_width)
    near, far = torch.tensor([[10.0, 30, 80, 64]]), torch.tensor([[40.0, 20, 44, 24]])
    told = [head(features, boxes, (HEIGHT, WIDTH)) for boxes in (near, far)]
    assert torch.equal(*told) != sees


def test_background_and_objects_of_unknown_depth_teach_no_depth() -> None:
    gradient = depth_gradient(build(), objects_of((*CAR, 20.0), (*MAN, math.nan)))
    rows = gradient.abs().sum(1)
    assert float(rows[1]) > 0
    # 0 is background, 2 the pedestrian whose distance is not known.
    assert rows[[0, 2, 3, 4]].tolist() == [0, 0, 0, 0]


def test_what_is_told_of_them_changes_nothing() -> None:
    student, objects = build(), objects_of((*CAR, 20.0), (*MAN, math.nan))
    before, gradient = losses(student, objects)["depth"], depth_gradient(student, objects)
    with torch.no_grad():
        student.heads.depth_head.tell.bias[[0, 2]] += 1000
    assert torch.equal(losses(student, objects)["depth"], before)
    assert torch.equal(depth_gradient(student, objects), gradient)


@pytest.mark.parametrize("rows", [[], [(*CAR, math.nan), (*MAN, math.nan)]], ids=["no object", "no depth"])
def test_without_a_known_depth_there_is_no_loss(rows: list[tuple[float, float, float, float, int, float]]) -> None:
    student = build()
    assert float(losses(student, objects_of(*rows))["depth"].detach()) == 0
    assert not bool(depth_gradient(student, objects_of(*rows)).any())


def test_an_object_of_unknown_depth_is_still_detected_and_the_other_depth_counts_whole() -> None:
    student = build()
    with torch.no_grad():
        student.heads.depth_head.tell.weight.zero_()
        student.heads.depth_head.tell.bias.fill_(0.5)
    error = abs(0.5 - float(encode_depth(torch.tensor(20.0), 75.0)))
    expected = error - 0.025 if error > 0.05 else error**2 / 0.1
    known = losses(student, objects_of((*CAR, 20.0), (*MAN, 20.0)))
    half_known = losses(student, objects_of((*CAR, 20.0), (*MAN, math.nan)))
    # Every known depth is equally wrong: how many there are must not matter.
    assert float(known["depth"].detach()) == pytest.approx(expected, rel=1e-4)
    assert float(half_known["depth"].detach()) == pytest.approx(expected, rel=1e-4)
    assert torch.equal(known["box"], half_known["box"])
    assert torch.equal(known["classification"], half_known["classification"])


def test_the_loss_is_of_the_column_of_the_labels_class() -> None:
    student = build()
    with torch.no_grad():
        student.heads.depth_head.tell.weight.zero_()
        student.heads.depth_head.tell.bias[1] = float(encode_depth(torch.tensor(20.0), 75.0))
        student.heads.depth_head.tell.bias[2] = float(encode_depth(torch.tensor(50.0), 75.0))
    right = losses(student, objects_of((*CAR, 20.0), (*MAN, 50.0)))["depth"]
    wrong = losses(student, objects_of((*CAR, 50.0), (*MAN, 20.0)))["depth"]
    assert float(right.detach()) == pytest.approx(0, abs=1e-6)
    assert float(wrong.detach()) > 0.1


def test_detections_have_the_depth_of_their_class_in_metres() -> None:
    student = build(replace(TINY, min_score=0.0)).eval()
    depths = torch.tensor([1.0, 20.0, 30.0, 40.0, 50.0])
    with torch.no_grad():
        student.heads.depth_head.tell.weight.zero_()
        student.heads.depth_head.tell.bias.copy_(encode_depth(depths, 75.0))
    (found,) = student(picture(objects_of((*CAR, 20.0)))[None])
    assert len(found.boxes) > 0
    assert len(found.classes.unique()) > 1
    assert torch.allclose(found.depth_m, depths[found.classes], rtol=1e-4)


def test_nothing_found_is_an_empty_answer() -> None:
    student = build(replace(TINY, min_score=0.999)).eval()
    (found,) = student(picture(objects_of())[None])
    assert found.boxes.shape == (0, 4)
    assert found.depth_m.shape == (0,)
