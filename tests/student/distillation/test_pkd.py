"""A student whose pyramid is to correlate with a detector teacher's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from student.distillation.controls import Targets
from student.distillation.detector_teacher import DetectorTeacher
from student.distillation.objective import DetectionObjective
from student.distillation.pkd import PKD, PKDConfig, correlation_distance
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
    value,
)
from tests.student.students import TINY, build


def objective(targets: Targets = "real") -> DetectionObjective:
    torch.manual_seed(2)
    detectors = teachers()
    return taught(PKD(PKDConfig(), TINY, detectors), detectors, targets)


def method_of(some: DetectionObjective) -> PKD:
    method = some.methods["method"]
    assert isinstance(method, PKD)
    return method


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def correlations(one: Tensor, other: Tensor) -> np.ndarray:
    """Return numpy's r [B, C] of features [B, C, h, w] with others."""
    rows = [values.detach().double().numpy().reshape(-1, values[0, 0].numel()) for values in (one, other)]
    found = [np.corrcoef(first, second)[0, 1] for first, second in zip(*rows, strict=True)]
    return np.array(found).reshape(one.shape[:2])


@pytest.mark.parametrize("targets", ["real", "shuffled"])
def test_the_loss_is_the_sum_over_levels_of_one_minus_the_mean_correlation_with_the_teachers_channels(
    targets: Targets,
) -> None:
    some, images = objective(targets), batch([0, 1, 2], 2)
    expected = 0.0
    with torch.no_grad():
        own, other = (one.features(images.images).pyramid for one in (some.student, decided(WIDE, 5).eval()))
        for adapter, level, truth in zip(convolutions(method_of(some).adapters), own, other, strict=True):
            shown = truth.roll(-1, 0) if targets == "shuffled" else truth
            # A student's channel as a sum, cell by cell.
            adapted = torch.einsum("bchw,dc->bdhw", level.double(), adapter.weight[:, :, 0, 0].double())
            expected += 1 - float(correlations(adapted, shown).mean())
    assert value(some(images, 0.0), "pkd/big") == pytest.approx(expected, rel=1e-4)


def test_it_is_numpys_correlation_of_each_channel_of_an_image() -> None:
    one, other = drawn(3, 4, 5, 7), drawn(3, 4, 5, 7, seed=1)
    other[1] = 0.3 * other[1] + one[1]
    assert correlation_distance(one, other).numpy() == pytest.approx(1 - correlations(one, other), abs=1e-5)


def test_nothing_is_lost_for_a_copy_of_positive_scale_and_shift_and_something_for_all_else() -> None:
    features = drawn(2, 3, 6, 8)
    scale, shift = torch.tensor([0.1, 1.0, 30.0]), torch.tensor([-5.0, 0.0, 2.0])
    copy = features * scale[None, :, None, None] + shift[None, :, None, None]
    assert float(correlation_distance(copy, features).max()) < 1e-4
    turned = copy.clone()
    turned[1, 2] = copy[1, 2].flip(-1)
    assert (correlation_distance(turned, features) > 1e-2).tolist() == [[False] * 3, [False, False, True]]


def test_the_negative_of_a_channel_costs_two() -> None:
    features = drawn(2, 3, 6, 8)
    assert correlation_distance(-3 * features + 1, features).numpy() == pytest.approx(2, abs=1e-4)


@given(
    seed=st.integers(0, 100),
    scale=st.floats(0.1, 100),
    shift=st.floats(-100, 100),
    height=st.integers(1, 6),
    width=st.integers(2, 6),
)
def test_the_teachers_scale_and_shift_do_not_matter_and_it_is_within_zero_and_two(
    seed: int, scale: float, shift: float, height: int, width: int
) -> None:
    one, other = (drawn(2, 3, height, width, seed=seed + 200 * i).double() for i in range(2))
    # Channels that vary much more than what is added to their variance.
    one, other = (values / values.std((2, 3), correction=0, keepdim=True) for values in (one, other))
    found = correlation_distance(one, other)
    assert bool(((found >= 0) & (found <= 2 + 1e-6)).all())
    assert correlation_distance(one, scale * other + shift).numpy() == pytest.approx(found.numpy(), abs=1e-3)


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (2, 3, 4, 5)], ids=["cell", "constant"])
def test_one_cell_and_a_constant_channel_are_no_numbers_to_fear(shape: tuple[int, ...]) -> None:
    constant, varied = torch.full(shape, 1000.0), drawn(*shape)
    for one, other in ((constant, varied), (varied, constant), (constant, constant)):
        features = one.clone().requires_grad_()
        distance = correlation_distance(features, other)
        distance.sum().backward()
        assert features.grad is not None
        assert bool(distance.isfinite().all())
        assert bool(features.grad.isfinite().all())
        assert float(features.grad.abs().max()) < 1e3
    # What a constant channel of the teacher costs cannot be learned away.
    features = varied.clone().requires_grad_()
    distance = correlation_distance(features, constant)
    distance.sum().backward()
    assert features.grad is not None
    assert float(features.grad.abs().max()) < 1e-4
    assert distance.detach().numpy() == pytest.approx(0.0 if shape[2:] == (1, 1) else 0.5, abs=1e-4)


def test_a_student_like_its_teacher_has_nothing_to_learn() -> None:
    detectors = {"same": DetectorTeacher(build(TINY))}
    method = PKD(PKDConfig(), TINY, detectors)
    identities(method.adapters, "same")
    some = taught(method, detectors)
    losses = of_method(some(batch([0, 1, 2], 2), 0.0))
    assert value(losses, "pkd/same") == 0
    assert reached(some.student, losses.values()) == set()


def test_backbone_and_adapters_learn_from_it_and_heads_do_not() -> None:
    some = objective()
    changed = reached(some.student, of_method(some(batch([0, 1, 2], 2), 0.0)).values())
    assert {name.partition(".")[0] for name in changed} == {"backbone"}
    # From the finest level to the coarsest.
    assert {"backbone.fuse.0.weight", "backbone.downsample.2.0.weight"} <= changed
    assert [p.grad is not None and bool(p.grad.any()) for p in method_of(some).parameters()] == [True] * 4


def test_the_scale_of_an_adapter_does_not_matter() -> None:
    some = objective()
    expected = value(some(batch([0, 1], 2), 0.0), "pkd/big")
    with torch.no_grad():
        for adapter in convolutions(method_of(some).adapters):
            adapter.weight.mul_(7)
    assert value(some(batch([0, 1], 2), 0.0), "pkd/big") == pytest.approx(expected, rel=1e-3)


def test_its_weight_decides_about_a_run() -> None:
    detectors = teachers()
    assert PKD(PKDConfig(weight=2.0), TINY, detectors).fingerprint() == {"weight": 2.0}
