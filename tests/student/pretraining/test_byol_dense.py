"""BYOL of cells: which cells are one place, the loss, and the alarms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d

from student.pretraining.byol_dense import (
    ByolDenseConfig,
    ByolDenseObjective,
    Propagation,
    dense_loss,
    one_cell_each,
    same_places,
)
from student.pretraining.collapse import FLATNESS, collapse_of, flatness
from student.pretraining.views import Crop, ViewConfig, centers, cut
from tests.student.pretraining.toys import SIDE, learn, plant_collapse, toy_views
from tests.student.students import TINY

CONFIG = ByolDenseConfig(hidden=32, dimensions=16, recent=16)
FLIPS = list(itertools.product([False, True], repeat=2))


def objective(config: ByolDenseConfig = CONFIG) -> ByolDenseObjective:
    torch.manual_seed(0)
    return ByolDenseObjective(TINY, config, ViewConfig(size=(SIDE, SIDE)))


@pytest.mark.parametrize("mirrored", [False, True])
def test_centers_of_cells_are_where_a_view_of_coordinates_says_to_half_a_cell(mirrored: bool) -> None:
    y, x = torch.meshgrid(torch.arange(128) + 0.5, torch.arange(192) + 0.5, indexing="ij")
    crop = Crop(17, 9, 150, 100, mirrored)
    view = cut(torch.stack([x, y]), crop, (64, 48))
    # Cells of 8 x 8 pixels of the view.
    shown = avg_pool2d(view[None], 8)[0].flatten(1).T
    found = centers([crop], (6, 8))[0]
    half = torch.tensor([(150 - 17) / 8 / 2, (100 - 9) / 6 / 2])
    assert bool(((shown - found).abs() <= half).all())
    # Nearly everywhere much nearer.
    assert float(((shown - found).abs() / half).median()) < 0.1


@pytest.mark.parametrize(("of_first", "of_second"), FLIPS)
def test_cells_are_the_same_where_their_places_are_by_loops(of_first: bool, of_second: bool) -> None:
    crops = (Crop(10, 20, 90, 80, of_first), Crop(40, 10, 140, 70, of_second))
    found = same_places([crops], (3, 4))[0]
    longest = max(math.hypot(80 / 4, 60 / 3), math.hypot(100 / 4, 60 / 3))
    count = 0
    for (i, j), (k, m) in itertools.product(itertools.product(range(3), range(4)), repeat=2):
        places = []
        for crop, row, column in zip(crops, (i, k), (j, m), strict=True):
            shown = 3 - column if crop.mirrored else column
            wide, high = (crop.x1 - crop.x0) / 4, (crop.y1 - crop.y0) / 3
            places.append((crop.x0 + (shown + 0.5) * wide, crop.y0 + (row + 0.5) * high))
        expected = math.dist(*places) < 0.7 * longest
        assert bool(found[4 * i + j, 4 * k + m]) == expected
        count += expected
    assert 0 < count < 100


def test_a_view_and_itself_mirrored_are_the_same_in_opposite_columns() -> None:
    crops = (Crop(0, 0, 80, 20, False), Crop(0, 0, 80, 20, True))
    found = same_places([crops], (1, 4))[0]
    assert found.int().tolist() == torch.eye(4).int().flip(1).tolist()


def test_the_loss_is_the_mean_over_pairs_of_the_same_place_by_loops() -> None:
    random = np.random.default_rng(0)
    predicted, expected = random.normal(size=(2, 3, 5, 7))
    same = random.random((3, 5, 5)) < 0.3
    same[2] = False
    total = 0.0
    for b in range(3):
        values = [
            2 - 2 * float(p @ z) / math.sqrt(float(p @ p) * float(z @ z))
            for i, p in enumerate(predicted[b])
            for j, z in enumerate(expected[b])
            if same[b, i, j]
        ]
        total += sum(values) / max(1, len(values))
    arguments = [torch.from_numpy(each) for each in (5 * predicted, 0.2 * expected, same)]
    assert float(dense_loss(*arguments)) == pytest.approx(total / 3, rel=1e-5)


def test_propagation_is_pixpros_sum_by_loops() -> None:
    torch.manual_seed(0)
    network, cells = Propagation(3), torch.randn(2, 4, 3)
    found = network(cells)
    for b, i in itertools.product(range(2), range(4)):
        expected = torch.zeros(3)
        for j in range(4):
            cosine = float(cells[b, i] @ cells[b, j] / cells[b, i].norm() / cells[b, j].norm())
            expected += max(cosine, 0) ** 2 * network.value(cells[b, j])
        torch.testing.assert_close(found[b, i], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("predictor", ["mlp", "propagation"])
def test_no_gradient_reaches_the_targets_and_one_reaches_all_else(predictor: str) -> None:
    learner = objective(ByolDenseConfig(hidden=8, dimensions=4, recent=4, predictor=predictor))  # type: ignore[arg-type]
    losses = learner(toy_views(4, 0), 0.0)
    assert set(losses) == {"byol-dense", "byol"}
    torch.stack([loss.value for loss in losses.values()]).sum().backward()
    for name, parameter in learner.named_parameters():
        assert (parameter.grad is None) == name.startswith("target_"), name


def test_each_view_predicts_the_target_of_the_other_one() -> None:
    learner, batch = objective().eval(), toy_views(3, 0)
    with torch.no_grad():
        for parameter in learner.target_trunk.parameters():
            parameter.mul_(1.1).add_(0.01)
        found = float(learner(batch, 0.0)["byol-dense"].value)
        sides = []
        for view in (batch.first, batch.second):
            rows = []
            for trunk, projector in (
                (learner.trunk, learner.cell_projector),
                (learner.target_trunk, learner.target_cell_projector),
            ):
                fine = avg_pool2d(trunk(view).fine, 2).flatten(2).transpose(1, 2)
                rows.append(torch.stack([projector(image) for image in fine]))
            sides.append((learner.cell_predictor(rows[0]), rows[1]))
    same = same_places(batch.crops, (4, 4))
    (p1, z1), (p2, z2) = sides
    assert found == pytest.approx(float(dense_loss(p1, z2, same) + dense_loss(p2, z1, same)), abs=1e-5)


def test_the_targets_follow() -> None:
    learner = objective()
    named = dict(learner.named_parameters())
    before = named["target_cell_projector.0.weight"].clone()
    with torch.no_grad():
        named["cell_projector.0.weight"].add_(1)
    learner.after_step(0.0)
    torch.testing.assert_close(named["target_cell_projector.0.weight"], before + 0.03)


def test_flatness_is_the_mean_cosine_of_different_cells() -> None:
    cells = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)) + 1
    cosines = [
        float(torch.cosine_similarity(image[i], image[j], dim=0))
        for image in cells
        for i in range(5)
        for j in range(5)
        if i != j
    ]
    assert float(flatness(cells)) == pytest.approx(sum(cosines) / 40, rel=1e-5)


def test_flat_maps_raise_the_alarm() -> None:
    told = collapse_of({"collapse/cells/vectors": 9, "collapse/cells/std": 0.9, "collapse/cells/effective_rank": 50,
                        "collapse/cells/cosine": 0.0, FLATNESS: 0.97}, 9)  # fmt: skip
    assert told == "collapse: flatness 0.970 > 0.95: all cells of an image look alike"


def test_cells_that_are_kept_are_of_different_places_in_turn() -> None:
    cells = torch.arange(12.0).reshape(1, 12, 1)
    seen = {float(one_cell_each(cells, torch.tensor(turn))) for turn in range(12)}
    assert len(seen) == 12


def test_nothing_collapses_with_predictors_and_targets() -> None:
    assert collapse_of(learn(objective(), 50), 16) is None


def test_without_them_the_alarm_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = objective()
    plant_collapse(learner, monkeypatch)
    assert collapse_of(learn(learner, 100, 5e-3), 16) is not None
