"""A student whose pyramid is to serve a detector teacher's box head as the teacher's own does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from student.distillation.controls import Targets
from student.distillation.crosskd import CrossKD, CrossKDConfig
from student.distillation.detector_teacher import DetectorTeacher
from student.distillation.objective import DetectionObjective
from tests.student.distillation.taught import (
    WIDE,
    batch,
    convolutions,
    decided,
    identities,
    of_method,
    reached,
    taught,
    teachers,
    total,
    value,
)
from tests.student.students import HEIGHT, TINY, WIDTH
from training.objective import Loss

CLASSES = 5


def objective(
    config: CrossKDConfig | None = None, targets: Targets = "real", roi_batch: int = 16
) -> DetectionObjective:
    torch.manual_seed(2)
    detectors = teachers()
    student = replace(TINY, roi_batch=roi_batch)
    return taught(CrossKD(config or CrossKDConfig(), student, detectors), detectors, targets, student)


def method_of(some: DetectionObjective) -> CrossKD:
    method = some.methods["method"]
    assert isinstance(method, CrossKD)
    return method


def crosskd(some: DetectionObjective, places: list[int], labelled: int) -> dict[str, Loss]:
    return of_method(some(batch(places, labelled), 0.0))


def said(pyramid: list[Tensor], box: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return logits and deltas [classes, 4] that the teacher's head gives a box in an image of pyramid [1, C, h, w]."""
    heads = decided(WIDE, 5).heads
    with torch.no_grad():
        logits, deltas = heads.box_predictor(
            heads.box_head(heads.pool(pyramid, torch.cat([torch.zeros(1), box])[None]))
        )
    return logits[0].double().numpy(), deltas[0].double().numpy().reshape(CLASSES, 4)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


@pytest.mark.parametrize(("targets", "roi_batch"), [("real", 16), ("real", 64), ("shuffled", 16)])
def test_the_losses_are_means_over_images_of_what_each_of_the_students_boxes_costs(
    targets: Targets, roi_batch: int
) -> None:
    some, images = objective(targets=targets, roi_batch=roi_batch), batch([0, 1, 2], 2)
    student, found = some.student, crosskd(some, [0, 1, 2], 2)
    rois = student.training_output(images.images, images.labels, images.generators).rois
    boxes = [one[classes >= 0] for one, classes in zip(rois.boxes, rois.classes, strict=True)]
    boxes.append(decided().eval().predict(images.images).proposals[2][:roi_batch])
    with torch.no_grad():
        own, other = (one.features(images.images).pyramid for one in (student, decided(WIDE, 5).eval()))
        adapters = convolutions(method_of(some).adapters)
        adapted = [adapter(level) for adapter, level in zip(adapters, own, strict=True)]
    classification, box = [], []
    for image in range(3):
        # Under the control the teacher's own pyramid is that of the next image; the boxes stay.
        shown = (image + 1) % 3 if targets == "shuffled" else image
        costs, weights, errors = [], [], []
        for one in boxes[image]:
            logits, deltas = said([level[image : image + 1] for level in adapted], one)
            truth, true_deltas = said([level[shown : shown + 1] for level in other], one)
            p, q = softmax(truth / 3), softmax(logits / 3)
            costs.append(9 * float((p * (np.log(p) - np.log(q))).sum()))
            best = 1 + int(truth[1:].argmax())
            weights.append(softmax(truth)[best])
            errors.append(np.abs(deltas[best] - true_deltas[best]).sum())
        classification.append(sum(costs) / len(costs))
        box.append(sum(w * e for w, e in zip(weights, errors, strict=True)) / (4 * sum(weights)))
    assert value(found, "crosskd/big/classification") == pytest.approx(sum(classification) / 3, rel=1e-4)
    assert value(found, "crosskd/big/box") == pytest.approx(sum(box) / 3, rel=1e-4)


def test_a_student_with_the_teachers_pyramid_has_nothing_to_learn() -> None:
    detectors = {"same": DetectorTeacher(decided())}
    method = CrossKD(CrossKDConfig(), TINY, detectors)
    identities(method.adapters, "same")
    some = taught(method, detectors)
    losses = crosskd(some, [0, 1, 2], 2)
    assert {name: value(losses, name) for name in losses} == {"crosskd/same/classification": 0, "crosskd/same/box": 0}
    total(losses.values()).backward()
    assert all(p.grad is None or float(p.grad.abs().max()) < 1e-5 for p in some.student.parameters())


@pytest.mark.parametrize("name", ["classification", "box"])
def test_each_loss_reaches_pyramid_and_adapters_through_the_teachers_head_and_nobodys_heads(name: str) -> None:
    detector = decided(WIDE, 5)
    detectors = {"big": DetectorTeacher(detector)}
    some = taught(CrossKD(CrossKDConfig(), TINY, detectors), detectors)
    changed = reached(some.student, [crosskd(some, [0, 1, 2], 2)[f"crosskd/big/{name}"]])
    assert {parameter.partition(".")[0] for parameter in changed} == {"backbone"}
    assert all(p.grad is None for key, p in some.student.named_parameters() if not key.startswith("backbone."))
    assert any(p.grad is not None and bool(p.grad.any()) for p in method_of(some).parameters())
    assert all(parameter.grad is None for parameter in detector.parameters())


def test_images_with_and_without_labels_get_a_gradient_on_their_pyramid() -> None:
    some, images = objective(), batch([0, 2], 1)
    output = some.student.training_output(images.images, images.labels, images.generators)
    heard = {name: teacher.predict(images.images) for name, teacher in some.detectors.items()}
    losses = method_of(some).losses(some.student, output, replace(images, detectors=heard), 0.0)
    gradients = torch.autograd.grad(total(losses.values()), output.features.pyramid, allow_unused=True)
    for image in range(2):
        assert any(level is not None and bool(level[image].any()) for level in gradients)


def test_the_students_own_heads_do_not_matter_once_the_boxes_are_there() -> None:
    some, images = objective(), batch([0, 1], 2)
    student = some.student
    output = student.training_output(images.images, images.labels, images.generators)
    heard = {name: teacher.predict(images.images) for name, teacher in some.detectors.items()}
    found = []
    for _ in range(2):
        losses = method_of(some).losses(student, output, replace(images, detectors=heard), 0.0)
        found.append({name: value(losses, name) for name in losses})
        with torch.no_grad():
            for parameter in [*student.heads.parameters(), *student.rpn.parameters()]:
                parameter.fill_(torch.nan)
    assert found[0] == found[1]


def test_adapters_give_the_teachers_head_float32_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    some, seen = objective(), []
    heads = some.detectors["big"].predict(torch.rand(1, 3, HEIGHT, WIDTH)).detector.heads
    ask = heads.predict

    def predict(levels: list[Tensor], boxes: Tensor) -> object:
        seen.append({(level.dtype, level.shape[1]) for level in levels})
        return ask(levels, boxes)

    monkeypatch.setattr(heads, "predict", predict)
    with torch.autocast("cpu", torch.bfloat16):
        crosskd(some, [0, 1], 1)
    assert seen == [{(torch.float32, 24)}] * 2


def test_weights_and_temperature_are_those_of_the_configuration_and_decide_about_a_run() -> None:
    config = CrossKDConfig(classification=2.0, box=4.0, temperature=1.5)
    some = objective(config)
    weights = {name: loss.weight for name, loss in crosskd(some, [0], 1).items()}
    assert weights == {"crosskd/big/classification": 2.0, "crosskd/big/box": 4.0}
    assert method_of(some).fingerprint() == {"classification": 2.0, "box": 4.0, "temperature": 1.5}
