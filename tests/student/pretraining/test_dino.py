"""DINO's loss, center and schedules, by loops, and its alarms."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from student.pretraining.collapse import ENTROPY, MEAN_ENTROPY, collapse_of
from student.pretraining.dino import DinoConfig, DinoObjective, MultiCrop, dino_loss, sharpened, temperature_at
from student.pretraining.views import ViewConfig
from student.pretraining.vit import Vit, VitConfig
from tests.student.pretraining.toys import SIDE, learn, toy_views
from tests.student.students import TINY, sample
from training.generators import Chance
from training.objective import Batch

TRUNK = DinoConfig(prototypes=32, hidden=32, bottleneck=16, crops=2, crop_size=(32, 32), recent=32, frozen=0.0)
VIT = replace(TRUNK, network="vit", vit=VitConfig(dimensions=32, blocks=2, heads=2, patch=8, size=(32, 32)))


def objective(config: DinoConfig = TRUNK) -> DinoObjective:
    torch.manual_seed(0)
    return DinoObjective(TINY, config, ViewConfig(size=(SIDE, SIDE)))


def crops(count: int, step: int) -> MultiCrop:
    one, other = toy_views(count, step), toy_views(count, 1000 + step)
    return MultiCrop(torch.stack([one.first, one.second]), torch.stack([other.first, other.second]))


@pytest.mark.parametrize("small", [0, 1, 3])
def test_the_loss_is_the_cross_entropy_of_different_views_by_loops(small: int) -> None:
    random = np.random.default_rng(small)
    answers, said, center = (random.uniform(-1, 1, shape) for shape in ((2, 3, 5), (2 + small, 3, 5), (5,)))
    total, pairs = 0.0, 0
    for one in range(2):
        for other in range(2 + small):
            if one == other:
                continue
            pairs += 1
            for image in range(3):
                t = [math.exp((answers[one, image, k] - center[k]) / 0.04) for k in range(5)]
                s = [math.exp(said[other, image, k] / 0.1) for k in range(5)]
                total -= sum(a / sum(t) * math.log(b / sum(s)) for a, b in zip(t, s, strict=True)) / 3
    assert pairs == 2 * (1 + small)
    probabilities = sharpened(torch.from_numpy(answers), torch.from_numpy(center), 0.04)
    assert float(dino_loss(probabilities, torch.from_numpy(said), 0.1)) == pytest.approx(total / pairs)


@pytest.mark.parametrize("config", [TRUNK, VIT])
def test_the_objectives_loss_is_that_of_teacher_and_student(config: DinoConfig) -> None:
    learner, batch = objective(config).eval(), crops(3, 0)
    with torch.no_grad():
        learner.center.uniform_(-0.1, 0.1)
        for parameter in learner.teacher.parameters():
            parameter.mul_(1.1).add_(0.01)
        found = float(learner(batch, 0.5)["dino"].value)

        def answers(network: Any, head: Any, images: Tensor) -> Tensor:
            made = network(images)
            levels = [] if config.network == "vit" else (made.fine, *made.coarse)
            rows = made.whole if config.network == "vit" else torch.cat([level.mean((2, 3)) for level in levels], 1)
            hidden = head.third(torch.nn.functional.gelu(head.second(torch.nn.functional.gelu(head.first(rows)))))
            unit, prototypes = (each / each.norm(dim=1, keepdim=True) for each in (hidden, head.prototypes))
            return unit @ prototypes.T

        t = torch.stack([answers(learner.teacher, learner.teacher_head, large) for large in batch.large])
        s = torch.stack([answers(learner.online, learner.head, each) for each in (*batch.large, *batch.small)])
    expected = dino_loss(((t - learner.center) / 0.03).softmax(-1), s, 0.1)
    assert found == pytest.approx(float(expected), rel=1e-4)


def test_the_center_is_the_moving_average_of_uncentered_answers_in_closed_form() -> None:
    learner, expected = objective().train(), torch.zeros(32)
    for step in range(3):
        batch = crops(4, step)
        learner(batch, 0.0)
        with torch.no_grad():
            features = learner.features(learner.teacher, batch.large.flatten(0, 1))
            expected = 0.9 * expected + 0.1 * learner.teacher_head(features).mean(0)
        learner.after_step(0.0)
    torch.testing.assert_close(learner.center, expected)
    assert not torch.equal(expected, torch.zeros(32))


def test_the_center_is_of_all_parts_of_a_step() -> None:
    whole, in_parts, batch = objective().train(), objective().train(), crops(4, 0)
    whole(batch, 0.0)
    for part in (slice(0, 2), slice(2, 4)):
        in_parts(MultiCrop(batch.large[:, part], batch.small[:, part]), 0.0)
    for learner in (whole, in_parts):
        learner.after_step(0.0)
    torch.testing.assert_close(whole.center, in_parts.center)


@pytest.mark.parametrize("config", [TRUNK, VIT])
def test_no_gradient_reaches_the_teacher_and_one_reaches_all_else(config: DinoConfig) -> None:
    learner = objective(config)
    learner(crops(4, 0), 0.5)["dino"].value.backward()
    for name, parameter in learner.named_parameters():
        of_teacher = name.startswith(("trunk.", "vit.", "teacher_head."))
        assert (parameter.grad is None) == of_teacher, name


def test_frozen_prototypes_get_no_gradient() -> None:
    learner = objective(replace(TRUNK, frozen=0.1))
    for progress, there in ((0.05, False), (0.1, True)):
        learner.zero_grad()
        learner(crops(4, 0), progress)["dino"].value.backward()
        assert (learner.head.prototypes.grad is not None) == there
        assert learner.head.third.weight.grad is not None


def test_the_teachers_temperature_rises_evenly_and_stays() -> None:
    config = DinoConfig(teacher_temperatures=(0.02, 0.04), warmup=0.5)
    found = [temperature_at(progress, config) for progress in (0, 0.25, 0.5, 1)]
    assert found == pytest.approx([0.02, 0.03, 0.04, 0.04])
    assert temperature_at(0, replace(config, warmup=0.0)) == 0.04


def test_the_teacher_starts_as_a_copy_and_follows() -> None:
    learner = objective()
    slow, fast = (dict(each.named_parameters())["laterals.0.0.weight"] for each in (learner.teacher, learner.online))
    assert torch.equal(slow, fast)
    with torch.no_grad():
        fast.add_(1)
    before = slow.clone()
    learner.after_step(0.0)
    torch.testing.assert_close(slow, before + 0.01)


def test_what_a_run_is_for_is_the_teacher() -> None:
    learner = objective()
    assert learner.product() is learner.trunk
    assert any(name.startswith("trunk.") for name in learner.state_dict())
    of_vit = objective(VIT)
    assert isinstance(of_vit.product(), Vit)
    assert not any(name.startswith("trunk.") for name in of_vit.state_dict())
    assert json.loads(of_vit.config())["vit"]["blocks"] == 2
    assert of_vit.fingerprint()["vit.patch"] == 8


def test_batches_have_large_and_small_crops_of_both_images() -> None:
    learner = objective()
    samples = [sample(number) for number in range(4)]
    batch = learner.collate(Batch(samples, 2, 1), {}, Chance(0, 0, (0, 1, 2, 3)))
    assert batch.large.shape == (2, 2, 3, SIDE, SIDE)
    assert batch.small.shape == (2, 2, 3, 32, 32)
    other = learner.collate(
        Batch([samples[0], samples[1], samples[3], samples[2]], 2, 1), {}, Chance(0, 0, (0, 1, 2, 3))
    )
    assert torch.equal(batch.small[0], other.small[0])
    assert not torch.equal(batch.small[1], other.small[1])
    assert torch.equal(batch.large[0], other.large[0])


def figures(learner: DinoObjective) -> dict[str, float]:
    batch = crops(32, 0)
    learner.train()(batch, 0.5)
    return {name: float(value) for name, value in learner.diagnostics(batch, 0.5).items()}


def test_entropies_are_those_of_loops() -> None:
    learner = objective()
    found = figures(learner)
    answers = learner.recent_answers.vectors.double().numpy()
    each = [-sum(p * math.log(p) for p in row if p > 0) / math.log(32) for row in answers]
    mean = answers.mean(0)
    assert found[ENTROPY] == pytest.approx(sum(each) / 32, rel=1e-4)
    assert found[MEAN_ENTROPY] == pytest.approx(-sum(p * math.log(p) for p in mean if p > 0) / math.log(32), rel=1e-4)


def test_a_teacher_that_says_all_of_everything_raises_the_alarm() -> None:
    told = collapse_of(figures(objective(replace(TRUNK, teacher_temperatures=(50.0, 50.0)))), 32)
    assert told is not None
    assert "the teacher says the same of everything, all classes" in told


def test_a_teacher_that_says_one_thing_of_everything_raises_the_alarm() -> None:
    learner = objective()
    learner.center[3] = -5
    told = collapse_of(figures(learner), 32)
    assert told is not None
    assert "mean entropy 0.000 < 0.1: the teacher knows few classes" in told


@pytest.mark.parametrize("config", [TRUNK, VIT])
def test_nothing_collapses_with_centering_and_sharpening(config: DinoConfig) -> None:
    assert collapse_of(learn(objective(config), 40, batches=crops), 32) is None


def test_without_centering_the_alarm_is_raised() -> None:
    told = collapse_of(learn(objective(replace(VIT, center_momentum=1.0)), 30, batches=crops), 32)
    assert told is not None
    assert "the teacher knows few classes" in told
