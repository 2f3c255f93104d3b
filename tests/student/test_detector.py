"""The whole student: what it answers, and losses that do not depend on how a batch is cut."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from datalake.sample import Objects
from student.config import StudentError
from student.detector import Student
from tests.student.students import HEIGHT, TAUGHT, TINY, WIDTH, build, generators, objects_of, samples

DETECTION = ("objectness", "rpn_box", "classification", "box", "depth")


def losses(student: Student, images: Tensor, labels: list[Objects], first: int = 0) -> dict[str, Tensor]:
    """Return the losses of images that stand at `first` and behind it in the whole batch."""
    drawn = generators(first + len(labels))[first:]
    return student.training_output(images, labels, drawn).losses


def test_losses_do_not_depend_on_how_a_batch_is_cut() -> None:
    student = build(TAUGHT)
    some = samples(3)
    # Images that differ in how much there is to learn: three objects, none, one of them without a depth.
    labels = [some[0].objects, objects_of(), objects_of((10, 10, 30, 30, 1, torch.nan), (40, 30, 60, 50, 2, 9.0))]
    images = torch.stack([one.image for one in some])
    whole = losses(student, images, labels)
    parts = [losses(student, images[i : i + 1], labels[i : i + 1], first=i) for i in range(3)]
    assert tuple(whole) == DETECTION
    for name, loss in whole.items():
        assert float(loss.detach()) == pytest.approx(sum(float(part[name].detach()) for part in parts) / 3, rel=1e-4)
        assert float(loss.detach()) > 0


def test_boxes_without_an_area_teach_nothing() -> None:
    student, (one,) = build(TAUGHT), samples(1)
    thin = objects_of((20, 20, 20, 40, 2, 5.0), (30, 50, 60, 50, 1, 5.0))
    mixed = Objects(*(torch.cat(pair) for pair in zip(
        (thin.boxes, thin.classes, thin.depth_m), (one.objects.boxes, one.objects.classes, one.objects.depth_m),
        strict=True,
    )))  # fmt: skip
    without, beside = (
        {name: loss.item() for name, loss in losses(student, one.image[None], [labels]).items()}
        for labels in (one.objects, mixed)
    )
    assert beside == without


def test_images_without_labels_have_no_part_in_the_detection_losses() -> None:
    student = build(TAUGHT)
    some = samples(3)
    images = torch.stack([one.image for one in some])
    alone = losses(student, images[:2], [one.objects for one in some[:2]])
    beside = losses(student, images, [one.objects for one in some[:2]])
    for name, loss in alone.items():
        assert float(beside[name].detach()) == pytest.approx(float(loss.detach()), rel=1e-4)
    values = images.float().div(255).requires_grad_()
    torch.stack(list(losses(student, values, [one.objects for one in some[:2]]).values())).sum().backward()
    assert values.grad is not None
    touched = values.grad.abs().sum((1, 2, 3)) > 0
    assert touched.tolist() == [True, True, False]


def test_other_generators_look_at_other_anchors() -> None:
    student, some = build(), samples(1)
    images = torch.stack([one.image for one in some])
    first, again, other = (losses(student, images, [some[0].objects], place) for place in (0, 0, 1))
    assert torch.equal(first["objectness"], again["objectness"])
    assert not torch.equal(first["objectness"], other["objectness"])


def test_whole_and_float_images_are_the_same_to_it() -> None:
    student, images = build(TAUGHT), torch.stack([one.image for one in samples(2)])
    whole, fractions = student.features(images), student.features(images.float() / 255)
    assert torch.equal(whole.pyramid[0], fractions.pyramid[0])


def test_an_answer_is_of_each_image_and_within_it() -> None:
    student = build(replace(TAUGHT, min_score=0.0)).eval()
    prediction = student.predict(torch.stack([one.image for one in samples(2)]))
    assert len(prediction.detections) == len(prediction.proposals) == 2
    for found, proposals in zip(prediction.detections, prediction.proposals, strict=True):
        assert 0 < len(found.boxes) <= TAUGHT.detections
        assert 0 < len(proposals) <= TAUGHT.proposals
        for boxes in (found.boxes, proposals):
            assert bool((boxes >= 0).all())
            assert float(boxes[:, [0, 2]].max()) <= WIDTH
            assert float(boxes[:, [1, 3]].max()) <= HEIGHT
        assert bool((found.classes >= 1).all())
        assert torch.equal(found.scores, found.scores.sort(descending=True).values)
        assert bool(((found.depth_m >= 0) & (found.depth_m <= TAUGHT.max_depth_m)).all())
    assert {name: branch_outputs.shape for name, branch_outputs in prediction.branch_outputs.items()} == {
        "colors": (2, 3, 16, 24), "shades": (2, 3, 16, 24),
    }  # fmt: skip


def test_an_answer_does_not_depend_on_the_other_images() -> None:
    student = build(replace(TINY, min_score=0.0)).eval()
    images = torch.stack([one.image for one in samples(2)])
    together, alone = student(images)[1], student(images[1:])[0]
    assert len(together.boxes) == len(alone.boxes)
    assert torch.allclose(together.scores, alone.scores, atol=1e-5)


def test_a_student_in_training_does_not_answer() -> None:
    with pytest.raises(StudentError, match="call eval"):
        build().train()(torch.zeros(1, 3, HEIGHT, WIDTH))


def test_images_that_do_not_divide_are_refused() -> None:
    with pytest.raises(StudentError, match="images of 100 x 64 pixels do not divide"):
        build().features(torch.zeros(1, 3, 64, 100))


def test_detection_cannot_be_learned_from_nothing() -> None:
    student = build()
    with pytest.raises(StudentError, match="expected at least one labelled image"):
        losses(student, torch.zeros(1, 3, HEIGHT, WIDTH), [])


@pytest.mark.parametrize(
    "name", ["backbone.fuse.0.weight", "heads.box_head.fc6.weight", "heads.depth_head.hidden.weight"]
)
def test_layers_inside_a_student_are_hidden(name: str) -> None:
    student = build(TAUGHT)
    assert any(weight is student.get_parameter(name) for weight in student.hidden_weights())


@pytest.mark.parametrize(
    "name",
    [
        "backbone.trunk.stem.0.0.weight",
        "backbone.branches.colors.predictor.weight",
        "rpn.head.cls_logits.weight",
        "rpn.head.conv.0.0.weight",
        "heads.box_predictor.cls_score.weight",
        "heads.depth_head.predictor.weight",
        "backbone.fuse.1.weight",
    ],
)
def test_layers_that_face_images_or_answers_and_norms_are_not(name: str) -> None:
    student = build(TAUGHT)
    assert all(weight is not student.get_parameter(name) for weight in student.hidden_weights())
