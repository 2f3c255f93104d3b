"""An examination gives each image's answer to the comparison it belongs to, however the images are grouped."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from datalake.sample import Sample
from student.config import StudentError
from student.detections import Detections
from student.detector import Prediction, Student
from student.distillation.imitation import foreground_cells
from student.evaluation.depth import DepthScores
from student.evaluation.detection import DetectionScores
from student.evaluation.errors import DetectionErrors
from student.evaluation.imitation import ClassScores, RegressionScores
from student.evaluation.proposals import ProposalRecall
from student.evaluation.run import evaluate_student
from teachers.pool import LocalPool
from tests.student.students import COLORS, HEIGHT, SHADES, TAUGHT, WIDTH, ColorTeacher, samples, targets_of

GRID = TAUGHT.grid(HEIGHT, WIDTH)
FIVE = samples(5)


def knowledge(sample: Sample) -> tuple[Detections, Tensor]:
    """Return what is to be found in an image and proposed for it, more wrong from image to image."""
    objects, number = sample.objects, sample.key.timestamp_us
    boxes = objects.boxes + number
    found = Detections(boxes, objects.classes, torch.tensor([0.9, 0.6, 0.3]) - 0.05 * number, objects.depth_m + number)
    return found, torch.cat([torch.zeros(number, 4), boxes[number % 3 :]])


class Knowing(Student):
    """Answers images it has seen before from memory, and imitates colors a little worse from image to image."""

    def predict(self, images: Tensor) -> Prediction:
        numbers = [next(i for i, one in enumerate(FIVE) if torch.equal(one.image, image)) for image in images]
        targets = targets_of([FIVE[number] for number in numbers], blind=0)
        blur = 0.1 * torch.tensor(numbers, dtype=torch.float32)[:, None, None, None]
        shades = torch.nn.functional.one_hot(targets["shades"].values[:, 0], 3).permute(0, 3, 1, 2).float()
        branch_outputs = {"colors": targets["colors"].values + blur, "shades": shades.roll(numbers[0] % 2, 1)}
        known = [knowledge(FIVE[number]) for number in numbers]
        return Prediction([found for found, _ in known], [proposed for _, proposed in known], branch_outputs)


def pool() -> LocalPool:
    return LocalPool({"colors": ColorTeacher(COLORS, 3), "shades": ColorTeacher(SHADES, 3)}, GRID)


def metrics(student: Student, groups: Sequence[Sequence[Sample]]) -> dict[str, float]:
    mean = torch.full((3, *GRID), 0.5)
    found = dict(evaluate_student(student, groups, pool(), cell_means={"colors": mean}).metrics)
    assert found.pop("images_per_second") > 0
    return found


@pytest.fixture
def student() -> Student:
    return Knowing(TAUGHT).eval()


def test_every_figure_is_that_of_each_images_own_answer(student: Student) -> None:
    detection, proposals, depth = DetectionScores(), ProposalRecall(), DepthScores(TAUGHT.max_depth_m)
    errors = DetectionErrors()
    colors, shades = RegressionScores(3, torch.full((3, *GRID), 0.5)), ClassScores(("dark", "gray", "bright"))
    for (one,), targets in pool().follow([one] for one in FIVE):
        found, proposed = knowledge(one)
        detection.add(found, one.objects)
        errors.add(found, one.objects)
        depth.add(found, one.objects)
        proposals.add(proposed, one.objects)
        branch_outputs = student.predict(one.image[None]).branch_outputs
        colors.add(branch_outputs["colors"], targets["colors"], foreground_cells(targets))
        shades.add(branch_outputs["shades"], targets["shades"])
    expected = {**detection.metrics(), **errors.metrics(), **proposals.metrics(), **depth.metrics()}
    for name, scores in (("colors", colors), ("shades", shades)):
        expected |= {f"imitation/{name}/{figure}": value for figure, value in scores.metrics().items()}
    assert metrics(student, [[one] for one in FIVE]) == pytest.approx(expected, nan_ok=True)
    assert {"AP50", "errors/missed", "recall@100", "depth/AbsRel", "imitation/colors/R2/foreground"} <= expected.keys()


def test_how_images_are_grouped_does_not_matter(student: Student) -> None:
    # Of each batch the first image decides how the stub tells shades; let it be the same.
    even, odd = FIVE[::2], FIVE[1::2]
    one = metrics(student, [even, odd])
    assert one == pytest.approx(metrics(student, [even[:1], even[1:], odd[:1], odd[1:]]))


def test_kinds_of_images_have_metrics_of_their_own(student: Student) -> None:
    kinds = {FIVE[number].key: kind for number, kind in ((0, "Night"), (1, "Day"), (3, "Day"))}
    found = evaluate_student(student, [FIVE[:2], FIVE[2:]], None, kinds=kinds).metrics
    by_day = evaluate_student(student, [[FIVE[1]], [FIVE[3]]], None).metrics
    for name in ("AP50", "recall@100", "depth/AbsRel"):
        assert found[f"{name}/Day"] == pytest.approx(by_day[name])
        assert f"{name}/Night" in found
        # Those of all images stay what they are.
        assert found[name] == pytest.approx(evaluate_student(student, [FIVE], None).metrics[name])


def test_an_answer_that_is_not_finite_is_refused_with_its_image() -> None:
    class Spoilt(Knowing):
        def predict(self, images: Tensor) -> Prediction:
            prediction = super().predict(images)
            prediction.detections[1].depth_m.fill_(torch.nan)
            return prediction

    with pytest.raises(StudentError, match=r"segment_1 1 FRONT: the student's depth_m is not finite"):
        metrics(Spoilt(TAUGHT).eval(), [FIVE])


def test_an_imitation_that_is_not_finite_is_refused_with_its_image() -> None:
    class Spoilt(Knowing):
        def predict(self, images: Tensor) -> Prediction:
            prediction = super().predict(images)
            prediction.branch_outputs["shades"][2] = torch.inf
            return prediction

    with pytest.raises(StudentError, match=r"segment_2 2 FRONT: the student's imitation of shades is not finite"):
        metrics(Spoilt(TAUGHT).eval(), [FIVE])


def test_nothing_to_look_at_is_refused(student: Student) -> None:
    with pytest.raises(StudentError, match="there is no sample to evaluate the student on"):
        metrics(student, [])
