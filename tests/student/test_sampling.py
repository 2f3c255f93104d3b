"""Anchors and proposals are drawn as torchvision draws them, but always the same ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

from student.sampling import RepeatableSampler


def draw(sampler: RepeatableSampler, labels: list[Tensor], seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    sampler.generators = [torch.Generator().manual_seed(seed + place) for place in range(len(labels))]
    return sampler(labels)


LABELS = st.lists(st.sampled_from([-1.0, 0.0, 0.0, 0.0, 1.0, 3.0]), max_size=60).map(
    lambda values: torch.tensor(values, dtype=torch.float32)
)


@given(labels=st.lists(LABELS, min_size=1, max_size=3), size=st.integers(1, 32), share=st.sampled_from([0.25, 0.5, 1]))
def test_as_many_are_drawn_as_torchvision_draws(labels: list[Tensor], size: int, share: float) -> None:
    ours = draw(RepeatableSampler(size, share), labels)
    theirs = BalancedPositiveNegativeSampler(size, share)(labels)
    for mine, reference in zip(ours, theirs, strict=True):
        assert [int(mask.sum()) for mask in mine] == [int(mask.sum()) for mask in reference]
        assert [(mask.shape, mask.dtype) for mask in mine] == [(mask.shape, mask.dtype) for mask in reference]


@given(labels=LABELS, size=st.integers(1, 32))
def test_positives_are_objects_negatives_background_and_nothing_is_both(labels: Tensor, size: int) -> None:
    (positive,), (negative,) = draw(RepeatableSampler(size, 0.5), [labels])
    assert bool((labels[positive.bool()] >= 1).all())
    assert bool((labels[negative.bool()] == 0).all())


def test_the_same_generators_draw_the_same_and_others_something_else() -> None:
    sampler = RepeatableSampler(16, 0.5)
    labels = [(torch.arange(400) % 3).float() - 1]
    first, again, other = (draw(sampler, labels, seed) for seed in (0, 0, 1))
    for one, two, three in zip(first, again, other, strict=True):
        assert torch.equal(one[0], two[0])
        assert not torch.equal(one[0], three[0])


def test_what_is_drawn_for_a_picture_does_not_depend_on_the_others() -> None:
    sampler = RepeatableSampler(16, 0.5)
    labels = [(torch.arange(count) % 3).float() - 1 for count in (400, 300)]
    positive, negative = draw(sampler, labels)
    alone = draw(sampler, labels[1:], seed=1)
    assert torch.equal(positive[1], alone[0][0])
    assert torch.equal(negative[1], alone[1][0])


def test_every_candidate_can_be_drawn() -> None:
    sampler = RepeatableSampler(4, 0.5)
    labels = (torch.arange(12) % 2).float()
    drawn = torch.zeros(12, dtype=torch.bool)
    for seed in range(200):
        (positive,), (negative,) = draw(sampler, [labels], seed)
        drawn |= (positive | negative).bool()
    assert bool(drawn.all())


def test_each_picture_needs_a_generator() -> None:
    sampler = RepeatableSampler(4, 0.5)
    sampler.generators = [torch.Generator()]
    with pytest.raises(ValueError):
        sampler([torch.zeros(3), torch.zeros(3)])
