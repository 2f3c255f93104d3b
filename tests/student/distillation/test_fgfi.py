"""A student whose pyramid is to be like a detector teacher's near objects."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from student.distillation.batch import DetectionBatch
from student.distillation.detector_teacher import DetectorTeacher
from student.distillation.fgfi import FGFI, FGFIConfig, imitation_losses, imitation_mask
from student.distillation.objective import DetectionObjective, LossWeights
from tests.student.distillation.wide_teacher import (
    WIDE,
    batch,
    gradients,
    same,
    taught_by,
    wide_teacher,
    with_teacher,
)
from tests.student.students import HEIGHT, TINY, WIDTH, build, objects_of

Box = tuple[float, float, float, float]
# Rows and columns of each level of a 96 x 64 image, whose cells are 4, 8, 16 and 32 pixels.
GRIDS = [(16, 24), (8, 12), (4, 6), (2, 3)]
CELLS = sum(rows * columns for rows, columns in GRIDS)
PSIS = [0.0, 0.2, 0.5, 0.8]
# What an untrained teacher says of few of its boxes alone.
SURE = 0.23


def anchors() -> Tensor:
    student = build(TINY)
    return student.rpn.anchors(student.features(torch.zeros(1, 3, HEIGHT, WIDTH)).pyramid, (HEIGHT, WIDTH))


ANCHORS = anchors()


def iou(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (one, other)]
    return width * height / (areas[0] + areas[1] - width * height)


def cells_of_anchors() -> list[int]:
    """Return the cell of each anchor, from where its center is; a level's cells follow those of the one before."""
    found, first = [], 0
    rows = iter(ANCHORS.double().tolist())
    for level, (height, width) in enumerate(GRIDS):
        for _ in range(4 * height * width):
            x0, y0, x1, y1 = next(rows)
            row, column = (y0 + y1) / 2 / (4 << level), (x0 + x1) / 2 / (4 << level)
            assert row == int(row) < height
            assert column == int(column) < width
            found.append(first + int(row) * width + int(column))
        first += height * width
    return found


CELL_OF = cells_of_anchors()


def looped_mask(boxes: list[Box], psi: float, constant: bool = False) -> list[bool]:
    """Return the mask of an image, box after box and anchor after anchor, in float64."""
    mask = [False] * CELLS
    for box in boxes:
        overlaps = [iou(box, tuple(anchor)) for anchor in ANCHORS.double().tolist()]
        threshold = psi if constant else psi * max(overlaps)
        for cell, overlap in zip(CELL_OF, overlaps, strict=True):
            mask[cell] = mask[cell] or overlap > threshold
    return mask


def drawn_boxes(kind: str, seed: int, count: int = 4) -> list[Box]:
    """Return boxes within the image, half outside of it, or smaller than every anchor."""
    draw = random.Random(f"{kind} {seed}")
    boxes = []
    for _ in range(count):
        width, height = draw.uniform(5, 70), draw.uniform(5, 50)
        x, y = draw.uniform(0, WIDTH - width), draw.uniform(0, HEIGHT - height)
        if kind == "outside":
            x, y = draw.choice([(-width / 2, y), (WIDTH - width / 2, y), (x, -height / 2), (x, HEIGHT - height / 2)])
        elif kind == "tiny":
            x, y, width, height = x + width / 2, y + height / 2, draw.uniform(0.5, 3), draw.uniform(0.5, 3)
        boxes.append((x, y, x + width, y + height))
    return boxes


def mask_of(boxes: list[Box], psi: float, constant: bool = False) -> Tensor:
    """Return the mask of one image, bool [cells]."""
    return imitation_mask(ANCHORS, torch.tensor([boxes]), psi, CELLS, constant=constant)[0]


def method(config: FGFIConfig | None = None) -> FGFI:
    torch.manual_seed(2)
    return FGFI(config or FGFIConfig(), TINY, {"big": wide_teacher()})


def taught(config: FGFIConfig | None = None) -> DetectionObjective:
    return taught_by(method(config), "fgfi")


def fgfi(objective: DetectionObjective, some: DetectionBatch) -> Tensor:
    value: Tensor = objective(some, 1.0)["fgfi/big"].value
    return value


def pyramids(images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the student's and the teacher's features of each level."""
    with torch.no_grad():
        own, other = (build(config, seed).eval().features(images).pyramid for config, seed in ((TINY, 0), (WIDE, 5)))
    return list(zip(own, other, strict=True))


@pytest.mark.parametrize("kind", ["inside", "outside", "tiny"])
@pytest.mark.parametrize("psi", PSIS)
def test_the_mask_is_that_of_loops_over_boxes_and_anchors(kind: str, psi: float) -> None:
    images = [drawn_boxes(kind, seed) for seed in range(5)]
    found = imitation_mask(ANCHORS, torch.tensor(images), psi, CELLS)
    assert found.tolist() == [looped_mask(boxes, psi) for boxes in images]
    assert bool(found.any(1).all())
    assert not bool(found.all())


def test_a_constant_threshold_is_of_the_overlap_itself() -> None:
    boxes = drawn_boxes("inside", 3)
    assert mask_of(boxes, 0.4, constant=True).tolist() == looped_mask(boxes, 0.4, constant=True)
    assert looped_mask(boxes, 0.4, constant=True) != looped_mask(boxes, 0.4)
    # A small box that no anchor fits has none of it, and its best cells with a share of the best.
    assert not bool(mask_of([(30, 30, 32, 32)], 0.5, constant=True).any())
    assert bool(mask_of([(30, 30, 32, 32)], 0.5).any())


@pytest.mark.parametrize("kind", ["inside", "outside", "tiny"])
def test_a_smaller_psi_has_all_cells_of_a_larger_one_and_a_psi_of_one_has_none(kind: str) -> None:
    masks = [mask_of(drawn_boxes(kind, 1), psi) for psi in (0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99)]
    for more, fewer in itertools.pairwise(masks):
        assert bool((more | ~fewer).all())
    assert int(masks[0].sum()) > int(masks[-1].sum()) > 0
    for psi in (1.0, 1.5):
        assert not bool(mask_of(drawn_boxes(kind, 1), psi).any())


def test_with_a_psi_of_zero_every_cell_with_an_anchor_on_an_object_counts() -> None:
    box = drawn_boxes("inside", 2)[0]
    touched = {
        cell for cell, anchor in zip(CELL_OF, ANCHORS.double().tolist(), strict=True) if iou(box, tuple(anchor)) > 0
    }
    assert set(mask_of([box], 0.0).nonzero()[:, 0].tolist()) == touched


def test_the_order_and_the_number_of_equal_boxes_do_not_matter() -> None:
    boxes = drawn_boxes("inside", 4)
    expected = mask_of(boxes, 0.5)
    assert torch.equal(mask_of(boxes[::-1], 0.5), expected)
    assert torch.equal(mask_of([*boxes, *boxes[1:3]], 0.5), expected)
    # Nor do the places that other images of a batch need.
    assert torch.equal(mask_of([*boxes, (0, 0, 0, 0)], 0.5), expected)


def test_the_mask_of_all_boxes_is_the_union_of_each_boxs_own_and_none_of_these_is_empty() -> None:
    boxes = [box for kind in ("inside", "outside", "tiny") for box in drawn_boxes(kind, 5)]
    each = [mask_of([box], 0.9) for box in boxes]
    assert all(bool(mask.any()) for mask in each)
    assert torch.equal(mask_of(boxes, 0.9), torch.stack(each).any(0))


def test_an_object_does_not_count_on_levels_far_from_its_scale() -> None:
    sizes = [rows * columns for rows, columns in GRIDS]
    small, large = (mask_of([box], 0.5).split(sizes) for box in ((40, 20, 49, 28), (4, 2, 90, 62)))
    assert [bool(level.any()) for level in small] == [True, False, False, False]
    assert [bool(level.any()) for level in large] == [False, False, True, True]


def test_the_loss_is_half_the_mean_squared_error_over_channels_and_cells_of_the_mask_then_over_images() -> None:
    config = FGFIConfig(psi=0.6, min_score=SURE)
    objective, some = taught(config), batch([0, 1, 2, 3], 2)
    boxes = [[tuple(box) for box in objects.boxes.double().tolist()] for objects in some.labels]
    # On images without labels, what the teacher detects for itself.
    for found in build(WIDE, 5).eval().predict(some.images[2:]).detections:
        boxes.append([tuple(box) for box in found.boxes[found.scores > SURE].double().tolist()])
        assert 0 < len(boxes[-1]) < len(found.boxes)
    masks = [looped_mask(each, 0.6) for each in boxes]
    adapters = method(config).adapters["big"]
    assert isinstance(adapters, nn.ModuleList)
    sums, counts, first = [0.0] * 4, [sum(mask) for mask in masks], 0
    for adapter, (own, other), (rows, columns) in zip(adapters, pyramids(some.images), GRIDS, strict=True):
        assert isinstance(adapter, nn.Conv2d)
        assert adapter.bias is not None
        weight, bias = adapter.weight.detach().double().numpy()[:, :, 0, 0], adapter.bias.detach().double().numpy()
        for image in range(4):
            for row in range(rows):
                for column in range(columns):
                    if masks[image][first + row * columns + column]:
                        features, truth = (level[image, :, row, column].double().numpy() for level in (own, other))
                        sums[image] += float(np.square(weight @ features + bias - truth).sum())
        first += rows * columns
    expected = [total / (2 * 24 * count) for total, count in zip(sums, counts, strict=True)]
    assert float(fgfi(objective, some).detach()) == pytest.approx(sum(expected) / 4, rel=1e-4)


def test_without_objects_the_loss_is_zero_and_every_gradient_as_without_it() -> None:
    def empty() -> DetectionBatch:
        return replace(batch([0, 1], 2), labels=[objects_of(), objects_of()])

    none, objective = DetectionObjective(build(TINY), LossWeights(), {}), taught()
    losses = objective(empty(), 1.0)
    assert losses["fgfi/big"].value.item() == 0
    assert losses["fgfi/big"].weight > 0
    found = gradients(objective.parameters(), losses)
    assert all(gradient is None or bool(gradient.isfinite().all()) for gradient in found)
    expected = gradients(none.parameters(), none(empty(), 1.0))
    assert same(expected, [parameter.grad for parameter in objective.student.parameters()])


def test_an_image_counts_the_same_whatever_the_others_of_its_batch_are() -> None:
    objective = taught(FGFIConfig(min_score=SURE))
    together = float(fgfi(objective, batch([0, 1, 2, 3], 2)).detach())
    # As two workers cut it.
    parts = [float(fgfi(objective, batch([place, place + 2], 1)).detach()) for place in range(2)]
    assert together == pytest.approx(sum(parts) / 2, rel=1e-5)
    assert parts[0] != parts[1]
    # An image without objects beside it counts 0.
    alone, beside = batch([0], 1), batch([0, 1], 2)
    beside = replace(beside, labels=[beside.labels[0], objects_of()])
    losses = [float(fgfi(objective, one).detach()) for one in (alone, beside)]
    assert losses[1] == pytest.approx(losses[0] / 2, rel=1e-5)


def levels_like(channels: int, images: int = 2, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(images, channels, *grid, generator=generator) for grid in GRIDS]


def test_what_is_outside_the_mask_does_not_matter() -> None:
    truth, adapted = levels_like(6), levels_like(6, seed=1)
    mask = imitation_mask(ANCHORS, torch.tensor([drawn_boxes("inside", 6), drawn_boxes("inside", 7)]), 0.5, CELLS)
    inside = [
        part.view(2, 1, *grid)
        for part, grid in zip(mask.split([rows * columns for rows, columns in GRIDS], 1), GRIDS, strict=True)
    ]
    equal_inside = [torch.where(where, one, other) for where, one, other in zip(inside, truth, adapted, strict=True)]
    assert imitation_losses(equal_inside, truth, mask).tolist() == [0, 0]
    assert all(loss > 0 for loss in imitation_losses(adapted, truth, mask).tolist())


def test_the_student_has_a_gradient_in_the_cells_of_the_mask_alone() -> None:
    own = [level.requires_grad_() for level in levels_like(16)]
    truth = levels_like(24, seed=1)
    mask = imitation_mask(ANCHORS, torch.tensor([drawn_boxes("inside", 6), drawn_boxes("inside", 7)]), 0.5, CELLS)
    adapters = method().adapters["big"]
    assert isinstance(adapters, nn.ModuleList)
    adapted = [adapter(level) for adapter, level in zip(adapters, own, strict=True)]
    imitation_losses(adapted, truth, mask).mean().backward()
    reached = torch.cat(
        [torch.zeros(2, 1) if one.grad is None else (one.grad != 0).any(1).flatten(1) for one in own], 1
    )
    assert torch.equal(reached, mask)


def test_copies_of_all_channels_change_nothing() -> None:
    truth, adapted = levels_like(6), levels_like(6, seed=1)
    mask = imitation_mask(ANCHORS, torch.tensor([drawn_boxes("inside", 6), drawn_boxes("inside", 7)]), 0.5, CELLS)
    adapted_twice, truth_twice = ([torch.cat([level, level], 1) for level in levels] for levels in (adapted, truth))
    assert torch.allclose(
        imitation_losses(adapted_twice, truth_twice, mask), imitation_losses(adapted, truth, mask), rtol=1e-6
    )


def test_backbone_and_adapters_learn_from_it_and_heads_and_teacher_do_not() -> None:
    detector = build(WIDE, 5)
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    objective = taught_by(method(), "fgfi", DetectorTeacher(detector))
    some = batch([0, 1], 1)
    # The largest object's level is reached as well.
    some = replace(some, labels=[objects_of((4, 2, 90, 62, 1, 5.0), (10, 10, 18, 20, 2, 5.0), (30, 5, 52, 30, 1, 5.0))])
    fgfi(objective, some).backward()
    reached = {name for name, p in objective.student.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert {name.partition(".")[0] for name in reached} == {"backbone"}
    assert {"backbone.fuse.0.weight", "backbone.downsample.2.0.weight"} <= reached
    assert all(p.grad is None for p in detector.parameters())
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())
    assert all(p.grad is not None for p in objective.methods.parameters())


def test_the_weight_rises_from_zero_in_the_first_twentieth_of_the_training() -> None:
    objective, some = taught(FGFIConfig(weight=3)), batch([0], 1)
    weights = [objective(some, progress)["fgfi/big"].weight for progress in (0.0, 0.0125, 0.025, 0.05, 0.5, 1.0)]
    assert weights == pytest.approx([0, 0.75, 1.5, 3, 3, 3])


def test_with_weight_zero_every_gradient_of_the_student_is_as_without_it() -> None:
    none, silent = DetectionObjective(build(TINY), LossWeights(), {}), taught(FGFIConfig(weight=0))
    expected = gradients(none.parameters(), none(batch([0, 1, 2], 2), 1.0))
    assert same(expected, gradients(silent.student.parameters(), silent(batch([0, 1, 2], 2), 1.0)))


def test_the_product_has_no_adapters_and_their_gradient_is_clipped_apart() -> None:
    objective = taught()
    assert build(TINY).state_dict().keys() == objective.product().state_dict().keys()
    groups = objective.parameter_groups()
    assert [(group.name, len(group.parameters)) for group in groups[1:]] == [("fgfi", 2 * 4)]


def test_it_is_computed_in_float32_under_autocast_as_well() -> None:
    objective, some = taught(), batch([0, 1], 2)
    output = objective.student.training_output(some.images, some.labels, some.generators)
    heard = with_teacher(some)
    expected = method().losses(objective.student, output, heard, 1.0)["fgfi/big"].value
    with torch.autocast("cpu", torch.bfloat16):
        found = method().losses(objective.student, output, heard, 1.0)["fgfi/big"].value
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_its_settings_decide_about_a_run() -> None:
    found = {name: value for name, value in taught().fingerprint().items() if name.startswith("fgfi.")}
    assert found == {"fgfi.weight": 1.0, "fgfi.psi": 0.5, "fgfi.min_score": 0.5}
