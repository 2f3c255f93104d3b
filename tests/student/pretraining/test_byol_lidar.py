"""BYOL of places that lidar finds again: where views show them, the loss, and the alarms."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import grid_sample

from datalake.sample import Lidar, Sample
from student.config import StudentError
from student.pretraining.byol_lidar import ByolLidarConfig, ByolLidarObjective, LidarViews, visible_places
from student.pretraining.collapse import FLATNESS, collapse_of, flatness
from student.pretraining.correspondence import Correspondences
from student.pretraining.views import Crop, ViewConfig, cut
from tests.student.pretraining.toys import SIDE, learn, plant_collapse, toy_views
from tests.student.students import HEIGHT, TINY, WIDTH, sample
from training.generators import Chance
from training.objective import Batch

CONFIG = ByolLidarConfig(hidden=32, dimensions=16, recent=16, places=12, crop=32)


def objective(config: ByolLidarConfig = CONFIG, size: int = SIDE) -> ByolLidarObjective:
    torch.manual_seed(0)
    return ByolLidarObjective(TINY, config, ViewConfig(size=(size, size)))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pair_of(count: int, raised: int) -> Correspondences:
    random = np.random.default_rng(0)
    first, second = random.uniform((0, 0), (WIDTH, HEIGHT), (2, count, 2))
    return Correspondences(first, second, np.arange(count) < raised)


@pytest.mark.parametrize(("of_first", "of_second"), list(itertools.product([False, True], repeat=2)))
def test_views_of_coordinates_have_the_places_pixels_there(of_first: bool, of_second: bool) -> None:
    y, x = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    crops = (Crop(8, 4, 80, 60, of_first), Crop(20, 10, 96, 62, of_second))
    pair = pair_of(100, 50)
    places = torch.from_numpy(visible_places(pair, crops, 100, generator())).float()
    inside = [
        (c.x0 < p[:, 0]) & (p[:, 0] < c.x1) & (c.y0 < p[:, 1]) & (p[:, 1] < c.y1)
        for c, p in zip(crops, (pair.first, pair.second), strict=True)
    ]
    assert places.shape == (2, int((inside[0] & inside[1]).sum()), 2)
    shown = []
    for crop, where in zip(crops, places, strict=True):
        view = cut(torch.stack([x, y]), crop, (64, 64))
        sampled = grid_sample(view[None], where[None, :, None], padding_mode="border", align_corners=False)
        shown.append(sampled[0, :, :, 0].T.numpy())
    # Both ends are those of one pair, to half a pixel of the views.
    for one, other in zip(*shown, strict=True):
        distances = np.abs(pair.first - one).max(1) + np.abs(pair.second - other).max(1)
        assert distances.min() < 72 / 64


@pytest.mark.parametrize(("raised", "expected"), [(50, 10), (4, 4), (97, 17), (0, 0)])
def test_half_of_the_places_are_above_the_ground_where_there_are_as_many(raised: int, expected: int) -> None:
    whole = Crop(0, 0, WIDTH, HEIGHT, False)
    pair = pair_of(100, raised)
    places = visible_places(pair, (whole, whole), 20, generator())
    assert places.shape[1] == 20
    of_raised = 2 * pair.first[pair.raised] / (WIDTH, HEIGHT) - 1
    found = sum(bool((np.abs(of_raised - place).max(1) < 1e-9).any()) for place in places[0])
    assert found == expected


def lidar_views(count: int, step: int) -> LidarViews:
    """Return views that are both whole images, so that each place is where it was."""
    views = toy_views(count, step)
    places = 1.8 * torch.rand(1, count, 12, 2, generator=generator(step)) - 0.9
    there = torch.ones(count, 12, dtype=torch.bool)
    there[0, 5:] = False
    return LidarViews(views, (views.first, views.second), places.expand(2, -1, -1, -1), there)


def test_the_loss_is_that_of_features_at_the_places_by_loops() -> None:
    learner, batch = objective().eval(), lidar_views(3, 0)
    with torch.no_grad():
        for parameter in learner.target_trunk.parameters():
            parameter.mul_(1.1).add_(0.01)
        found = float(learner(batch, 0.0)["byol-lidar"].value)
        values: list[list[float]] = [[], []]
        views = (batch.views.first, batch.views.second)
        for way, (one, other) in enumerate(((0, 1), (1, 0))):
            fine, target = learner.trunk(views[one]).fine, learner.target_trunk(views[other]).fine
            for image, place in batch.there.nonzero().tolist():
                vectors = []
                for maps, side in ((fine, one), (target, other)):
                    x, y = ((batch.places[side, image, place] + 1) / 2 * maps.shape[-1] - 0.5).tolist()
                    column, row = int(np.floor(x)), int(np.floor(y))
                    vector = torch.zeros(maps.shape[1])
                    for r, c in itertools.product((row, row + 1), (column, column + 1)):
                        kept = [min(max(number, 0), maps.shape[-1] - 1) for number in (r, c)]
                        vector += (1 - abs(y - r)) * (1 - abs(x - c)) * maps[image, :, kept[0], kept[1]]
                    vectors.append(vector[None])
                p = learner.place_predictor(learner.place_projector(vectors[0]))
                z = learner.target_place_projector(vectors[1])
                values[way].append(2 - 2 * float(torch.cosine_similarity(p, z)))
    assert len(values[0]) == 29
    assert found == pytest.approx(sum(values[0]) / 29 + sum(values[1]) / 29, rel=1e-3)


def test_no_gradient_reaches_the_targets_and_one_reaches_all_else() -> None:
    learner = objective()
    losses = learner(lidar_views(4, 0), 0.0)
    torch.stack([loss.value for loss in losses.values()]).sum().backward()
    for name, parameter in learner.named_parameters():
        assert (parameter.grad is None) == name.startswith("target_"), name


def test_flatness_is_that_of_the_places_of_each_first_view() -> None:
    learner, batch = objective().train(), lidar_views(3, 0)
    whole = replace(batch, there=torch.ones_like(batch.there))
    learner(whole, 0.0)
    found = float(learner.diagnostics(whole, 0.0)[FLATNESS])
    with torch.no_grad():
        images = torch.cat([whole.views.first, whole.views.second])
        rows = learner.place_projector(learner._at_places(learner.trunk(images).fine, whole))
    assert found == pytest.approx(float(flatness(rows[:36].reshape(3, 12, -1))), abs=1e-4)


def lidar_sample(number: int) -> Sample:
    """Return an image with forty returns at ten metres, whose camera looks along the vehicle's axis."""
    random = np.random.default_rng(number)
    uv = random.uniform((4, 4), (WIDTH - 4, HEIGHT - 4), (40, 2))
    points = torch.zeros(4, 40)
    points[:2] = torch.from_numpy(random.uniform(-20, 20, (2, 40)))
    points[2, ::2] = 2.0
    lidar = Lidar(
        points=points,
        laser=torch.ones(40, dtype=torch.int8),
        semantic_class=None,
        pixel_point=torch.arange(40, dtype=torch.int32),
        pixel_uv=torch.from_numpy(uv.T.copy()).float(),
        pixel_depth_m=torch.full((40,), 10.0),
    )
    pose, intrinsic = torch.eye(4, dtype=torch.float64), torch.tensor([90.0, 90, 48, 32, 0, 0, 0, 0, 0]).double()
    plain = sample(number)
    return replace(plain, lidar=lidar, intrinsic=intrinsic, camera_to_vehicle=pose, exposed_vehicle_to_world=pose)


def test_batches_have_views_places_and_crops_around_one() -> None:
    learner = objective(size=64)
    samples = [lidar_sample(number) for number in range(3)]
    batch = learner.collate(Batch(samples, 3, 1), {}, Chance(0, 0, (0, 1, 2)))
    assert batch.views.first.shape == (3, 3, 64, 64)
    assert batch.around[0].shape == batch.around[1].shape == (3, 3, 32, 32)
    assert batch.places.shape == (2, 3, 12, 2)
    assert batch.there.sum(1).min() > 4
    assert float(batch.places.abs().max()) < 1
    again = learner.collate(Batch(samples, 3, 1), {}, Chance(0, 0, (0, 1, 2)))
    assert torch.equal(batch.places, again.places)
    assert torch.equal(batch.around[0], again.around[0])


def test_images_of_which_no_place_could_be_found_again_are_refused() -> None:
    learner, good = objective(size=64), lidar_sample(0)
    assert good.lidar is not None
    for bad, message in (
        (replace(good, exposed_vehicle_to_world=None), "no pose or calibration"),
        (replace(good, lidar=None), "no lidar returns on any image"),
    ):
        with pytest.raises(StudentError, match=message):
            learner.collate(Batch([bad], 1, 1), {}, Chance(0, 0, (0,)))


def test_a_pair_without_places_is_no_error_and_counts_for_nothing() -> None:
    learner, batch = objective(), lidar_views(3, 0)
    nothing = torch.zeros(0, 3, 32, 32)
    losses = learner(replace(batch, around=(nothing, nothing), there=torch.zeros_like(batch.there)), 0.0)
    assert [float(loss.value.detach()) for loss in losses.values()] == [0, 0]


def test_nothing_collapses_with_predictors_and_targets() -> None:
    assert collapse_of(learn(objective(), 50, batches=lidar_views), 16) is None


def test_without_them_the_alarm_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = objective(replace(CONFIG, recent=8))
    plant_collapse(learner, monkeypatch)
    assert collapse_of(learn(learner, 50, 1e-2, batches=lidar_views, count=8), 8) is not None
