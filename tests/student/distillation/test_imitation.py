"""What counts in a branch's loss, and how much."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from datalake.sample import SampleKey
from student.distillation.imitation import balanced_weights, foreground_cells, imitation_loss
from teachers.card import Kind
from teachers.target import Target

KEYS = (SampleKey("one", 1, "FRONT"), SampleKey("two", 2, "FRONT"))
CLASSES = 4


def target_of(kind: Kind, valid_share: float = 0.5) -> Target:
    """Return a target [2, …, 5, 6] whose images have different numbers of valid cells."""
    random = torch.Generator().manual_seed(1)
    chance = torch.rand(2, 1, 5, 6, generator=random)
    valid = chance < torch.tensor([valid_share, valid_share / 2]).reshape(2, 1, 1, 1)
    if kind == "classification":
        values = torch.randint(CLASSES, (2, 1, 5, 6), generator=random)
    else:
        values = torch.randn(2, CLASSES, 5, 6, generator=random)
    return Target(KEYS, values * valid, valid)


def outputs_of(seed: int = 2) -> Tensor:
    return torch.randn(2, CLASSES, 5, 6, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def learned(branch_outputs: Tensor, loss: Tensor) -> Tensor:
    """Return the gradient of the loss."""
    (gradient,) = torch.autograd.grad(loss, branch_outputs)
    return gradient


@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_the_loss_is_the_mean_over_images_of_the_mean_over_their_valid_cells(kind: Kind) -> None:
    branch_outputs, target = outputs_of(), target_of(kind)
    expected = []
    for image in range(2):
        errors = []
        for row, column in target.valid[image, 0].nonzero().tolist():
            predicted, truth = branch_outputs[image, :, row, column], target.values[image, :, row, column]
            errors.append(
                cross_entropy(predicted, truth[0]) if kind == "classification" else (predicted - truth).square().mean()
            )
        expected.append(sum(float(error.detach()) for error in errors) / len(errors))
    assert float(imitation_loss(branch_outputs, target).detach()) == pytest.approx(sum(expected) / 2, rel=1e-5)


@pytest.mark.parametrize("value", [1e30, math.inf, math.nan])
def test_what_stands_in_cells_that_are_not_valid_does_not_matter(value: float) -> None:
    branch_outputs, target = outputs_of(), target_of("regression")
    loss = imitation_loss(branch_outputs, target)
    other = replace(target, values=target.values.where(target.valid, value))
    disturbed = imitation_loss(branch_outputs, other)
    assert torch.equal(disturbed, loss)
    assert torch.equal(learned(branch_outputs, disturbed), learned(branch_outputs, loss))


@pytest.mark.parametrize("value", [3, 255, -1])
def test_neither_does_the_class_of_cells_that_are_not_valid(value: int) -> None:
    branch_outputs, target = outputs_of(), target_of("classification")
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    loss = imitation_loss(branch_outputs, target, class_weights=weights)
    other = replace(target, values=target.values.where(target.valid, value))
    disturbed = imitation_loss(branch_outputs, other, class_weights=weights)
    assert torch.equal(disturbed, loss)
    assert torch.equal(learned(branch_outputs, disturbed), learned(branch_outputs, loss))


@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_cells_that_are_not_valid_get_no_gradient_and_valid_ones_do(kind: Kind) -> None:
    branch_outputs, target = outputs_of(), target_of(kind)
    gradient = learned(branch_outputs, imitation_loss(branch_outputs, target))
    assert torch.equal((gradient != 0).any(1, keepdim=True), target.valid)


@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_without_a_valid_cell_there_is_nothing_to_learn(kind: Kind) -> None:
    branch_outputs, target = outputs_of(), target_of(kind, valid_share=0)
    assert not bool(target.valid.any())
    loss = imitation_loss(branch_outputs, target)
    assert loss.item() == 0
    assert torch.equal(learned(branch_outputs, loss), torch.zeros_like(branch_outputs))


@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_a_image_without_a_valid_cell_counts_as_learned(kind: Kind) -> None:
    branch_outputs, target = outputs_of(), target_of(kind)
    half = replace(target, valid=target.valid & torch.tensor([True, False]).reshape(2, 1, 1, 1))
    first = replace(target, keys=KEYS[:1], values=target.values[:1], valid=target.valid[:1])
    assert imitation_loss(branch_outputs, half).item() == pytest.approx(
        imitation_loss(branch_outputs[:1], first).item() / 2
    )


@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_a_cell_of_weight_two_counts_as_two_cells(kind: Kind) -> None:
    branch_outputs, target = outputs_of(), target_of(kind)
    one = replace(target, keys=KEYS[:1], values=target.values[:1], valid=target.valid[:1])
    heavy = torch.ones(1, 1, 5, 6)
    heavy[..., :3] = 2
    # The heavy half of the image a second time beside it.
    doubled = replace(
        one,
        values=torch.cat([one.values, one.values[..., :3]], 3),
        valid=torch.cat([one.valid, one.valid[..., :3]], 3),
    )
    expected = imitation_loss(torch.cat([branch_outputs[:1], branch_outputs[:1, ..., :3]], 3), doubled)
    assert imitation_loss(branch_outputs[:1], one, cell_weights=heavy).item() == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_the_weight_of_a_class_is_the_weight_of_its_cells() -> None:
    branch_outputs, target = outputs_of(), target_of("classification")
    weights = torch.tensor([0.5, 1.0, 4.0, 2.0])
    by_class = imitation_loss(branch_outputs, target, class_weights=weights)
    by_cell = imitation_loss(branch_outputs, target, cell_weights=weights[target.values[:, 0]][:, None])
    assert by_class.item() == pytest.approx(by_cell.item(), rel=1e-5)
    assert by_class.item() != pytest.approx(imitation_loss(branch_outputs, target).item(), rel=1e-3)


def test_object_cells_are_those_in_which_some_teacher_of_classes_sees_an_object() -> None:
    numbers, first = target_of("regression"), target_of("classification")
    second = replace(first, values=first.values.flip(-1), valid=first.valid.flip(-1))
    seen = foreground_cells({"numbers": numbers, "first": first, "second": second})
    assert seen is not None
    expected = first.valid & (first.values > 0) | second.valid & (second.values > 0)
    assert torch.equal(seen, expected)
    assert 0 < int(seen.sum()) < seen.numel()
    assert foreground_cells({"numbers": numbers}) is None


SHARES = st.lists(st.integers(0, 10**7), min_size=1, max_size=8).map(
    lambda counts: torch.tensor([count / max(1, sum(counts)) for count in counts])
)


@given(shares=SHARES)
def test_balanced_weights_are_one_on_average_and_within_bounds(shares: Tensor) -> None:
    weights = balanced_weights(shares)
    assert weights.shape == shares.shape
    assert bool((weights > 0).all())
    assert float(weights.max() / weights.min()) <= 10 * 1.001
    if bool((shares > 0).any()):
        assert float((weights * shares).sum() / shares.sum()) == pytest.approx(1, rel=1e-4)
    else:
        assert torch.equal(weights, torch.ones_like(weights))


def test_a_rarer_class_weighs_the_root_of_how_much_rarer_it_is() -> None:
    weights = balanced_weights(torch.tensor([0.9, 0.09, 0.01, 0.0]))
    assert float(weights[1] / weights[0]) == pytest.approx(math.sqrt(10), rel=1e-4)
    assert float(weights[2] / weights[0]) == pytest.approx(math.sqrt(90), rel=1e-4)
    # What was never seen counts as the rarest that was.
    assert float(weights[3]) == float(weights[2])
    assert float(balanced_weights(torch.tensor([0.9999, 0.0001]))[1]) == pytest.approx(
        10 * float(balanced_weights(torch.tensor([0.9999, 0.0001]))[0]), rel=1e-5
    )


@pytest.mark.parametrize("wrong", [CLASSES, 200, -1])
@pytest.mark.parametrize("weighted", [True, False])
def test_a_class_that_the_branch_cannot_tell_makes_the_loss_nan_instead_of_a_lookup(wrong: int, weighted: bool) -> None:
    target = target_of("classification")
    row, column = target.valid[1, 0].nonzero()[0].tolist()
    target.values[1, 0, row, column] = wrong
    weights = torch.ones(CLASSES) if weighted else None
    assert bool(imitation_loss(outputs_of(), target, class_weights=weights).isnan())
    # Where it is not valid it does not matter.
    target.valid[1, 0, row, column] = False
    assert bool(imitation_loss(outputs_of(), target, class_weights=weights).isfinite())
