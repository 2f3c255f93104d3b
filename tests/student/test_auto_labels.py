"""Labels that are weighted, and regions that are ignored: in matching, sampling, losses and gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from datalake.sample import Objects
from student.augmentation import Augmentation, mirrored_objects
from student.detector import DetectorOutput
from student.distillation.objective import DetectionObjective, LossWeights
from student.labels import labels_on
from student.matching import Matches, without_ignored
from student.rpn import Proposals
from student.sampling import draw_keys
from tests.student.students import HEIGHT, TINY, WIDTH, build, generators, objects_of, sample, samples
from training.generators import Chance
from training.objective import Batch

CPU = torch.device("cpu")
SIZE = (HEIGHT, WIDTH)
OBJECT = objects_of((8, 8, 40, 30, 1, 12.0), (60, 10, 70, 34, 2, 20.0))
IGNORED = torch.tensor([[50.0, 36, 90, 60]])


def weighted(weight: float, objects: Objects = OBJECT) -> Objects:
    return replace(objects, weight=torch.full((len(objects.boxes),), weight))


def output_of(*objects: Objects, **changes: object) -> DetectorOutput:
    """Return a pass of a seeded student over images of the same objects, whatever their labels say."""
    student = build(replace(TINY, **changes))  # type: ignore[arg-type]
    images = torch.stack([sample(number, OBJECT).image for number in range(len(objects))])
    return student.training_output(images, list(objects), generators(len(objects)))


def test_humans_labels_beside_auto_labels_count_one() -> None:
    labels = labels_on(CPU, [OBJECT, weighted(0.25, objects_of((1, 1, 9, 9, 1, 5.0)))])
    assert labels.weight is not None
    assert labels.weight.tolist() == [[1, 1], [0.25, 0]]
    assert labels.ignored is None
    human = labels_on(CPU, [OBJECT, objects_of()])
    assert human.weight is None


def test_ignored_boxes_are_padded_and_are_no_objects() -> None:
    labels = labels_on(CPU, [objects_of(), replace(OBJECT, ignored=IGNORED), replace(OBJECT, ignored=IGNORED[:0])])
    assert labels.ignored is not None
    assert labels.ignored.tolist() == [[[0, 0, 0, 0]], IGNORED.tolist(), [[0, 0, 0, 0]]]
    assert labels.counts == (0, 2, 2)


def test_what_an_ignored_box_may_explain_is_not_background_and_what_is_an_objects_stays() -> None:
    boxes = torch.tensor(
        [
            [50, 36, 90, 60],  # the ignored box itself
            [50, 36, 90, 60],  # and once more, as an object's
            [50, 36, 90, 44],  # a third of it
            [52, 40, 58, 46],  # a small part, inside
            [40, 30, 60, 50],  # a corner of it, less than half of that
            [0, 0, 10, 10],
            [0, 0, 0, 0],  # a place without a proposal
        ]
    ).float()
    label = torch.tensor([[0, 1, 0, 0, 0, 0, 0]])
    found = without_ignored(Matches(torch.zeros_like(label), label), IGNORED[None], boxes, low=0.3)
    assert found.label.tolist() == [[-1, 1, -1, -1, 0, 0, 0]]
    # Were it an object, one of the anchors would have to find it, however badly they fit.
    far = without_ignored(
        Matches(torch.zeros(1, 2).long(), torch.zeros(1, 2).long()),
        IGNORED[None],
        boxes[[4, 5]],
        low=0.3,
        every_object=True,
    )
    assert far.label.tolist() == [[-1, 0]]


def test_ignored_regions_get_no_gradient_from_the_proposal_network() -> None:
    student = build(replace(TINY, rpn_batch=10_000))
    random = torch.Generator().manual_seed(0)
    levels = [torch.randn(1, TINY.width, 16 >> at, 24 >> at, generator=random) for at in range(TINY.levels)]
    anchors = student.rpn.anchors(levels, SIZE)
    keys = draw_keys([len(anchors)], generators(1), CPU)
    gradients = []
    for ignored in (None, IGNORED):
        objectness, deltas = (values.detach().requires_grad_() for values in student.rpn(levels))
        labels = labels_on(CPU, [replace(OBJECT, ignored=ignored)])
        sum(student.rpn.losses(objectness, deltas, anchors, labels, keys)).backward()  # type: ignore[union-attr]
        assert objectness.grad is not None
        assert deltas.grad is not None
        gradients.append((objectness.grad[0], deltas.grad[0]))
    (before, _), (after, of_boxes) = gradients
    inside = anchors.clone()
    inside[:, :2], inside[:, 2:] = inside[:, :2].maximum(IGNORED[:, :2]), inside[:, 2:].minimum(IGNORED[:, 2:])
    shared = (inside[:, 2:] - inside[:, :2]).clamp(min=0).prod(1) / (anchors[:, 2:] - anchors[:, :2]).prod(1)
    ignored_anchors = (box_iou(anchors, IGNORED)[:, 0] >= 0.3) | (shared > 0.5)
    objects_anchors = box_iou(anchors, OBJECT.boxes).amax(1) >= 0.3
    concerned = ignored_anchors & ~objects_anchors
    assert int(concerned.sum()) > 20
    assert bool((before[concerned] != 0).all())
    assert bool((after[concerned] == 0).all())
    assert bool((of_boxes[concerned] == 0).all())
    # Anchors that touch neither learn as before.
    elsewhere = box_iou(anchors, IGNORED)[:, 0] == 0
    assert torch.equal(before[elsewhere], after[elsewhere])


def test_no_proposal_in_an_ignored_region_is_background_for_the_box_head() -> None:
    student = build(replace(TINY, roi_batch=64))
    random = torch.Generator().manual_seed(1)
    boxes = torch.cat([IGNORED.repeat(20, 1) + 4 * torch.rand(20, 4, generator=random), OBJECT.boxes.repeat(4, 1)])
    proposals = Proposals(boxes[None], torch.ones(1, len(boxes), dtype=torch.bool))
    classes = []
    for ignored in (None, IGNORED):
        labels = labels_on(CPU, [replace(OBJECT, ignored=ignored)])
        keys = draw_keys(student.heads.candidates(proposals, labels), generators(1), CPU)
        classes.append(student.heads.choose(proposals, labels, keys).classes)
    assert int((classes[0] == 0).sum()) == 20
    assert int((classes[1] == 0).sum()) == 0
    assert int((classes[1] > 0).sum()) == int((classes[0] > 0).sum()) == 10


def test_losses_are_linear_in_the_weight_of_the_labels() -> None:
    whole, half, none = (output_of(weighted(weight)).losses for weight in (1.0, 0.5, 0.0))
    for name, loss in output_of(OBJECT).losses.items():
        assert float(whole[name].detach()) == pytest.approx(float(loss.detach()), rel=1e-5), name
        between = (float(whole[name].detach()) + float(none[name].detach())) / 2
        assert float(half[name].detach()) == pytest.approx(between, rel=1e-5), name
    # Of an object that counts nothing only the background around it is left.
    assert {name for name, loss in none.items() if float(loss.detach()) > 0} == {"objectness", "classification"}


def test_a_mirrored_image_has_mirrored_ignored_boxes() -> None:
    mirrored = mirrored_objects(replace(OBJECT, ignored=IGNORED), WIDTH)
    assert mirrored.ignored is not None
    assert mirrored.ignored.tolist() == [[6, 36, 46, 60]]


def objective(*, auto_labels: bool, targets: str = "real") -> DetectionObjective:
    still = Augmentation(mirror=0.0, light=0.0)
    return DetectionObjective(build(), LossWeights(), {}, still, targets, auto_labels=auto_labels)  # type: ignore[arg-type]


def losses_of(objective: DetectionObjective, batch: Batch) -> dict[str, Tensor]:
    collated = objective.collate(batch, {}, Chance(0, 0, tuple(range(len(batch.samples)))))
    return {name: loss.value.detach() for name, loss in objective(collated, 0.0).items()}


def test_with_auto_labels_the_losses_are_means_over_all_images() -> None:
    some = samples(4)
    found = losses_of(objective(auto_labels=True), Batch(some, 1, 0))
    expected = losses_of(objective(auto_labels=False), Batch(some, 4, 0))
    assert found == expected
    assert found != losses_of(objective(auto_labels=False), Batch(some, 1, 0))


def test_shuffled_auto_labels_are_another_images_and_human_ones_stay() -> None:
    some = samples(4)
    batch = objective(auto_labels=True, targets="shuffled").collate(
        Batch(some, 2, 0), {}, Chance(0, 0, tuple(range(4)))
    )
    found = [one.depth_m[0].item() for one in batch.labels]
    assert found == [some[number].objects.depth_m[0].item() for number in (0, 1, 3, 2)]
