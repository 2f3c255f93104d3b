"""The response to a branch is what autograd says of the linear path, and is compared where objects are."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from datalake.sample import Panoptic
from student.backbone import FREE
from student.config import Norm
from student.detector import Student
from student.evaluation.branches import branch_features
from student.evaluation.responses import (
    branch_responses,
    contrasts,
    effective_kernels,
    past_branches,
    response_maps,
    shown_samples,
)
from teachers.classes import CAMERA_CLASSES
from tests.student.students import TAUGHT, build, objects_of, sample, samples

TWO = samples(2)
WIDTH = TAUGHT.branch_width
# As the backbone joins them.
ORDER = [FREE, "colors", "shades"]


def some_student(norm: Norm) -> Student:
    student = build(replace(TAUGHT, norm=norm))
    with torch.no_grad():
        for _, parameter in student.backbone.fuse.named_parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    if norm == "batch":
        student.train().features(torch.stack([one.image for one in TWO]))
    return student.eval()


def linear_path(student: Student, fused: Tensor) -> Tensor:
    """Return the norm of what is fused, with its statistics held, and then the proposals' first convolution."""
    norm: Any = student.backbone.fuse[1]
    held = fused.detach()
    if isinstance(norm, torch.nn.BatchNorm2d):
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None
        assert variance is not None
        mean, variance = mean[None, :, None, None], variance[None, :, None, None]
    else:
        group = held.shape[1] // norm.num_groups
        parts = [held[:, i : i + group].flatten(1) for i in range(0, held.shape[1], group)]
        mean = torch.cat([part.mean(1, keepdim=True).expand(-1, group) for part in parts], 1)[:, :, None, None]
        variance = torch.cat([part.var(1, correction=0, keepdim=True).expand(-1, group) for part in parts], 1)
        variance = variance[:, :, None, None]
    normalized = (fused - mean) / (variance + norm.eps).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
    head: Any = student.rpn.head
    found: Tensor = head.conv[0][0](normalized)
    return found


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_effective_kernels_are_the_jacobian_of_the_linear_path(norm: Norm) -> None:
    student = some_student(norm)
    parts = branch_features(student, [TWO])
    joined = torch.cat([parts[name] for name in ORDER], 1).requires_grad_()
    fused = student.backbone.fuse[0](joined)
    kernels = effective_kernels(student, fused.detach())
    out, (row, column) = linear_path(student, fused), (5, 9)
    for image in range(2):
        for channel in (0, 7, 15):
            (jacobian,) = torch.autograd.grad(out[image, channel, row, column], joined, retain_graph=True)
            around = jacobian[image, :, row - 1 : row + 2, column - 1 : column + 2]
            assert jacobian.count_nonzero() == around.count_nonzero()
            for name, expected in zip(ORDER, around.split(WIDTH), strict=True):
                torch.testing.assert_close(kernels[name][image, channel], expected, rtol=1e-4, atol=1e-7)


def test_the_responses_to_all_branches_add_up_to_the_linear_path() -> None:
    student = some_student("group")
    parts = branch_features(student, [TWO])
    joined = torch.cat([parts[name] for name in ORDER], 1)
    maps = response_maps(student, torch.stack([one.image for one in TWO]))
    with torch.no_grad():
        for number, name in enumerate(ORDER):
            alone = torch.zeros_like(joined)
            chosen = slice(number * WIDTH, (number + 1) * WIDTH)
            alone[:, chosen] = joined[:, chosen]
            # Linear: what one branch adds is the difference that it makes.
            fused = student.backbone.fuse[0](joined)
            without = student.backbone.fuse[0](joined - alone)
            change = linear_path(student, fused) - held(student, fused, without)
            torch.testing.assert_close(maps[name], change.norm(dim=1), rtol=1e-3, atol=1e-5)


def held(student: Student, fused: Tensor, other: Tensor) -> Tensor:
    """Return the linear path of `other` with the statistics of `fused`."""
    with torch.enable_grad():
        at = fused.clone().requires_grad_()
        _, change = torch.autograd.functional.jvp(lambda one: linear_path(student, one), at, other - fused)
    return (linear_path(student, fused) + change).detach()


def test_shares_of_all_branches_make_one() -> None:
    found = branch_responses(some_student("group"), [TWO[:1], TWO[1:]])
    assert [one.branch for one in found] == ORDER
    assert sum(one.share for one in found) == pytest.approx(1)
    assert all(len(one.maps) == 2 for one in found)


def test_what_responds_inside_boxes_of_one_class_is_found_there_alone() -> None:
    maps = torch.ones(3, 16, 24)
    labelled = [sample(0, objects_of((8, 8, 24, 20, 1, 9.0), (40, 40, 60, 60, 2, 9.0)))] * 3
    for number in range(3):
        # Cells of four pixels.
        maps[number, 2:5, 2:6] = 3.0 + number
    found = contrasts(maps, labelled, 4)
    assert found.keys() == {"VEHICLE", "PEDESTRIAN"}
    assert found["VEHICLE"].ratio == pytest.approx(4)
    # The differences are 2, 3 and 4.
    assert found["VEHICLE"].t == pytest.approx(3 / (1 / math.sqrt(3)))
    assert found["PEDESTRIAN"].ratio == pytest.approx(1)
    assert found["PEDESTRIAN"].images == 3
    assert math.isnan(found["PEDESTRIAN"].t)


def test_with_panoptic_labels_a_class_is_where_these_show_it() -> None:
    classes = torch.full((64, 96), CAMERA_CLASSES.index("ROAD"), dtype=torch.uint8)
    classes[:16, :16] = CAMERA_CLASSES.index("BUS")
    classes[16:32, :16] = CAMERA_CLASSES.index("SIGN")
    # What is not known is neither a class nor the background.
    classes[:, 48:] = CAMERA_CLASSES.index("UNDEFINED")
    panoptic = Panoptic(classes, torch.zeros(64, 96, dtype=torch.int32))
    labelled = replace(sample(0, objects_of((40, 40, 60, 60, 2, 9.0))), panoptic=panoptic)
    maps = torch.ones(1, 16, 24)
    maps[0, :4, :4], maps[0, 4:8, :4], maps[0, :, 12:] = 6.0, 3.0, 99.0
    found = contrasts(maps, [labelled], 4)
    assert {name: one.ratio for name, one in found.items()} == {"VEHICLE": 6, "SIGN": 3}
    assert found["VEHICLE"].inside == 6


def test_past_the_branches_goes_what_the_laterals_add() -> None:
    student = some_student("group")
    found = past_branches(student, [TWO[:1], TWO[1:]])
    assert [one.stride for one in found] == [8, 16, 32]
    head: Any = student.rpn.head
    kernel = head.conv[0][0]
    features = student.features(torch.stack([one.image for one in TWO]))
    level, lateral = student.backbone.downsample[0](features.pyramid[0]), []
    hook = student.backbone.lateral[0].register_forward_hook(lambda _module, _inputs, output: lateral.append(output))
    student.features(torch.stack([one.image for one in TWO]))
    hook.remove()
    torch.testing.assert_close(features.pyramid[1], level + lateral[0])
    with torch.no_grad():
        # Without its bias, which belongs to neither.
        past, through = (
            (kernel(values) - kernel.bias[:, None, None]).norm(dim=1).sum() for values in (lateral[0], level)
        )
    assert found[0].share == pytest.approx(float(past / (past + through)), rel=1e-4)


def test_without_branches_that_contribute_all_goes_past_them() -> None:
    student = some_student("group")
    with torch.no_grad():
        for level in range(3):
            for name in ("weight", "bias"):
                student.backbone.get_parameter(f"downsample.{level}.1.{name}").zero_()
    assert [one.share for one in past_branches(student, [TWO])] == [1, 1, 1]


def test_six_images_with_the_most_labels_are_shown() -> None:
    many = samples(8)
    many[3] = replace(many[3], objects=objects_of())
    many[5] = replace(many[5], objects=objects_of((0, 0, 9, 9, 1, 5.0)))
    shown = shown_samples([many[:5], many[5:]])
    assert [one.key.timestamp_us for one in shown] == [0, 1, 2, 4, 6, 7]
    maps = branch_responses(some_student("group"), [many[:5], many[5:]])[0].maps
    assert len(maps) == 6
