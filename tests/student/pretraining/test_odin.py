"""ODIN: its regions, its losses by loops, its three networks, and its alarms."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from student.pretraining import odin
from student.pretraining.byol import byol_loss
from student.pretraining.collapse import collapse_of
from student.pretraining.odin import OdinConfig, OdinObjective, OdinViews, detcon_loss, mean_features, region_loss
from student.pretraining.views import ViewConfig
from tests.student.pretraining.toys import SIDE, learn, plant_collapse, toy_views
from tests.student.students import HEIGHT, TINY, WIDTH, sample
from training.generators import Chance
from training.objective import Batch

CONFIG = OdinConfig(hidden=32, dimensions=16, recent=16, regions=3, start=0.0)


def objective(config: OdinConfig = CONFIG, size: int = SIDE) -> OdinObjective:
    torch.manual_seed(0)
    return OdinObjective(TINY, config, ViewConfig(size=(size, size)))


def views(count: int, step: int) -> OdinViews:
    made = toy_views(count, step)
    return OdinViews(made, made.first[None], None, Chance(0, step, tuple(range(count))))


def test_features_of_a_region_are_its_mean_by_loops() -> None:
    maps, masks = torch.randn(2, 3, 4, 5), (torch.rand(2, 6, 4, 5) > 0.7).float()
    masks[1, 2] = 0
    found = mean_features(maps, masks)
    for b, k in itertools.product(range(2), range(6)):
        cells = [maps[b, :, i, j] for i, j in itertools.product(range(4), range(5)) if masks[b, k, i, j]]
        expected = torch.stack(cells).mean(0) if cells else torch.zeros(3)
        torch.testing.assert_close(found[b, k], expected)


def test_the_regression_is_the_mean_over_regions_that_both_views_show() -> None:
    random = np.random.default_rng(0)
    p, z = random.normal(size=(2, 3, 4, 5))
    there = random.random((3, 4)) < 0.5
    values = [
        2 - 2 * float(p[b, k] @ z[b, k]) / math.sqrt(float(p[b, k] @ p[b, k]) * float(z[b, k] @ z[b, k]))
        for b, k in itertools.product(range(3), range(4))
        if there[b, k]
    ]
    found = region_loss(*(torch.from_numpy(each) for each in (p, z, there)))
    assert float(found) == pytest.approx(sum(values) / len(values))
    assert float(region_loss(*(torch.from_numpy(each) for each in (p, z, there & False)))) == 0


@pytest.mark.parametrize("local_negatives", [True, False])
def test_the_contrastive_loss_is_detcons_by_loops(local_negatives: bool) -> None:
    random = np.random.default_rng(1)
    p, z2, z1 = (each / np.linalg.norm(each, axis=2, keepdims=True) for each in random.normal(size=(3, 3, 4, 5)))
    v1, v2 = random.random((2, 3, 4)) < 0.7
    v1[0], v2[0] = False, False
    total = 0.0
    for b, k in itertools.product(range(3), range(4)):
        if not (v1[b, k] and v2[b, k]):
            continue
        below = 0.0
        for c, m in itertools.product(range(3), range(4)):
            is_own = (c, m) == (b, k)
            if v2[c, m] and (local_negatives or c != b or is_own):
                below += math.exp(float(p[b, k] @ z2[c, m]) / 0.1)
            if v1[c, m] and not is_own and (local_negatives or c != b):
                below += math.exp(float(p[b, k] @ z1[c, m]) / 0.1)
        total -= math.log(math.exp(float(p[b, k] @ z2[b, k]) / 0.1) / below)
    arguments = [torch.from_numpy(each) for each in (3 * p, 0.5 * z2, z1, v1, v2)]
    arguments[0].requires_grad_()
    rows, other, own, there, in_other = arguments
    found = detcon_loss(rows, other, own, there, in_other, 0.1, local_negatives)
    assert float(found.detach()) == pytest.approx(total / 12, rel=1e-5)
    found.backward()
    assert arguments[0].grad is not None
    assert bool(arguments[0].grad.isfinite().all())


def test_one_region_is_byol_of_the_same_map() -> None:
    learner, batch = objective(replace(CONFIG, start=0.5)).eval(), views(4, 0)
    with torch.no_grad():
        for parameter in learner.target_trunk.parameters():
            parameter.mul_(1.1).add_(0.01)
        found = float(learner(batch, 0.0)["odin"].value)

        def pooled(trunk: torch.nn.Module, images: Tensor) -> Tensor:
            fine: Tensor = trunk(images).fine
            return fine.mean((2, 3))

        sides = (batch.views.first, batch.views.second)
        p1, p2 = (learner.predictor(learner.projector(pooled(learner.trunk, side))) for side in sides)
        z1, z2 = (learner.target_projector(pooled(learner.target_trunk, side)) for side in sides)
    assert found == pytest.approx(float(byol_loss(p1, z2) + byol_loss(p2, z1)), abs=1e-4)


def test_regions_are_clusters_of_both_images_together() -> None:
    learner, batch = objective(), views(3, 0)
    # The second images are the first ones upside down: clusters of both alike would be equal by chance alone.
    both = replace(batch, whole=torch.stack([batch.whole[0], batch.whole[0].flip(2)]))
    found = learner.discovered(both, 0.5)
    assert found.shape == (2, 3, 4, 4)
    fine = avg_pool2d(learner.discovery_trunk(both.whole.flatten(0, 1)).fine, 2)
    rows = torch.nn.functional.normalize(fine, dim=1).unflatten(0, (2, 3)).detach()
    for image in range(3):
        cells = rows[:, image].movedim(1, -1).reshape(32, -1)
        labels = found[:, image].reshape(32)
        centers = torch.stack([cells[labels == k].mean(0) for k in labels.unique()])
        nearest = torch.cdist(cells, centers).argmin(1)
        # Up to Lloyd's last rounds.
        assert float((labels.unique()[nearest] == labels).float().mean()) > 0.9
    assert torch.equal(found, learner.discovered(both, 0.5))


def test_lidar_keeps_its_segments_and_the_rest_is_clustered() -> None:
    learner, batch = objective(replace(CONFIG, masks="lidar", regions=2, rest=2)), views(2, 0)
    given = torch.full((1, 2, 4, 4), -1)
    given[0, 0, :2] = 1
    found = learner.discovered(replace(batch, given=given), 0.5)
    assert (found[0, 0, :2] == 1).all()
    assert set(found[0, 0, 2:].flatten().tolist()) <= {2, 3}
    assert set(found[0, 1].flatten().tolist()) == {2, 3}
    assert learner.most == 4


@pytest.mark.parametrize("loss", ["regression", "infonce"])
def test_no_gradient_reaches_target_and_discovery_and_one_reaches_all_else(loss: str) -> None:
    learner = objective(replace(CONFIG, loss=loss))  # type: ignore[arg-type]
    learner(views(4, 0), 0.5)["odin"].value.backward()
    # Levels below the finest one pass on to it what they have.
    for name, parameter in learner.named_parameters():
        assert (parameter.grad is None) == name.startswith(("target_", "discovery_")), name


def test_discovery_follows_more_slowly_than_the_target() -> None:
    learner = objective()
    named = dict(learner.named_parameters())
    trunks = ("trunk", "target_trunk", "discovery_trunk")
    online, target, discovery = (named[f"{trunk}.laterals.0.0.weight"] for trunk in trunks)
    before = online.detach().clone()
    with torch.no_grad():
        online.add_(1)
    learner.after_step(0.0)
    torch.testing.assert_close(target, before + 0.01)
    torch.testing.assert_close(discovery, before + 0.004)


def test_regions_of_too_few_cells_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, batch = objective(replace(CONFIG, masks="panoptic")), views(2, 0)
    given = torch.zeros(1, 2, 4, 4, dtype=torch.int64)
    given[0, :, 0, 0] = 1
    given[0, :, 3, :2] = 2
    seen: list[Tensor] = []

    def spied(predicted: Tensor, expected: Tensor, there: Tensor) -> Tensor:
        seen.append(there)
        return region_loss(predicted, expected, there)

    monkeypatch.setattr(odin, "region_loss", spied)
    learner(replace(batch, given=given), 0.5)
    assert seen[0].tolist() == [[True, False, True]] * 2


def test_batches_have_views_and_the_whole_images() -> None:
    learner, samples = objective(size=32), [sample(number) for number in range(4)]
    batch = learner.collate(Batch(samples, 2, 1), {}, Chance(0, 0, (0, 1, 2, 3)))
    assert batch.whole.shape == (2, 2, 3, HEIGHT, WIDTH)
    assert batch.views.first.shape == (2, 3, 32, 32)
    assert batch.chance.places == (0, 1)
    alone = learner.collate(Batch(samples[:2], 2, 1), {}, Chance(0, 0, (0, 1)))
    assert alone.whole.shape == (1, 2, 3, HEIGHT, WIDTH)


@pytest.mark.parametrize("loss", ["regression", "infonce"])
def test_nothing_collapses_with_a_predictor_and_a_target(loss: str) -> None:
    learner = objective(replace(CONFIG, loss=loss, momentum=0.97))  # type: ignore[arg-type]
    assert collapse_of(learn(learner, 40, batches=views), 16) is None


def test_without_them_the_alarm_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = objective(replace(CONFIG, start=1.0))
    plant_collapse(learner, monkeypatch)

    def undetached(predicted: Tensor, expected: Tensor, there: Tensor) -> Tensor:
        return ((2 - 2 * torch.cosine_similarity(predicted, expected, dim=2)) * there).sum() / there.sum()

    monkeypatch.setattr(odin, "region_loss", undetached)
    assert collapse_of(learn(learner, 100, 5e-3, batches=views), 16) is not None
