"""A detector that teaches: asked once about what the student sees, and never changed by it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from student.config import AnchorShapes
from student.detector import DetectorOutput, Student
from student.distillation.batch import DetectionBatch
from student.distillation.controls import Targets
from student.distillation.detector_teacher import DetectorTeacher, DetectorTeacherOutput
from student.distillation.method import DistillationMethod
from student.distillation.objective import DetectionObjective, LossWeights
from tests.student.students import TAUGHT, TINY, build, samples
from training.generators import Chance
from training.objective import Batch, Loss

WIDE = replace(TINY, width=24)


class Listening(DistillationMethod):
    """Keeps what it is given, and learns to be like the teachers."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[DetectionBatch] = []

    def losses(
        self, student: Student, output: DetectorOutput, batch: DetectionBatch, progress: float
    ) -> dict[str, Loss]:
        del student, progress
        self.heard.append(batch)
        means = [teacher.pyramid[0].mean() for teacher in batch.detectors.values()]
        return {f"{id(self)}/all": Loss((output.features.pyramid[0].mean() - torch.stack(means)).square().sum())}


def objective(
    detectors: Mapping[str, DetectorTeacher], methods: int = 1, targets: Targets = "real"
) -> DetectionObjective:
    listening = {f"listening_{number}": Listening() for number in range(methods)}
    return DetectionObjective(build(TAUGHT), LossWeights(), listening, targets=targets, detectors=detectors)


def teacher(seed: int = 5) -> DetectorTeacher:
    return DetectorTeacher(build(WIDE, seed))


def step(taught: DetectionObjective, count: int = 4, labelled: int = 2) -> DetectionBatch:
    """Return what the first method was given in a step of so many images."""
    batch = taught.collate(Batch(samples(count), labelled, 0), {}, Chance(0, 0, tuple(range(count))))
    losses = taught.train()(batch, 0.0)
    torch.stack([loss.weight * loss.value for loss in losses.values()]).sum().backward()
    method = next(iter(taught.methods.values()))
    assert isinstance(method, Listening)
    return method.heard[-1]


def features(images: Tensor, seed: int = 5) -> tuple[Tensor, ...]:
    """Return what a teacher of that seed makes of images."""
    with torch.no_grad():
        pyramid: tuple[Tensor, ...] = build(WIDE, seed).eval().features(images).pyramid
    return pyramid


def test_it_is_asked_about_the_augmented_images_of_the_step_labelled_or_not() -> None:
    heard = step(objective({"big": teacher()}))
    plain = torch.stack([one.image for one in samples(4)]).float() / 255
    assert not torch.allclose(heard.images, plain, atol=1e-3)
    for level, expected in zip(heard.detectors["big"].pyramid, features(heard.images), strict=True):
        assert torch.equal(level, expected)


def test_it_is_asked_once_a_step_however_many_methods_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    ask = DetectorTeacher.predict

    def counted(self: DetectorTeacher, images: Tensor) -> DetectorTeacherOutput:
        asked.append(len(images))
        return ask(self, images)

    monkeypatch.setattr(DetectorTeacher, "predict", counted)
    step(objective({"big": teacher()}, methods=3))
    assert asked == [4]


def test_it_is_no_part_of_what_is_trained_and_kept() -> None:
    alone, taught = objective({}), objective({"big": teacher()})
    assert taught.state_dict().keys() == alone.state_dict().keys()
    assert len(list(taught.parameters())) == len(list(alone.parameters()))
    counts = [[len(group.parameters) for group in one.parameter_groups()] for one in (taught, alone)]
    assert counts[0] == counts[1]


def test_it_stays_as_it_was_while_the_student_learns() -> None:
    # Batch norms would count what they see in training mode.
    detector = build(replace(WIDE, norm="batch"))
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    heard = step(objective({"big": DetectorTeacher(detector)}))
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())
    assert all(parameter.grad is None for parameter in detector.parameters())
    assert not any(level.requires_grad for level in heard.detectors["big"].pyramid)


def test_it_goes_where_the_objective_goes() -> None:
    detector = build(WIDE)
    taught = objective({"big": DetectorTeacher(detector)}).to(torch.float64)
    assert {parameter.dtype for parameter in detector.parameters()} == {torch.float64}
    assert next(taught.student.parameters()).dtype == torch.float64


def test_its_proposals_are_those_that_it_detects_from() -> None:
    heard = step(objective({"big": teacher()}))
    proposals = heard.detectors["big"].proposals
    expected = build(WIDE, 5).eval().predict(heard.images).proposals
    for boxes, valid, found in zip(proposals.boxes, proposals.valid, expected, strict=True):
        assert torch.equal(boxes[valid], found)
    assert heard.detectors["big"].proposals is proposals


def test_its_detections_are_what_it_finds_in_the_images_or_in_some_of_them() -> None:
    heard = step(objective({"big": teacher()}))
    output = heard.detectors["big"]
    expected = build(WIDE, 5).eval().predict(heard.images).detections
    some = output.with_pyramid(tuple(level[2:] for level in output.pyramid)).detections
    for image, found in enumerate(expected):
        valid = output.detections.valid[image]
        assert int(valid.sum()) == len(found.boxes) > 0
        assert torch.equal(output.detections.boxes[image][valid], found.boxes)
        assert torch.equal(output.detections.classes[image][valid], found.classes)
        if image >= 2:
            assert torch.allclose(some.boxes[image - 2][some.valid[image - 2]], found.boxes, atol=1e-3)
    assert output.detections is output.detections
    assert not output.detections.scores.requires_grad


def test_its_heads_answer_for_given_boxes_of_the_first_images() -> None:
    heard = step(objective({"big": teacher()}))
    boxes = torch.tensor([[4.0, 4.0, 30.0, 20.0], [40.0, 8.0, 90.0, 60.0], [0.0, 0.0, 8.0, 8.0]])
    told = heard.detectors["big"].predict(boxes.repeat(2, 1, 1))
    detector = build(WIDE, 5).eval()
    for image in range(2):
        levels = [level[image : image + 1] for level in features(heard.images)]
        rois = torch.cat([torch.zeros(3, 1), boxes], 1)
        with torch.no_grad():
            logits, deltas = detector.heads.box_predictor(detector.heads.box_head(detector.heads.pool(levels, rois)))
        assert torch.allclose(told.logits[image], logits, atol=1e-5)
        assert torch.allclose(told.deltas[image], deltas, atol=1e-5)
    assert not told.logits.requires_grad


def test_shuffled_features_are_those_of_the_next_image_and_so_is_all_that_follows_from_them() -> None:
    heard = step(objective({"big": teacher()}, targets="shuffled"))
    real = DetectorTeacherOutput(build(WIDE, 5).eval(), features(heard.images), (64, 96))
    for level, expected in zip(heard.detectors["big"].pyramid, real.pyramid, strict=True):
        for place in range(4):
            assert torch.equal(level[place], expected[(place + 1) % 4])
    boxes = torch.tensor([[[4.0, 4.0, 30.0, 20.0]]]).repeat(4, 1, 1)
    logits, expected = (output.predict(boxes).logits for output in (heard.detectors["big"], real))
    assert torch.allclose(logits, expected.roll(-1, 0), atol=1e-5)
    assert not torch.allclose(logits, expected, atol=1e-3)
    found, expected = (output.detections.boxes for output in (heard.detectors["big"], real))
    assert torch.allclose(found, expected.roll(-1, 0), atol=1e-3)
    assert not torch.allclose(found, expected, atol=1.0)


def test_random_features_are_as_large_as_real_ones_and_have_nothing_of_the_images() -> None:
    heard = step(objective({"big": teacher()}, targets="random"))
    drawn, real = heard.detectors["big"].pyramid, features(heard.images)
    for level, expected in zip(drawn[:2], real, strict=False):
        assert torch.allclose(level.mean((0, 2, 3)), expected.mean((0, 2, 3)), atol=0.2 * float(expected.std()))
        assert float(level.std()) == pytest.approx(float(expected.std()), rel=0.1)
        # What is common to all images, a channel's mean, is taken out.
        one, other = (values - values.mean((0, 2, 3), keepdim=True) for values in (level, expected))
        assert abs(float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])) < 0.05
    again = step(objective({"big": teacher()}, targets="random")).detectors["big"].pyramid
    assert all(torch.equal(one, other) for one, other in zip(drawn, again, strict=True))


def test_its_weights_and_its_configuration_decide_about_the_run() -> None:
    others = ((WIDE, 5), (WIDE, 6), (replace(WIDE, anchors=AnchorShapes(ratios=(0.4, 1.0))), 5))
    found = [objective({"big": DetectorTeacher(build(*other))}).fingerprint() for other in others]
    assert len({one["teacher.big"] for one in found}) == 3
    assert objective({"big": teacher()}).fingerprint() == found[0]
