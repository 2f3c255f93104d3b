"""A student that reviews its deeper levels to be like each level of a detector teacher's pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from student.config import StudentConfig
from student.distillation.batch import DetectionBatch
from student.distillation.detector_teacher import DetectorTeacher
from student.distillation.objective import DetectionObjective, LossWeights
from student.distillation.reviewkd import ABF, Fused, ReviewKD, ReviewKDConfig, hierarchical_context_loss
from tests.student.distillation.wide_teacher import (
    WIDE,
    batch,
    gradients,
    same,
    taught_by,
    wide_teacher,
    with_teacher,
)
from tests.student.students import TINY, build, objects_of, sample

# Levels of which none is twice as large as the next.
ODD = [(9, 13), (5, 7), (3, 4), (2, 1)]


def method(config: ReviewKDConfig | None = None) -> ReviewKD:
    torch.manual_seed(2)
    return ReviewKD(config or ReviewKDConfig(), TINY, {"big": wide_teacher()})


def taught(config: ReviewKDConfig | None = None) -> DetectionObjective:
    return taught_by(method(config), "reviewkd")


def reviewkd(objective: DetectionObjective, some: DetectionBatch) -> Tensor:
    value: Tensor = objective(some, 0.0)["reviewkd/big"].value
    return value


def levels_of(channels: int, grids: Sequence[tuple[int, int]] = ODD, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, channels, *grid, generator=generator) for grid in grids]


def fusions_of(some: ReviewKD) -> list[ABF]:
    return [module for module in some.modules() if isinstance(module, ABF)]


def pooled(values: np.ndarray, parts: int) -> np.ndarray:
    """Return the means of [B, C, h, w] over parts x parts rectangles that cover it, in float64."""
    height, width = values.shape[-2:]
    means = np.zeros((*values.shape[:2], parts, parts))
    for row in range(parts):
        top, bottom = row * height // parts, -(-(row + 1) * height // parts)
        for column in range(parts):
            left, right = column * width // parts, -(-(column + 1) * width // parts)
            means[:, :, row, column] = values[:, :, top:bottom, left:right].mean((2, 3))
    return means


def naive_context_loss(found: Tensor, truth: Tensor) -> float:
    one, other = found.detach().double().numpy(), truth.double().numpy()
    terms = [np.square(one - other).mean()]
    weights = [1.0]
    for parts in (4, 2, 1):
        if parts < one.shape[2]:
            terms.append(np.square(pooled(one, parts) - pooled(other, parts)).mean())
            weights.append(0.5 ** len(weights))
    return float(np.dot(terms, weights)) / sum(weights)


@pytest.mark.parametrize("height", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("width", [1, 6, 9])
def test_the_context_loss_is_that_of_means_over_parts_of_the_image(height: int, width: int) -> None:
    found, truth = (torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(n)) for n in range(2))
    # What levels have in common must not cost digits.
    assert float(hierarchical_context_loss(found + 10, truth + 10)) == pytest.approx(
        naive_context_loss(found, truth), rel=1e-4
    )
    assert float(hierarchical_context_loss(truth, found)) == float(hierarchical_context_loss(found, truth))
    assert float(hierarchical_context_loss(truth, truth)) == 0


@pytest.mark.parametrize("height", [1, 2, 3, 4, 5, 8])
def test_a_constant_difference_counts_as_its_square(height: int) -> None:
    truth = torch.randn(2, 3, height, 6, generator=torch.Generator().manual_seed(0)).double()
    assert float(hierarchical_context_loss(truth + 0.7, truth)) == pytest.approx(0.49, rel=1e-12)


def test_a_difference_without_mean_counts_in_single_cells_alone() -> None:
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(16), indexing="ij")
    board = 0.7 * (-1.0) ** (rows + columns).double()
    truth = torch.randn(2, 3, 8, 16, generator=torch.Generator().manual_seed(0)).double()
    assert float(hierarchical_context_loss(truth + board, truth)) == pytest.approx(0.49 / 1.875, rel=1e-12)


def test_each_level_adds_its_context_loss() -> None:
    objective, some = taught(), batch([0, 1, 2], 2)
    heard = with_teacher(some).detectors["big"]
    with torch.no_grad():
        fused = method().fuse("big", objective.student.features(some.images).pyramid)
    terms = [naive_context_loss(one.output, truth) for one, truth in zip(fused, heard.pyramid, strict=True)]
    assert len(terms) == 4
    assert float(reviewkd(objective, some).detach()) == pytest.approx(sum(terms), rel=1e-5)


def naive_convolution(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the 3x3 convolution of [B, C, h, w] with [D, C, 3, 3], with zeros around."""
    height, width = values.shape[-2:]
    around = np.pad(values, ((0, 0), (0, 0), (1, 1), (1, 1)))
    shifted = [
        np.einsum("dc,bchw->bdhw", weight[:, :, row, column], around[:, :, row : row + height, column : column + width])
        for row in range(3)
        for column in range(3)
    ]
    total: np.ndarray = np.sum(shifted, 0)
    return total


def naive_norm(values: np.ndarray, groups: int) -> np.ndarray:
    parts = values.reshape(len(values), groups, -1)
    deviation = np.sqrt(parts.var(2, keepdims=True) + 1e-5)
    normalized: np.ndarray = ((parts - parts.mean(2, keepdims=True)) / deviation).reshape(values.shape)
    return normalized


def test_each_level_is_fused_by_two_gates_with_what_the_deeper_one_passes_on() -> None:
    some, pyramid = method(), levels_of(16)
    fused = some.fuse("big", pyramid)
    deeper: np.ndarray | None = None
    for fusion, level, found in reversed(list(zip(fusions_of(some), pyramid, fused, strict=True))):
        weights = {name: value.detach().double().numpy() for name, value in fusion.state_dict().items()}
        x = np.einsum("dc,bchw->bdhw", weights["reduce.0.weight"][:, :, 0, 0], level.double().numpy())
        x = naive_norm(x, 3)
        if deeper is not None:
            height, width = x.shape[-2:]
            rows = [row * deeper.shape[2] // height for row in range(height)]
            columns = [column * deeper.shape[3] // width for column in range(width)]
            y = deeper[:, :, rows][:, :, :, columns]
            both = np.concatenate([x, y], 1)
            logits = np.einsum("gc,bchw->bghw", weights["gate.weight"][:, :, 0, 0], both)
            gates = 1 / (1 + np.exp(-logits - weights["gate.bias"][:, None, None]))
            assert found.gates is not None
            assert np.allclose(found.gates.detach().numpy(), gates, atol=1e-5)
            x = x * gates[:, :1] + y * gates[:, 1:]
        deeper = x
        assert np.allclose(found.passed_on.detach().numpy(), x, atol=1e-4)
        output = naive_norm(naive_convolution(x, weights["predict.0.weight"]), 3)
        assert np.allclose(found.output.detach().numpy(), output, atol=1e-4)


@pytest.mark.parametrize("grids", [ODD, [(16, 24), (8, 12), (4, 6), (2, 3)]])
def test_outputs_are_as_large_as_the_teachers_levels(grids: list[tuple[int, int]]) -> None:
    fused = method().fuse("big", levels_of(16, grids))
    assert [tuple(one.output.shape) for one in fused] == [(2, 24, *grid) for grid in grids]
    assert [tuple(one.passed_on.shape) for one in fused] == [(2, 24, *grid) for grid in grids]


def test_gates_are_between_nothing_and_all_and_the_deepest_level_has_none() -> None:
    some = method()
    with torch.no_grad():
        fused = some.fuse("big", levels_of(16))
    assert fused[-1].gates is None
    assert not any(name.startswith("gate") for name, _ in fusions_of(some)[-1].named_parameters())
    for level, one in enumerate(fused[:-1]):
        assert one.gates is not None
        assert tuple(one.gates.shape) == (2, 2, *ODD[level])
        assert 0 < float(one.gates.min()) < float(one.gates.max()) < 1
        # Not a softmax: each of the two decides for itself.
        assert float((one.gates.sum(1) - 1).abs().max()) > 0.05


def test_with_the_gates_at_their_ends_a_level_stands_alone() -> None:
    some, pyramid = method(), levels_of(16)
    for fusion in fusions_of(some)[:-1]:
        assert fusion.gate is not None
        assert fusion.gate.bias is not None
        fusion.gate.bias.data.copy_(torch.tensor([50.0, -50.0]))
    for fusion, level, one in zip(fusions_of(some), pyramid, some.fuse("big", pyramid), strict=True):
        assert torch.allclose(one.output, fusion.predict(fusion.reduce(level)), atol=1e-6)


@pytest.mark.parametrize("level", range(4))
def test_a_level_is_learned_by_the_same_and_deeper_levels_of_the_student_alone(level: int) -> None:
    pyramid = [one.requires_grad_() for one in levels_of(16)]
    fused: list[Fused] = method().fuse("big", pyramid)
    hierarchical_context_loss(fused[level].output, levels_of(24, seed=1)[level]).backward()
    for place, one in enumerate(pyramid):
        assert (one.grad is not None and bool(one.grad.any())) == (place >= level)


def test_convolutions_start_as_those_of_the_authors() -> None:
    for fusion in fusions_of(method()):
        for part in (fusion.reduce, fusion.predict):
            weight = part[0].weight
            assert isinstance(weight, Tensor)
            # Uniform within sqrt(3 / fan in), sqrt(3) times torch's own bound.
            bound = (3 / weight[0].numel()) ** 0.5
            assert 0.9 * bound < float(weight.detach().abs().max()) <= bound


def test_the_default_student_and_a_teacher_of_width_64_have_161_542_parameters() -> None:
    config = StudentConfig()
    teacher = DetectorTeacher(build(replace(WIDE, width=64)))
    found = ReviewKD(ReviewKDConfig(), config, {"big": teacher})
    assert sum(parameter.numel() for parameter in found.parameters()) == 161_542


def test_each_image_counts_as_much_as_any_other_labelled_or_not() -> None:
    objective = taught()
    together = float(reviewkd(objective, batch([0, 1, 2, 3], 1)).detach())
    alone = [float(reviewkd(objective, batch([place], 1)).detach()) for place in range(4)]
    assert together == pytest.approx(sum(alone) / 4, rel=1e-5)
    assert len(set(alone)) == 4
    # Its labels are not even looked at.
    other = replace(batch([0], 1), labels=[sample(0, objects_of((0, 0, 90, 60, 3, 1.0))).objects])
    assert float(reviewkd(objective, other).detach()) == alone[0]


def test_backbone_and_fusions_learn_from_it_and_heads_and_teacher_do_not() -> None:
    detector = build(WIDE, 5)
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    objective = taught_by(method(), "reviewkd", DetectorTeacher(detector))
    reviewkd(objective, batch([0, 1], 1)).backward()
    reached = {name for name, p in objective.student.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert {name.partition(".")[0] for name in reached} == {"backbone"}
    assert {"backbone.fuse.0.weight", "backbone.downsample.2.0.weight"} <= reached
    assert all(p.grad is not None and bool(p.grad.any()) for p in objective.methods.parameters())
    assert all(p.grad is None for p in detector.parameters())
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())


def test_with_weight_zero_every_gradient_of_the_student_is_as_without_it() -> None:
    none, silent = DetectionObjective(build(TINY), LossWeights(), {}), taught(ReviewKDConfig(weight=0))
    expected = gradients(none.parameters(), none(batch([0, 1, 2], 2), 0.0))
    assert same(expected, gradients(silent.student.parameters(), silent(batch([0, 1, 2], 2), 0.0)))


def test_the_product_has_no_fusions_and_their_gradient_is_clipped_apart() -> None:
    objective = taught()
    assert build(TINY).state_dict().keys() == objective.product().state_dict().keys()
    groups = objective.parameter_groups()
    # Two convolutions and two norms of a level, and the gates of all but one.
    assert [(group.name, len(group.parameters)) for group in groups[1:]] == [("reviewkd", 4 * 6 + 3 * 2)]
    assert not any(isinstance(module, nn.BatchNorm2d) for module in objective.methods.modules())


def test_under_autocast_outputs_are_compared_in_float32() -> None:
    objective, some, fusing = taught(), batch([0, 1], 2), method()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        output = objective.student.training_output(some.images, some.labels, some.generators)
        heard = with_teacher(some)
        found = fusing.losses(objective.student, output, heard, 0.0)["reviewkd/big"].value
        fused = fusing.fuse("big", output.features.pyramid)
    assert {one.output.dtype for one in fused} == {torch.bfloat16}
    assert found.dtype == torch.float32
    terms = [
        naive_context_loss(one.output, truth) for one, truth in zip(fused, heard.detectors["big"].pyramid, strict=True)
    ]
    assert float(found) == pytest.approx(sum(terms), rel=1e-5)


def test_its_weight_decides_about_a_run() -> None:
    for weight in (1.0, 2.0):
        found = taught(ReviewKDConfig(weight=weight)).fingerprint()
        assert {name: found[name] for name in found if name.startswith("reviewkd.")} == {"reviewkd.weight": weight}
