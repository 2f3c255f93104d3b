"""Anchors and proposals are drawn as torchvision draws them, but always the same ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

from student.sampling import Drawn, draw_keys, sample

CPU = torch.device("cpu")


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def draw(label: Tensor, size: int, share: float, seed: int = 0) -> Drawn:
    """Draw from the candidates [B, N] of images with generators of their own."""
    keys = draw_keys([label.shape[1]] * len(label), generators(*range(seed, seed + len(label))), CPU)
    return sample(label, keys, size, share)


LABEL = st.lists(st.sampled_from([-1, 0, 0, 0, 1, 3]), min_size=1, max_size=60).map(lambda one: torch.tensor([one]))


@given(label=LABEL, size=st.integers(1, 32), share=st.sampled_from([0.01, 0.25, 0.5, 1]))
def test_as_many_are_drawn_as_torchvision_draws(label: Tensor, size: int, share: float) -> None:
    drawn = draw(label, size, share)
    chosen = label[0, drawn.index[0, drawn.valid[0]]]
    (positive,), (negative,) = BalancedPositiveNegativeSampler(size, share)([label[0]])
    assert int((chosen >= 1).sum()) == int(positive.sum())
    assert int((chosen == 0).sum()) == int(negative.sum())


@given(label=LABEL, size=st.integers(1, 32))
def test_nothing_is_drawn_twice_and_nothing_that_is_no_candidate(label: Tensor, size: int) -> None:
    drawn = draw(label, size, 0.5)
    index = drawn.index[0, drawn.valid[0]]
    assert len(index.unique()) == len(index)
    assert bool((label[0, index] >= 0).all())


@given(label=LABEL, size=st.integers(1, 32))
def test_positives_come_first(label: Tensor, size: int) -> None:
    drawn = draw(label, size, 0.5)
    chosen = (label[0, drawn.index[0, drawn.valid[0]]] >= 1).int()
    assert bool((chosen.diff() <= 0).all())
    # What is not valid stands behind all that is.
    assert bool((drawn.valid[0].int().diff() <= 0).all())


def test_the_same_generators_draw_the_same_and_others_something_else() -> None:
    label = (torch.arange(400) % 3)[None] - 1
    first, again, other = (draw(label, 16, 0.5, seed).index for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_what_is_drawn_for_an_image_does_not_depend_on_the_others() -> None:
    label = (torch.arange(900).reshape(3, 300) % 3) - 1
    together = draw(label, 16, 0.5)
    assert torch.equal(together.index[2], draw(label[2:], 16, 0.5, seed=2).index[0])


def test_keys_of_an_image_do_not_depend_on_how_many_candidates_others_have() -> None:
    together = draw_keys([300, 400], generators(0, 1), CPU)
    assert torch.equal(together[0, :300], draw_keys([300], generators(0), CPU)[0])
    assert torch.equal(together[1], draw_keys([400], generators(1), CPU)[0])


def test_no_two_keys_of_an_image_are_the_same() -> None:
    # In 31 bits, of which nearly 300 pairs of a million would be the same ones.
    keys = draw_keys([1_000_000], generators(0), CPU)
    assert len(keys.unique()) == keys.shape[1]


def test_keys_lie_below_what_positives_are_lifted_by() -> None:
    keys = draw_keys([1_000_000], generators(0), CPU)
    assert int(keys.min()) >= 0
    assert int(keys.max()) < 2**62


def test_every_candidate_is_drawn_equally_often() -> None:
    label = (torch.arange(12) % 2)[None].expand(3000, -1)
    drawn = draw(label, 4, 0.5)
    counts = drawn.index[drawn.valid].bincount(minlength=12)
    # 3000 draws of 2 of 6: 1000 each, with a deviation of 26.
    assert bool(((counts - 1000).abs() < 5 * 26).all())


def test_each_image_needs_a_generator() -> None:
    with pytest.raises(ValueError):
        draw_keys([3, 3], generators(0), CPU)
