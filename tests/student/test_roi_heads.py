"""What it is and where, against torchvision; depths: who is asked for one, and who learns from one."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, smooth_l1_loss
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import box_iou

from datalake.sample import Objects
from student.config import AnchorShapes, StudentConfig
from student.depth import encode_depth
from student.detector import Student
from student.labels import Labels, labels_on
from student.roi_heads import DepthHead, RoIs
from student.rpn import Proposals
from student.sampling import draw_keys
from tests.student.students import HEIGHT, TINY, WIDTH, build, draw, generators, objects_of

CAR = (10.0, 10.0, 34.0, 28.0, 1)
MAN = (50.0, 8.0, 60.0, 32.0, 2)


def losses(student: Student, objects: Objects) -> dict[str, Tensor]:
    return student.training_output(draw(objects)[None], [objects], generators(1)).losses


def depth_gradient(student: Student, objects: Objects) -> Tensor:
    """Return the gradient of the depth loss with respect to the depth of each class, float32 [5, C]."""
    student.zero_grad()
    losses(student, objects)["depth"].backward()
    gradient = student.heads.depth_head.predictor.weight.grad
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
        predicted = [head(features, boxes, (256, 384)) for boxes in (lower, higher)]
    assert not torch.equal(*predicted)
    assert torch.equal(predicted[0], head(features, lower, (256, 384)))


@pytest.mark.parametrize(("preset", "sees"), [("classroom", True), ("paper", False)])
def test_only_the_default_student_sees_where_the_box_is(preset: str, sees: bool) -> None:
    torch.manual_seed(0)
    config = TINY if preset == "classroom" else StudentConfig.paper((), AnchorShapes())
    head, features = DepthHead(config), torch.rand(1, config.head_width)
    near, far = torch.tensor([[10.0, 30, 80, 64]]), torch.tensor([[40.0, 20, 44, 24]])
    predicted = [head(features, boxes, (HEIGHT, WIDTH)) for boxes in (near, far)]
    assert torch.equal(*predicted) != sees


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
        student.heads.depth_head.predictor.bias[[0, 2]] += 1000
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
        student.heads.depth_head.predictor.weight.zero_()
        student.heads.depth_head.predictor.bias.fill_(0.5)
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
        student.heads.depth_head.predictor.weight.zero_()
        student.heads.depth_head.predictor.bias[1] = float(encode_depth(torch.tensor(20.0), 75.0))
        student.heads.depth_head.predictor.bias[2] = float(encode_depth(torch.tensor(50.0), 75.0))
    right = losses(student, objects_of((*CAR, 20.0), (*MAN, 50.0)))["depth"]
    wrong = losses(student, objects_of((*CAR, 50.0), (*MAN, 20.0)))["depth"]
    assert float(right.detach()) == pytest.approx(0, abs=1e-6)
    assert float(wrong.detach()) > 0.1


def test_detections_have_the_depth_of_their_class_in_metres() -> None:
    student = build(replace(TINY, min_score=0.0)).eval()
    depths = torch.tensor([1.0, 20.0, 30.0, 40.0, 50.0])
    with torch.no_grad():
        student.heads.depth_head.predictor.weight.zero_()
        student.heads.depth_head.predictor.bias.copy_(encode_depth(depths, 75.0))
    (found,) = student(draw(objects_of((*CAR, 20.0)))[None])
    assert len(found.boxes) > 0
    assert len(found.classes.unique()) > 1
    assert torch.allclose(found.depth_m, depths[found.classes], rtol=1e-4)


def test_nothing_found_is_an_empty_answer() -> None:
    student = build(replace(TINY, min_score=0.999)).eval()
    (found,) = student(draw(objects_of())[None])
    assert found.boxes.shape == (0, 4)
    assert found.depth_m.shape == (0,)


SIZE = (HEIGHT, WIDTH)
CPU = torch.device("cpu")
OBJECTS = [
    objects_of((*CAR, 20.0), (*MAN, math.nan), (12, 10, 36, 30, 1, 25.0)),
    objects_of(),
    objects_of((60, 40, 90, 60, 4, 7.0)),
]


def some_proposals(valid: tuple[int, ...] = (30, 30, 4)) -> Proposals:
    """Return boxes around the objects and elsewhere, so many of each image."""
    random = torch.Generator().manual_seed(3)
    corners = torch.rand(3, 30, 2, generator=random) * torch.tensor([60.0, 40.0])
    boxes = torch.cat([corners, corners + 5 + 25 * torch.rand(3, 30, 2, generator=random)], 2)
    for image, one in enumerate(OBJECTS):
        for at, box in enumerate(one.boxes):
            boxes[image, 4 * at : 4 * at + 4] = box + 2 * torch.rand(4, 4, generator=random)
    there = torch.arange(30) < torch.tensor(valid)[:, None]
    return Proposals(boxes * there[..., None], there)


def pyramid(images: int = 3) -> list[Tensor]:
    random = torch.Generator().manual_seed(4)
    return [torch.randn(images, TINY.width, 16 >> at, 24 >> at, generator=random) for at in range(TINY.levels)]


def chosen_of(student: Student, labels: Labels) -> RoIs:
    heads, proposals = student.heads, some_proposals()
    keys = draw_keys(heads.candidates(proposals, labels), generators(3), CPU)
    return heads.choose(proposals, labels, keys)


@pytest.mark.parametrize("roi_batch", [16, 100], ids=["a sample", "more than there are boxes"])
def test_boxes_that_are_looked_at_are_labelled_as_torchvision_labels_them(roi_batch: int) -> None:
    student, proposals = build(replace(TINY, roi_batch=roi_batch)), some_proposals()
    found = chosen_of(student, labels_on(CPU, OBJECTS))
    reference = RoIHeads(None, None, None, 0.5, 0.5, roi_batch, 0.25, None, 0.0, 0.5, 100)
    there = [boxes[valid] for boxes, valid in zip(proposals.boxes, proposals.valid, strict=True)]
    candidates = [torch.cat([boxes, one.boxes]) for boxes, one in zip(there, OBJECTS, strict=True)]
    matched, labels = reference.assign_targets_to_proposals(
        candidates, [one.boxes for one in OBJECTS], [one.classes for one in OBJECTS]
    )
    for image, one in enumerate(OBJECTS):
        positives, negatives = int((labels[image] > 0).sum()), int((labels[image] == 0).sum())
        few = min(positives, roi_batch // 4)
        classes = found.classes[image]
        assert int((classes > 0).sum()) == few
        assert int((classes == 0).sum()) == min(negatives, roi_batch - few)
        for place in (classes >= 0).nonzero()[:, 0].tolist():
            (row,) = (candidates[image] == found.boxes[image, place]).all(1).nonzero()[:1, 0].tolist()
            assert int(labels[image][row]) == int(classes[place])
            if int(classes[place]):
                assert torch.equal(found.object_boxes[image, place], one.boxes[matched[image][row]])
                assert found.depth_m[image, place].equal(one.depth_m[matched[image][row]]) or bool(
                    found.depth_m[image, place].isnan()
                )


def losses_one_by_one(student: Student, levels: list[Tensor], rois: RoIs) -> dict[str, Tensor]:
    """Return the losses of the same boxes, image after image, and of those alone that each loss is about."""
    heads, config = student.heads, student.config
    totals = {"classification": torch.zeros(()), "box": torch.zeros(()), "depth": torch.zeros(())}
    for image, classes in enumerate(rois.classes):
        (there,) = torch.where(classes >= 0)
        boxes, classes = rois.boxes[image, there], classes[there]
        maps = [level[image, None] for level in levels]
        pooled = heads.box_head(heads.pool(maps, torch.cat([torch.zeros(len(boxes), 1), boxes], 1)))
        logits, deltas = heads.box_predictor(pooled)
        totals["classification"] = totals["classification"] + cross_entropy(logits, classes, reduction="sum")
        (positive,) = torch.where(classes > 0)
        coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
        truth = coder.encode_single(rois.object_boxes[image, there][positive], boxes[positive])
        predicted = deltas.view(len(deltas), -1, 4)[positive, classes[positive]]
        totals["box"] = totals["box"] + smooth_l1_loss(predicted, truth, beta=1 / 9, reduction="sum")
        depth_m = rois.depth_m[image, there]
        (known,) = torch.where((classes > 0) & depth_m.isfinite())
        if len(known):
            depths = heads.depth_head(pooled[known], boxes[known], SIZE)[torch.arange(len(known)), classes[known]]
            truth = encode_depth(depth_m[known], config.max_depth_m)
            totals["depth"] = totals["depth"] + smooth_l1_loss(depths, truth, beta=0.05)
    rows = config.roi_batch * len(rois.classes)
    shares = {"classification": rows, "box": rows, "depth": len(rois.classes)}
    return {name: total / shares[name] for name, total in totals.items()}


@pytest.mark.parametrize("roi_batch", [16, 100], ids=["a sample", "more than there are boxes"])
def test_losses_and_gradients_are_those_of_the_same_boxes_one_image_after_the_other(roi_batch: int) -> None:
    student, levels = build(replace(TINY, roi_batch=roi_batch)), pyramid()
    rois = chosen_of(student, labels_on(CPU, OBJECTS))
    found, expected = (
        student.heads.losses(student.heads.predict(levels, rois.boxes), rois, SIZE),
        losses_one_by_one(student, levels, rois),
    )
    weights = list(student.heads.parameters())
    for name, loss in found.items():
        assert float(loss.detach()) == pytest.approx(float(expected[name].detach()), rel=1e-6), name
        assert float(loss.detach()) > 0
        pairs = (
            torch.autograd.grad(one, weights, retain_graph=True, allow_unused=True) for one in (loss, expected[name])
        )
        for mine, theirs in zip(*pairs, strict=True):
            if theirs is None:
                assert mine is None
            else:
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_places_without_a_proposal_are_not_looked_at() -> None:
    student, labels = build(replace(TINY, roi_batch=40)), labels_on(CPU, OBJECTS)
    rois = chosen_of(student, labels)
    # The third image has four proposals and one labelled box.
    assert int((rois.classes[2] >= 0).sum()) == 5
    assert box_iou(rois.boxes[2, rois.classes[2] > 0], OBJECTS[2].boxes).amin() >= 0.5


def test_detections_of_every_image_are_those_of_torchvision() -> None:
    student, levels, proposals = build(replace(TINY, min_score=0.05, detections=40)), pyramid(), some_proposals()
    heads = student.heads.eval()
    heads.box_predictor.cls_score.weight.data *= 20
    heads.box_predictor.bbox_pred.weight.data *= 20
    with torch.no_grad():
        found = heads.detect(levels, proposals, SIZE)
        reference = RoIHeads(None, None, None, 0.5, 0.5, 16, 0.25, None, 0.05, 0.5, 40)
        for image, there in enumerate(proposals.valid):
            boxes = proposals.boxes[image, there]
            maps = [level[image, None] for level in levels]
            logits, deltas = heads.box_predictor(
                heads.box_head(heads.pool(maps, torch.cat([torch.zeros(len(boxes), 1), boxes], 1)))
            )
            (expected,), (scores,), (classes,) = reference.postprocess_detections(logits, deltas, [boxes], [SIZE])
            assert len(classes) > 0
            assert torch.equal(found[image].classes, classes)
            torch.testing.assert_close(found[image].boxes, expected)
            torch.testing.assert_close(found[image].scores, scores)
