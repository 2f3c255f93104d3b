"""A branch is replaced by what it is replaced by, and by nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from datalake.sample import Sample
from student.backbone import FREE
from student.config import StudentError
from student.detector import Student
from student.evaluation.branches import ALL, Ablation, ablate_branches, branch_features, substituted
from student.evaluation.run import evaluate_student
from tests.student.students import TAUGHT, build, objects_of, sample, samples

FOUR = samples(4)
BRANCHES = [FREE, "colors", "shades"]


@pytest.fixture
def student() -> Student:
    return build(TAUGHT).eval()


def pyramid(student: Student, *some: Sample) -> list[Tensor]:
    with torch.no_grad():
        return list(student.features(torch.stack([one.image for one in some])).pyramid)


def metrics(found: list[Ablation]) -> dict[str, dict[str, float]]:
    return {str(one): one.metrics for one in found}


@pytest.mark.parametrize("branch", BRANCHES)
def test_a_branch_replaced_by_its_own_output_changes_no_bit(student: Student, branch: str) -> None:
    images = torch.stack([one.image for one in FOUR])
    own = branch_features(student, [FOUR[:3], FOUR[3:]])
    before = [student.predict(images[:3]), student.predict(images[3:])]
    with substituted(student, {branch: own[branch]}):
        after = [student.predict(images[:3]), student.predict(images[3:])]
    for one, other in zip(before, after, strict=True):
        for mine, theirs in zip(one.detections, other.detections, strict=True):
            assert torch.equal(mine.boxes, theirs.boxes)
            assert torch.equal(mine.scores, theirs.scores)
            assert torch.equal(mine.depth_m, theirs.depth_m)


def test_with_all_branches_of_another_image_the_finest_level_is_that_images(student: Student) -> None:
    others = branch_features(student, [FOUR[1:2]])
    assert sorted(others) == sorted(BRANCHES)
    with substituted(student, others):
        seen = pyramid(student, FOUR[0])
    expected, own = pyramid(student, FOUR[1]), pyramid(student, FOUR[0])
    assert torch.equal(seen[0], expected[0])
    # What joins the coarser levels past the branches is the image's own.
    assert not torch.allclose(seen[1], expected[1])
    assert not torch.allclose(seen[0], own[0])


@pytest.mark.parametrize("branch", BRANCHES)
def test_one_branch_of_another_image_changes_the_features(student: Student, branch: str) -> None:
    other = branch_features(student, [FOUR[1:2]])[branch]
    with substituted(student, {branch: other}):
        seen = pyramid(student, FOUR[0])
    assert not torch.allclose(seen[0], pyramid(student, FOUR[0])[0])


def test_a_student_is_itself_again_afterwards_even_after_an_error(student: Student) -> None:
    before = pyramid(student, FOUR[0])
    with pytest.raises(KeyError), substituted(student, branch_features(student, [FOUR[1:2]])):
        raise KeyError("stop")
    ablate_branches(student, [FOUR])
    assert all(torch.equal(one, other) for one, other in zip(before, pyramid(student, FOUR[0]), strict=True))


def test_every_branch_is_replaced_in_both_ways_beside_the_student_as_it_is(student: Student) -> None:
    found = metrics(ablate_branches(student, [FOUR[:3], FOUR[3:]]))
    ways = [f"{branch}: {way}" for branch in [*BRANCHES, ALL] for way in ("mean", "other image")]
    assert list(found) == ["as it is", *ways]
    evaluated = dict(evaluate_student(student, [FOUR[:3], FOUR[3:]], None).metrics)
    del evaluated["images_per_second"]
    assert evaluated.items() <= found["as it is"].items()


def test_among_equal_images_no_replacement_changes_a_metric(student: Student) -> None:
    one = FOUR[2]
    as_it_is, *others = metrics(ablate_branches(student, [[one, one], [one, one]])).values()
    assert others == [pytest.approx(as_it_is)] * 8


def test_depth_errors_by_class_make_up_that_of_all(student: Student) -> None:
    found = ablate_branches(student, [FOUR])[0].metrics
    by_class = [value for name, value in found.items() if name in ("depth/AbsRel/VEHICLE", "depth/AbsRel/PEDESTRIAN")]
    by_class += [found["depth/AbsRel/CYCLIST"]] if "depth/AbsRel/CYCLIST" in found else []
    assert by_class
    assert min(by_class) <= found["depth/AbsRel"] <= max(by_class)


@pytest.mark.parametrize("some", [FOUR[:1], [sample(0, objects_of()), sample(1, objects_of())]])
def test_too_little_to_compare_is_refused(student: Student, some: list[Sample]) -> None:
    with pytest.raises(StudentError, match="expected two images or more, and a labelled object"):
        ablate_branches(student, [some])
