"""Branches for teachers of every kind."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch

from student.branch import FreeBranch, ImitationBranch
from student.config import AnchorShapes, BranchSpec, Feed, StudentConfig
from tests.student.students import TINY

SPECS = [
    BranchSpec(name="spvnas", kind="regression", channels=76),
    BranchSpec(name="spvcnn", kind="regression", channels=24),
    BranchSpec(name="depths", kind="regression", channels=5),
    BranchSpec(name="masks", kind="classification", channels=4),
]


@pytest.mark.parametrize("feed", get_args(Feed))
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_a_branch_says_what_its_teacher_would_say(spec: BranchSpec, feed: Feed) -> None:
    branch = ImitationBranch(spec, 16, replace(TINY, feed=feed))
    branch_outputs, passed = branch(torch.rand(2, 16, 6, 8))
    assert branch_outputs.shape == (2, spec.channels, 6, 8)
    assert passed.shape == (2, TINY.branch_width, 6, 8)


@pytest.mark.parametrize("preset", ["classroom", "paper"])
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_what_it_says_comes_out_of_a_linear_layer(spec: BranchSpec, preset: str) -> None:
    torch.manual_seed(0)
    config = TINY if preset == "classroom" else StudentConfig.paper((spec,), AnchorShapes())
    branch = ImitationBranch(spec, 16, config)
    view = torch.rand(1, 16, 6, 8)
    branch_outputs, _ = branch(view)
    assert bool((branch_outputs < 0).any())
    assert bool((branch_outputs > 0).any())
    # No norm and no ReLU afterwards: the bias moves every answer by what it is itself moved.
    with torch.no_grad():
        assert branch.predictor.bias is not None
        branch.predictor.bias -= 7
    assert torch.allclose(branch(view)[0], branch_outputs - 7, atol=1e-5)


@pytest.mark.parametrize("feed", get_args(Feed))
def test_the_detector_hears_of_a_branch_what_the_feed_lets_through(feed: Feed) -> None:
    torch.manual_seed(0)
    branch = ImitationBranch(SPECS[2], 16, replace(TINY, feed=feed))
    view = torch.rand(1, 16, 6, 8)
    _, passed = branch(view)
    with torch.no_grad():
        branch.predictor.weight.mul_(-1)
    heard = branch(view)[1]
    assert not torch.equal(heard, passed)
    # Behind what it says stand the features, where they are passed on: without them the rest is told as before.
    features = branch.stem(view)
    predicted = branch.normalize(branch.predictor(features))
    whole = predicted if feed == "imitation" else torch.cat([features, predicted], 1)
    assert torch.equal(branch.projection(whole), heard)


def test_classes_are_passed_on_as_probabilities_whatever_the_logits() -> None:
    torch.manual_seed(0)
    branch = ImitationBranch(SPECS[3], 16, replace(TINY, feed="imitation"))
    view = torch.rand(1, 16, 6, 8)
    _, passed = branch(view)
    with torch.no_grad():
        assert branch.predictor.bias is not None
        branch.predictor.bias += 100
    assert torch.allclose(branch(view)[1], passed, atol=1e-4)


def test_the_free_branch_contributes_as_much_as_the_others() -> None:
    assert FreeBranch(16, TINY)(torch.rand(2, 16, 6, 8)).shape == (2, TINY.branch_width, 6, 8)
