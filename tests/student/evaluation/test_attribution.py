"""Integrated gradients add up, vanish where a branch does nothing, and equal the closed form on a linear path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from student.config import StudentError
from student.detector import Student
from student.evaluation.attribution import EVERY_CLASS, attribute_branches
from student.evaluation.branches import branch_features
from tests.student.students import TAUGHT, build, objects_of, sample, samples

FOUR = samples(4)
ORDER = ["free", "colors", "shades"]


@pytest.fixture
def student() -> Student:
    student = build(TAUGHT).eval()
    # torchvision starts the objectness at almost nothing.
    torch.nn.init.normal_(student.rpn.head.cls_logits.weight, std=0.5, generator=torch.Generator().manual_seed(1))
    return student


def test_parts_add_up_to_the_change_of_the_objectness_by_class_and_of_all(student: Student) -> None:
    found = attribute_branches(student, [FOUR[:3], FOUR[3:]])
    assert [(one.class_name, one.objects) for one in found] == [
        (EVERY_CLASS, 12), ("VEHICLE", 4), ("PEDESTRIAN", 4), ("CYCLIST", 4),
    ]  # fmt: skip
    for one in found:
        assert list(one.branches) == ORDER
        assert max(map(abs, one.branches.values())) > 0.01
        assert sum(one.branches.values()) == pytest.approx(one.after - one.before, abs=2e-3)


def test_the_objectness_is_that_of_the_anchors_on_the_objects(student: Student) -> None:
    every = attribute_branches(student, [FOUR])[0]
    values = []
    with torch.no_grad():
        for one in FOUR:
            levels = student.features(one.image[None]).pyramid
            scores, _ = student.rpn(levels)
            overlap = box_iou(student.rpn.anchors(levels, (64, 96)), one.objects.boxes)
            values += [float(scores[0, int(overlap[:, i].argmax())]) for i in range(3)]
    assert every.after == pytest.approx(sum(values) / 12, rel=1e-4)


def test_a_branch_that_the_fusion_ignores_accounts_for_nothing(student: Student) -> None:
    fuse: Any = student.backbone.fuse[0]
    with torch.no_grad():
        fuse.weight[:, TAUGHT.branch_width : 2 * TAUGHT.branch_width] = 0
    # Standardized weights would have a mean taken off, and so a part in it after all.
    fuse.standardized = lambda: fuse.weight
    every = attribute_branches(student, [FOUR])[0]
    assert every.branches["colors"] == 0
    assert every.branches["free"] != 0


def test_where_the_path_is_linear_a_part_is_the_gradient_times_the_change(
    student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = torch.randn(3, TAUGHT.branch_width, generator=torch.Generator().manual_seed(2))

    def pyramid(parts: Sequence[Tensor], coarse: Sequence[Tensor]) -> tuple[Tensor, ...]:
        del coarse
        return (
            torch.stack([(w[:, None, None] * part).sum((1, 2, 3)) for w, part in zip(weight, parts, strict=True)], 1),
        )

    def rpn(levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        # Every anchor's objectness is the sum of all cells, each branch by weights of its own.
        return levels[0].sum(1, keepdim=True).expand(-1, 100_000), levels[0]

    own = branch_features(student, [FOUR])
    monkeypatch.setattr(student.backbone, "pyramid", pyramid)
    monkeypatch.setattr(student.rpn, "anchors", lambda _levels, _size: torch.tensor([[0.0, 0, 9, 9]]))
    monkeypatch.setattr(student.rpn, "forward", rpn)
    every = attribute_branches(student, [FOUR])[0]
    for name, w in zip(ORDER, weight, strict=True):
        change = own[name] - own[name].mean(0, keepdim=True)
        per_image = (w[:, None, None] * change).sum((1, 2, 3))
        assert every.branches[name] == pytest.approx(float(per_image.mean()), abs=1e-3)


def test_images_without_objects_are_refused(student: Student) -> None:
    with pytest.raises(StudentError, match="none of the images has a labelled object"):
        attribute_branches(student, [[sample(0, objects_of()), sample(1, objects_of())]])
