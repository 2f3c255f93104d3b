"""BYOL's loss, its target, and the alarms."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from student.pretraining.byol import ByolConfig, ByolObjective, byol_loss
from student.pretraining.collapse import COSINE, RANK, STD, VECTORS, RecentVectors, collapse_metrics, collapse_of
from student.pretraining.self_distillation import momentum_at
from student.pretraining.views import ViewConfig, Views
from tests.student.pretraining.toys import SIDE, learn, plant_collapse
from tests.student.students import TINY, sample
from training.generators import Chance
from training.objective import Batch

CONFIG = ByolConfig(hidden=16, dimensions=8, momentum=0.9, recent=16)


def objective(config: ByolConfig = CONFIG) -> ByolObjective:
    torch.manual_seed(0)
    return ByolObjective(TINY, config, ViewConfig(size=(64, 64)))


def views(count: int = 2) -> Views:
    random = torch.Generator().manual_seed(1)
    first, second = torch.randn(2, count, 3, 64, 64, generator=random)
    return Views(first, second, [])


def test_the_loss_is_two_minus_two_cosines() -> None:
    random = np.random.default_rng(0)
    predicted, expected = random.normal(size=(2, 5, 7)).astype(np.float32)
    total = 0.0
    for p, z in zip(predicted, expected, strict=True):
        total += 2 - 2 * float(p @ z) / math.sqrt(float(p @ p) * float(z @ z))
    found = byol_loss(torch.from_numpy(3 * predicted), torch.from_numpy(0.1 * expected))
    assert float(found) == pytest.approx(total / 5, rel=1e-5)


def test_the_loss_compares_each_prediction_with_the_target_of_the_other_view() -> None:
    learner, batch = objective().eval(), views()

    def pooled(trunk: torch.nn.Module, images: Tensor) -> Tensor:
        features = trunk(images)
        return torch.cat([level.mean((2, 3)) for level in (features.fine, *features.coarse)], 1)

    with torch.no_grad():
        # So that the target is another network.
        for parameter in learner.target_trunk.parameters():
            parameter.mul_(1.1).add_(0.01)
        p1, p2 = (learner.predictor(learner.projector(pooled(learner.trunk, v))) for v in (batch.first, batch.second))
        z1, z2 = (learner.target_projector(pooled(learner.target_trunk, v)) for v in (batch.first, batch.second))
        found = learner(batch, 0.0)["byol"].value

    def distance(p: Tensor, z: Tensor) -> float:
        return float((p / p.norm(dim=1, keepdim=True) - z / z.norm(dim=1, keepdim=True)).square().sum(1).mean())

    assert float(found) == pytest.approx(distance(p1, z2) + distance(p2, z1), abs=1e-5)


def test_no_gradient_reaches_the_target_and_one_reaches_all_else() -> None:
    learner = objective()
    learner(views(), 0.0)["byol"].value.backward()
    trained = {id(p) for group in learner.parameter_groups() for p in group.parameters}
    for name, parameter in learner.named_parameters():
        is_target = name.startswith("target_")
        assert (parameter.grad is None) == is_target, name
        assert (id(parameter) in trained) != is_target, name


def test_no_gradient_reaches_what_is_expected() -> None:
    predicted, expected = torch.randn(2, 3, 4, requires_grad=True).unbind(0)
    leaf = expected.detach().requires_grad_()
    byol_loss(predicted, leaf).backward()
    assert leaf.grad is None


def test_the_target_starts_as_a_copy_of_its_own() -> None:
    learner = objective()
    for own, copy in zip(learner.trunk.parameters(), learner.target_trunk.parameters(), strict=True):
        assert torch.equal(own, copy)
        assert own.data_ptr() != copy.data_ptr()


def test_the_target_is_the_moving_average_in_closed_form() -> None:
    learner, steps, momentum = objective(), 4, 0.9
    parameters = dict(learner.named_parameters())
    weight, target = (parameters[f"{trunk}.laterals.0.0.weight"] for trunk in ("trunk", "target_trunk"))
    start, seen = target.detach().double().clone(), []
    for number in range(steps):
        with torch.no_grad():
            weight.add_(number + 1.0)
        seen.append(weight.detach().double().clone())
        learner.after_step(0.0)
    sums = [(1 - momentum) * momentum ** (steps - 1 - number) * value for number, value in enumerate(seen)]
    torch.testing.assert_close(
        target.double(), momentum**steps * start + torch.stack(sums).sum(0), rtol=1e-5, atol=1e-5
    )


def test_momentum_rises_from_its_first_value_to_one_by_half_a_cosine() -> None:
    assert [momentum_at(progress, 0.96) for progress in (0.0, 0.5, 1.0)] == pytest.approx([0.96, 0.98, 1.0])


def test_first_images_of_a_batch_are_paired_with_the_second_ones() -> None:
    learner = objective()
    samples = [sample(number) for number in range(4)]
    chance = Chance(0, 0, (0, 1, 2, 3))
    batch = learner.collate(Batch(samples, 2, 1), {}, chance)
    other = learner.collate(Batch([samples[0], samples[1], samples[3], samples[2]], 2, 1), {}, chance)
    assert batch.first.shape == batch.second.shape == (2, 3, 64, 64)
    assert torch.equal(batch.first, other.first)
    assert not torch.equal(batch.second[0], other.second[0])


def test_without_second_images_both_views_are_of_one() -> None:
    samples, chance = [sample(0), sample(1)], Chance(0, 0, (0, 1))
    learner = objective()
    alone = learner.collate(Batch(samples, 2, 1), {}, chance)
    twice = learner.collate(Batch([*samples, *samples], 2, 1), {}, Chance(0, 0, (0, 1, 2, 3)))
    assert torch.equal(alone.second, twice.second)
    assert not torch.equal(alone.first, alone.second)


def test_constant_projections_raise_the_alarm() -> None:
    learner = objective(replace(CONFIG, recent=4))
    parameters = dict(learner.named_parameters())
    with torch.no_grad():
        # Whatever the image, the layer norm then gives its bias.
        parameters["projector.1.weight"].zero_()
        parameters["projector.1.bias"].fill_(1.0)
    batch = views(4)
    learner(batch, 0.0)
    figures = {name: float(value) for name, value in learner.diagnostics(batch, 0.0).items()}
    told = collapse_of(figures, 4)
    assert told is not None
    assert told.startswith("collapse: std 0.000 < 0.2: projections are about the same")


def test_projections_on_a_line_raise_the_alarm_for_their_rank() -> None:
    random = torch.Generator().manual_seed(0)
    line = torch.randn(256, 1, generator=random) * torch.ones(1, 32)
    told = collapse_of({name: float(value) for name, value in collapse_metrics(line).items()}, 256)
    assert told is not None
    assert "effective rank" in told


def test_spread_projections_raise_none() -> None:
    figures = collapse_metrics(torch.randn(256, 32, generator=torch.Generator().manual_seed(0)))
    numbers = {name: float(value) for name, value in figures.items()}
    assert numbers[STD] == pytest.approx(1, abs=0.03)
    assert abs(numbers[COSINE]) < 0.01
    assert 28 < numbers[RANK] <= 32
    assert collapse_of(numbers, 256) is None


def test_figures_are_those_of_loops() -> None:
    vectors = np.random.default_rng(3).normal(size=(6, 4)) + 1
    unit = [row / math.sqrt(sum(x * x for x in row)) for row in vectors]
    cosines = [float(unit[i] @ unit[j]) for i in range(6) for j in range(6) if i != j]
    deviations = [float(np.std([row[column] for row in unit])) for column in range(4)]
    values = np.sqrt(np.linalg.eigvalsh(np.cov(np.array(unit).T, bias=True)).clip(0))
    shares = values / values.sum()
    found = collapse_metrics(torch.from_numpy(vectors))
    assert float(found[COSINE]) == pytest.approx(sum(cosines) / 30)
    assert float(found[STD]) == pytest.approx(2 * sum(deviations) / 4)
    assert float(found[RANK]) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)))


def test_too_few_projections_say_nothing() -> None:
    figures = {name: float(value) for name, value in collapse_metrics(torch.ones(7, 3)).items()}
    assert collapse_of(figures, 8) is None
    assert collapse_of(figures, 7) is not None


def test_the_newest_vectors_replace_the_oldest() -> None:
    recent = RecentVectors(3, 1)
    for first in (0.0, 2.0):
        recent.append(torch.tensor([[first], [first + 1]]))
    assert sorted(recent.vectors[:, 0].tolist()) == [1, 2, 3]
    assert float(recent.metrics()[VECTORS]) == 3


def test_nothing_collapses_with_a_predictor_and_a_target() -> None:
    learner = ByolObjective(TINY, ByolConfig(hidden=32, dimensions=16, recent=16), ViewConfig(size=(SIDE, SIDE)))
    assert collapse_of(learn(learner, 50), 16) is None


def test_without_them_the_alarm_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    learner = ByolObjective(TINY, ByolConfig(hidden=32, dimensions=16, recent=16), ViewConfig(size=(SIDE, SIDE)))
    plant_collapse(learner, monkeypatch)
    assert collapse_of(learn(learner, 100, 5e-3), 16) is not None
