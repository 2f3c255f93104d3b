"""What SPVCNN is told about points."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from datalake.sample import Sample
from datalake.synthetic.materials import LIDAR_CLASS, Kind
from teachers.classes import IGNORED
from teachers.spvnas.config import NetworkConfig
from teachers.spvnas.network import SPVCNN, PointPrediction
from teachers.spvnas.objective import (
    POINT_CLASSES,
    Augmentation,
    SpvcnnObjective,
    count_classes,
    has_labels,
    point_truth,
    weights_of_classes,
)
from teachers.spvnas.scan import Scan
from tests.teachers.samples import lidar, losses_of, sample
from training.errors import TrainingError

STILL = Augmentation(turn_rad=0, scale=0, mirror=False)
ONES = torch.ones(len(POINT_CLASSES))


def scene(seed: int, semantic_class: Tensor | None = None, points: int = 300) -> Sample:
    """Return a frame whose even points are of TOP, unlabelled or of random classes."""
    random = torch.Generator().manual_seed(seed)
    values = torch.rand(4, points, generator=random) * torch.tensor([[20.0], [20.0], [3.0], [1.0]])
    laser = torch.where(torch.arange(points) % 2 == 0, 1, 2)
    return sample(seed, lidar=lidar(values, laser, semantic_class))


def test_a_point_is_called_what_the_lake_calls_it() -> None:
    one = scene(0, torch.arange(300) % 23)
    truth = point_truth(one)
    assert len(truth) == 150
    assert truth[1] == POINT_CLASSES.index("TRUCK")
    assert [POINT_CLASSES[i] for i in truth[truth != IGNORED][:3].tolist()] == ["TRUCK", "OTHER_VEHICLE", "BICYCLIST"]
    assert (truth == IGNORED).tolist() == [2 * i % 23 == 0 for i in range(150)]


def test_simulated_points_have_the_names_of_what_they_hit() -> None:
    numbers = torch.from_numpy(LIDAR_CLASS[[Kind.CAR, Kind.PEDESTRIAN, Kind.TRUNK, Kind.SKY]].astype(np.int8))
    one = sample(lidar=lidar(torch.zeros(4, 4), torch.ones(4), numbers))
    names = [None if i == IGNORED else POINT_CLASSES[i] for i in point_truth(one).tolist()]
    assert names == ["CAR", "PEDESTRIAN", "TREE_TRUNK", None]


def test_frames_without_labels_of_top_are_told_from_labelled_ones() -> None:
    assert not has_labels(scene(0))
    assert not has_labels(scene(0, torch.arange(300) % 2 * 5))
    assert has_labels(scene(0, torch.arange(300) % 23))


@settings(max_examples=50)
@given(st.integers(0, 2**31))
def test_augmentation_moves_points_rigidly_but_for_scale(seed: int) -> None:
    random = np.random.default_rng(seed)
    before = Scan(random.normal(0, 10, (20, 3)).astype(np.float32), np.ones(20, np.float32), np.arange(20))
    after = Augmentation().apply(before, torch.Generator().manual_seed(seed))
    scale = np.linalg.norm(after.xyz_m, axis=1) / np.linalg.norm(before.xyz_m, axis=1)
    assert np.ptp(scale) < 1e-4
    assert scale[0] + 1e-4 >= 0.95
    assert scale[0] - 1e-4 <= 1.05
    # Up stays up, and distances between points stay in proportion.
    np.testing.assert_allclose(after.xyz_m[:, 2], before.xyz_m[:, 2] * scale[0], atol=1e-4)
    apart = np.linalg.norm(np.diff(after.xyz_m, axis=0), axis=1) / np.linalg.norm(np.diff(before.xyz_m, axis=0), axis=1)
    np.testing.assert_allclose(apart, scale[0], rtol=1e-4)
    np.testing.assert_array_equal(after.source, before.source)


def test_augmentation_uses_all_directions_and_both_sides() -> None:
    generator = torch.Generator().manual_seed(0)
    ahead = Scan(np.array([[1, 0, 0], [0, 1, 0]], np.float32), np.ones(2, np.float32), np.arange(2))
    moved = [Augmentation().apply(ahead, generator).xyz_m for _ in range(200)]
    angles = np.array([math.atan2(xyz[0, 1], xyz[0, 0]) for xyz in moved])
    assert np.histogram(angles, 8, (-math.pi, math.pi))[0].min() > 10
    mirrored = sum(bool(np.linalg.det(xyz[:, :2]) < 0) for xyz in moved)
    assert 70 < mirrored < 130
    still = STILL.apply(ahead, generator)
    np.testing.assert_array_equal(still.xyz_m, ahead.xyz_m)


class _Oracle(nn.Module):
    """Says of each voxel what its own place says: the class that the scene gave to that point."""

    def __init__(self) -> None:
        super().__init__()
        self.config = NetworkConfig.spvcnn(0.125, 22)
        self.sharpness = nn.Parameter(torch.tensor(50.0))

    def forward(self, features: Tensor, positions: Tensor, batch: Tensor) -> PointPrediction:
        del positions, batch
        logits = nn.functional.one_hot(features[:, 0].floor().long(), 22) * self.sharpness
        return PointPrediction(logits, features)


def test_each_voxel_is_compared_with_the_label_of_its_own_point() -> None:
    one = scene(3)
    assert one.lidar is not None
    # The class of a point is its x in whole metres: whoever reads it from the features must be right everywhere.
    classes = one.lidar.points[0].floor().long() + 1
    labelled = scene(3, classes)
    objective = SpvcnnObjective(_Oracle(), ONES, STILL)  # type: ignore[arg-type]
    assert losses_of(objective, labelled, labelled)["cross_entropy"] < 1e-6
    shifted = scene(3, classes % 20 + 1)
    assert losses_of(objective, shifted)["cross_entropy"] > 10


class _Told(nn.Module):
    """Says the same of every voxel, but of those right of x = 10 m as much as it is told."""

    def __init__(self, right: float) -> None:
        super().__init__()
        self.config = NetworkConfig.spvcnn(0.125, 22)
        self.right = right

    def forward(self, features: Tensor, positions: Tensor, batch: Tensor) -> PointPrediction:
        del positions, batch
        logits = torch.zeros(len(features), 22)
        logits[:, 0] = torch.where(features[:, 0] > 10, self.right, 1.0)
        return PointPrediction(logits, features)


def loss_of(right: float, labelled: Tensor) -> float:
    """Return the loss where what is labelled is of class 2, and the network is so sure of another on the right."""
    objective = SpvcnnObjective(_Told(right), ONES, STILL)  # type: ignore[arg-type]
    return losses_of(objective, scene(1, labelled * 2))["cross_entropy"]


def test_what_is_said_of_unlabelled_points_does_not_matter() -> None:
    one = scene(1)
    assert one.lidar is not None
    left = one.lidar.points[0] <= 10
    assert loss_of(1.0, left) == loss_of(8.0, left) > 0
    assert loss_of(1.0, ~left) < loss_of(8.0, ~left)


def test_a_frame_whose_labels_are_all_hidden_in_others_voxels_costs_nothing() -> None:
    # Two points of one voxel: the first speaks for it, and is not labelled.
    one = sample(lidar=lidar(torch.ones(4, 2), torch.ones(2), torch.tensor([0, 3])))
    objective = SpvcnnObjective(_Told(1.0), ONES, STILL)  # type: ignore[arg-type]
    assert has_labels(one)
    assert losses_of(objective, one)["cross_entropy"] == 0


def test_rare_classes_weigh_more_within_limits() -> None:
    counts = torch.zeros(22, dtype=torch.int64)
    counts[0], counts[1], counts[2] = 900_000, 90_000, 4
    weights = weights_of_classes(counts, limit=10)
    assert float(weights[1] / weights[0]) == pytest.approx(math.sqrt(10), rel=1e-4)
    assert weights[2] == 10
    # What was not met may come yet.
    assert (weights[3:] == 10).all()
    mean = float((weights * counts).sum() / counts.sum())
    assert mean == pytest.approx(1, abs=0.01)


def test_classes_are_counted_over_top_alone() -> None:
    counts = count_classes([scene(0, torch.full((300,), 7)), scene(1), scene(2, torch.full((300,), 8))])
    assert counts.tolist() == [150 if name in ("PEDESTRIAN", "SIGN") else 0 for name in POINT_CLASSES]
    with pytest.raises(TrainingError, match="no labelled points"):
        weights_of_classes(torch.zeros(22, dtype=torch.int64))


def test_a_point_that_is_nan_is_named() -> None:
    one = scene(5, torch.ones(300))
    assert one.lidar is not None
    one.lidar.points[1, 10] = torch.nan
    objective = SpvcnnObjective(SPVCNN(NetworkConfig.spvcnn(0.125, 22)), ONES, STILL)
    with pytest.raises(TrainingError, match="segment_5 5: a scan has points that are NaN"):
        losses_of(objective, one)
