"""Random numbers that follow from seed, step, place and purpose."""

from __future__ import annotations

import torch

from training.generators import Chance, sample_generator


def drawn(seed: int, step: int, place: int, purpose: str = "") -> tuple[float, ...]:
    return tuple(torch.rand(4, generator=sample_generator(seed, step, place, purpose)).tolist())


def test_the_same_sample_draws_the_same_numbers() -> None:
    assert drawn(3, 12345, 7) == drawn(3, 12345, 7)


def test_every_seed_step_and_place_draws_its_own() -> None:
    # Of a seed torch looks at 32 bits: steps a power of two apart must differ in these.
    steps = [*range(40), *(2**power + offset for power in range(6, 24) for offset in (0, 1))]
    places = [(seed, step, place) for seed in range(3) for step in steps for place in (0, 1, 5, 63)]
    assert len({drawn(*where) for where in places}) == len(set(places))


def test_every_purpose_draws_its_own() -> None:
    assert len({drawn(3, 5, 7, purpose) for purpose in ("", "one", "two", "three")}) == 4


def test_what_is_drawn_for_neighbors_is_not_alike() -> None:
    numbers = torch.tensor([drawn(0, step, place) for step in range(50) for place in range(10)])
    assert bool(((numbers.mean(0) - 0.5).abs() < 0.06).all())
    together = torch.corrcoef(torch.stack([numbers[:-1, 0], numbers[1:, 0]]))
    assert abs(float(together[0, 1])) < 0.15


def test_a_subset_keeps_each_samples_numbers() -> None:
    whole = [float(torch.rand((), generator=one)) for one in Chance(1, 2, (4, 5, 9)).generators("x")]
    some = [float(torch.rand((), generator=one)) for one in Chance(1, 2, (4, 5, 9)).subset([0, 2]).generators("x")]
    assert some == [whole[0], whole[2]]
