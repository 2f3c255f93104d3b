"""A student whose box head is to say of its boxes what a detector teacher's says."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from student.depth import GAMMA
from student.detector import DetectorOutput, Student
from student.distillation.batch import DetectionBatch
from student.distillation.controls import Targets
from student.distillation.detector_teacher import DetectorTeacher, DetectorTeacherOutput
from student.distillation.kd import KD, KDConfig, softened_divergence
from student.distillation.objective import DetectionObjective
from student.distillation.student_boxes import StudentBoxes
from student.roi_heads import RoIPredictions
from tests.student.distillation.taught import WIDE, batch, decided, of_method, reached, taught, teachers, value
from tests.student.students import HEIGHT, TINY, WIDTH
from training.objective import Loss

FAR = replace(WIDE, max_depth_m=60.0)


def objective(config: KDConfig | None = None, targets: Targets = "real", roi_batch: int = 16) -> DetectionObjective:
    return taught(KD(config or KDConfig()), teachers(), targets, replace(TINY, roi_batch=roi_batch))


def kd(some: DetectionBatch, config: KDConfig | None = None) -> float:
    return value(objective(config)(some, 0.0), "kd/big")


def divergence(logits: np.ndarray, truth: np.ndarray, temperature: float) -> float:
    """Return T² KL of one box, class by class."""
    q, p = (np.exp(values.astype(np.float64) / temperature) for values in (logits, truth))
    q, p = q / q.sum(), p / p.sum()
    return temperature**2 * sum(float(p[k]) * (math.log(p[k]) - math.log(q[k])) for k in range(len(p)))


def said(detector: Student, pyramid: list[Tensor], box: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return logits and depths in metres that a detector gives a box in an image of pyramid [1, C, h, w]."""
    heads = detector.heads
    with torch.no_grad():
        hidden = heads.box_head(heads.pool(pyramid, torch.cat([torch.zeros(1), box])[None]))
        logits, _ = heads.box_predictor(hidden)
        encoded = heads.depth_head(hidden, box[None], (HEIGHT, WIDTH))[0].clamp(0, 1).double().numpy()
    return logits[0].double().numpy(), detector.config.max_depth_m * encoded**GAMMA


@pytest.mark.parametrize("roi_batch", [16, 64])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_losses_are_means_over_images_of_what_each_box_costs(roi_batch: int, temperature: float) -> None:
    config = KDConfig(temperature=temperature, depth=1.0)
    detectors = teachers(config=FAR)
    objective = taught(KD(config), detectors, student=replace(TINY, roi_batch=roi_batch))
    some = batch([0, 1, 2, 3], 2)
    student, teacher = objective.student, decided(FAR, 5).eval()
    losses = objective(some, 0.0)

    # The boxes: what detection sampled, and of images without labels what the student proposes first.
    sampled = student.training_output(some.images, some.labels, batch([0, 1, 2, 3], 2).generators).rois
    boxes = [one[classes >= 0] for one, classes in zip(sampled.boxes, sampled.classes, strict=True)]
    proposed = decided().eval().predict(some.images).proposals
    boxes += [proposed[image][:roi_batch] for image in (2, 3)]
    assert all(0 < len(one) <= roi_batch for one in boxes)

    classes, depths = [], []
    with torch.no_grad():
        own, other = (detector.features(some.images).pyramid for detector in (student, teacher))
    for image in range(4):
        costs, errors, weights = [], [], []
        for box in boxes[image]:
            logits, metres = said(student, [level[image : image + 1] for level in own], box)
            truth, true_metres = said(teacher, [level[image : image + 1] for level in other], box)
            costs.append(divergence(logits, truth, temperature))
            probability = np.exp(truth) / np.exp(truth).sum()
            best = 1 + int(probability[1:].argmax())
            weights.append(float(probability[best]))
            error = abs((metres[best] / 75) ** (1 / GAMMA) - (true_metres[best] / 75) ** (1 / GAMMA))
            errors.append(error**2 / 0.1 if error < 0.05 else error - 0.025)
        classes.append(sum(costs) / len(costs))
        depths.append(sum(w * e for w, e in zip(weights, errors, strict=True)) / max(1, sum(weights)))
    assert value(losses, "kd/big") == pytest.approx(sum(classes) / 4, rel=1e-4)
    assert value(losses, "kd/big/depth") == pytest.approx(sum(depths) / 4, rel=1e-4)


def test_depths_are_not_compared_unless_they_are_asked_for() -> None:
    assert set(of_method(objective()(batch([0], 1), 0.0))) == {"kd/big"}
    assert set(of_method(objective(KDConfig(depth=0.5))(batch([0], 1), 0.0))) == {"kd/big", "kd/big/depth"}


def test_a_student_like_its_teacher_has_nothing_to_learn() -> None:
    objective = taught(KD(KDConfig(depth=1.0)), {"same": DetectorTeacher(decided())})
    losses = of_method(objective(batch([0, 1, 2], 2), 0.0))
    assert [abs(float(loss.value.detach())) < 1e-6 for loss in losses.values()] == [True, True]
    torch.stack([loss.value for loss in losses.values()]).sum().backward()
    assert all(p.grad is None or float(p.grad.abs().max()) < 1e-5 for p in objective.student.parameters())


ROWS = st.lists(st.lists(st.floats(-20, 20), min_size=5, max_size=5), min_size=2, max_size=2)


@given(rows=ROWS, constants=st.tuples(st.floats(-50, 50), st.floats(-50, 50)), temperature=st.floats(0.5, 10))
def test_a_constant_added_to_the_logits_of_a_box_changes_nothing(
    rows: list[list[float]], constants: tuple[float, float], temperature: float
) -> None:
    logits, truth = torch.tensor(rows, dtype=torch.float64)
    expected = softened_divergence(logits, truth, temperature)
    found = softened_divergence(logits + constants[0], truth + constants[1], temperature)
    assert float(found) == pytest.approx(float(expected), rel=1e-6, abs=1e-9)
    assert float(expected) >= -1e-9


def test_at_a_high_temperature_it_is_half_the_mean_square_of_the_difference_of_centered_logits() -> None:
    draw = torch.Generator().manual_seed(0)
    logits, truth = torch.randn(2, 50, 5, generator=draw, dtype=torch.float64)
    one, other = (values.numpy() - values.numpy().mean(1, keepdims=True) for values in (logits, truth))
    expected = ((one - other) ** 2).sum(1) / (2 * 5)
    assert float(softened_divergence(logits, truth, 1e3).mean()) == pytest.approx(expected.mean(), rel=1e-3)
    # A box alone is off by a term that falls as 1 / T.
    assert softened_divergence(logits, truth, 1e4).numpy() == pytest.approx(expected, rel=1e-3)


def reordered(output: DetectorOutput, order: Tensor) -> DetectorOutput:
    """Return the output with the boxes of each image in another order."""
    rois = {name: getattr(output.rois, name)[:, order] for name in ("boxes", "classes", "object_boxes", "depth_m")}
    predictions = output.predictions
    return replace(
        output,
        rois=replace(output.rois, **rois),
        predictions=RoIPredictions(
            predictions.pooled[:, order], predictions.logits[:, order], predictions.deltas[:, order]
        ),
    )


def losses_of(output: DetectorOutput, objective: DetectionObjective, some: DetectionBatch) -> dict[str, Loss]:
    """Return the method's losses for what the student computed."""
    heard = {name: teacher.predict(some.images) for name, teacher in objective.detectors.items()}
    method = objective.methods["method"]
    assert isinstance(method, KD)
    return method.losses(objective.student, output, replace(some, detectors=heard), 0.0)


def test_the_order_of_the_boxes_does_not_matter() -> None:
    objective, some = taught(KD(KDConfig(depth=1.0)), teachers()), batch([0, 1], 2)
    output = objective.student.training_output(some.images, some.labels, some.generators)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    expected, found = (losses_of(one, objective, some) for one in (output, reordered(output, order)))
    for name in ("kd/big", "kd/big/depth"):
        assert value(found, name) == pytest.approx(value(expected, name), rel=1e-5)


def test_boxes_that_the_teacher_proposes_would_give_another_loss() -> None:
    objective, some = taught(KD(KDConfig()), teachers()), batch([0, 1], 2)
    student = objective.student
    output = student.training_output(some.images, some.labels, some.generators)
    boxes = objective.detectors["big"].predict(some.images).proposals.boxes[:, :16]
    predictions = student.heads.predict(list(output.features.pyramid), boxes)
    other = replace(output, rois=replace(output.rois, boxes=boxes), predictions=predictions)
    expected, found = (value(losses_of(one, objective, some), "kd/big") for one in (output, other))
    assert found != pytest.approx(expected, rel=1e-3)


def test_the_teacher_is_asked_once_about_the_boxes_of_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    ask = DetectorTeacherOutput.predict

    def heard(self: DetectorTeacherOutput, boxes: Tensor) -> RoIPredictions:
        asked.append(boxes)
        return ask(self, boxes)

    monkeypatch.setattr(DetectorTeacherOutput, "predict", heard)
    objective(KDConfig(depth=1.0))(batch([0, 1, 2], 1), 0.0)
    (boxes,) = asked
    assert boxes.shape == (3, 16, 4)
    assert not boxes.requires_grad


def test_box_head_and_backbone_learn_and_proposals_and_boxes_do_not() -> None:
    for depth, predictors in ((0.0, {"box_predictor"}), (1.0, {"box_predictor", "depth_head"})):
        objective = taught(KD(KDConfig(depth=depth)), teachers())
        changed = reached(objective.student, of_method(objective(batch([0, 1, 2], 2), 0.0)).values())
        assert {name.partition(".")[0] for name in changed} == {"backbone", "heads"}
        heads = {name.split(".")[1] for name in changed if name.startswith("heads.")}
        assert heads == {"box_head"} | predictors
        assert not any("bbox_pred" in name for name in changed)


def test_images_without_labels_teach_by_themselves() -> None:
    objective, some = taught(KD(KDConfig()), teachers()), batch([0, 2], 1)
    output = objective.student.training_output(some.images, some.labels, some.generators)
    loss = losses_of(output, objective, some)["kd/big"].value
    # Of two images, each has half of the loss.
    alone = value(taught(KD(KDConfig()), teachers())(batch([0], 1), 0.0), "kd/big")
    assert float(loss.detach()) > alone / 2
    (level,) = torch.autograd.grad(loss, output.features.pyramid[0])
    assert bool(level[1].any())


def test_their_boxes_are_the_students_best_proposals_and_nothing_is_drawn() -> None:
    student, some = decided(), batch([0, 2, 3], 1)
    output = student.training_output(some.images, some.labels, some.generators)
    state = torch.get_rng_state()
    boxes = StudentBoxes.of(student, output, (HEIGHT, WIDTH))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(boxes.boxes[:1], output.rois.boxes)
    for image, best in enumerate(decided().eval().predict(some.images).proposals):
        if image:
            assert torch.allclose(boxes.boxes[image][boxes.valid[image]], best[:16], atol=1e-4)


def test_under_the_control_the_teacher_says_of_the_students_boxes_what_it_sees_in_another_image() -> None:
    some = batch([0, 1], 2)
    found = value(objective(targets="shuffled")(some, 0.0), "kd/big")
    student, teacher = decided(), decided(WIDE, 5).eval()
    output = student.training_output(some.images, some.labels, batch([0, 1], 2).generators)
    costs = []
    with torch.no_grad():
        own, other = (detector.features(some.images).pyramid for detector in (student, teacher))
    for image in range(2):
        for box in output.rois.boxes[image]:
            logits, _ = said(student, [level[image : image + 1] for level in own], box)
            truth, _ = said(teacher, [level[1 - image : 2 - image] for level in other], box)
            costs.append(divergence(logits, truth, 1.0))
    assert bool((output.rois.classes >= 0).all())
    assert found == pytest.approx(sum(costs) / len(costs), rel=1e-4)
    assert found != pytest.approx(kd(batch([0, 1], 2)), rel=1e-3)


def test_its_settings_decide_about_a_run() -> None:
    found = KD(KDConfig(temperature=2.0)).fingerprint()
    assert found == {"weight": 1.0, "temperature": 2.0, "depth": 0.0}
