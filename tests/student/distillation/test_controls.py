"""Targets that say nothing true."""

from __future__ import annotations

from dataclasses import replace

import torch

from student.distillation.controls import random_targets, shuffled_targets
from tests.student.students import samples, targets_of
from training.generators import Chance


def test_shuffled_targets_are_real_ones_of_other_frames() -> None:
    some = samples(4)
    targets = targets_of(some)
    confident = replace(targets["colors"], confidence=targets["colors"].valid.float())
    for target in (*targets.values(), confident):
        shuffled = shuffled_targets({"teacher": target})["teacher"]
        for place in range(4):
            other = (place + 1) % 4
            assert torch.equal(shuffled.values[place], target.values[other])
            assert torch.equal(shuffled.valid[place], target.valid[other])
            assert not torch.equal(shuffled.values[place], target.values[place])
    assert shuffled_targets({}) == {}


def test_random_targets_are_of_the_same_cells_and_know_nothing_of_their_values() -> None:
    some = samples(4)
    targets = targets_of(some)
    drawn = random_targets(targets, {"shades": 3}, Chance(0, 0, (0, 1, 2, 3)))
    for name, target in targets.items():
        assert torch.equal(drawn[name].valid, target.valid)
        assert not bool(drawn[name].values[~target.valid.expand_as(drawn[name].values)].any())
    colors, real = drawn["colors"].values, targets["colors"].values
    valid = targets["colors"].valid.expand_as(colors)
    assert abs(float(colors[valid].mean())) < 0.05
    assert abs(float(torch.corrcoef(torch.stack([colors[valid], real[valid]]))[0, 1])) < 0.05
    shades = drawn["shades"].values[targets["shades"].valid]
    shares = torch.bincount(shades, minlength=3) / len(shades)
    assert bool(((shares - 1 / 3).abs() < 0.05).all())


def test_random_targets_are_the_same_for_the_same_step() -> None:
    targets = targets_of(samples(2))
    first, second = (random_targets(targets, {"shades": 3}, Chance(0, 7, (0, 1))) for _ in range(2))
    other = random_targets(targets, {"shades": 3}, Chance(0, 8, (0, 1)))
    assert torch.equal(first["colors"].values, second["colors"].values)
    assert not torch.equal(first["colors"].values, other["colors"].values)
