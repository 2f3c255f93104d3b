"""K-means of many images at once against one that goes point by point."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from student.pretraining.kmeans import kmeans, lloyd


def generators(count: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + number) for number in range(count)]


def blobs(count: int, each: int, spread: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return points [1, N, 8] around `count` corners of a cube, and whose each is [N]."""
    random = torch.Generator().manual_seed(seed)
    centers = torch.eye(8)[:count] * 10
    truth = torch.arange(count).repeat_interleave(each)
    return (centers[truth] + spread * torch.randn(count * each, 8, generator=random))[None], truth


def loops(points: np.ndarray, centers: np.ndarray, weights: np.ndarray, rounds: int) -> tuple[list[int], float]:
    """Return labels and inertia of Lloyd's algorithm; no cluster may become empty."""
    centers = centers.copy()
    for number in range(rounds + 1):
        labels, inertia = [], 0.0
        for point, weight in zip(points, weights, strict=True):
            distances = [float(((point - center) ** 2).sum()) for center in centers]
            labels.append(int(np.argmin(distances)))
            inertia += weight * min(distances)
        if number == rounds:
            break
        for k in range(len(centers)):
            members = [i for i, label in enumerate(labels) if label == k]
            total = sum(weights[i] for i in members)
            assert total > 0
            centers[k] = sum(weights[i] * points[i] for i in members) / total
    return labels, inertia


@pytest.mark.parametrize("rounds", [0, 1, 2, 7])
def test_lloyds_rounds_are_those_of_loops(rounds: int) -> None:
    random = np.random.default_rng(4)
    points, weights = random.normal(size=(2, 40, 3)).astype(np.float32), random.uniform(0.5, 2, (2, 40))
    centers = points[:, :4].copy()
    found = lloyd(torch.from_numpy(points), torch.from_numpy(centers), torch.from_numpy(weights), rounds=rounds)
    for image in range(2):
        labels, inertia = loops(points[image], centers[image], weights[image], rounds)
        assert found.labels[image].tolist() == labels
        assert float(found.inertia[image]) == pytest.approx(inertia, rel=1e-4)


def test_blobs_are_found() -> None:
    points, truth = blobs(6, 20, 0.5)
    labels = kmeans(points, 6, generators(1)).labels[0]
    for blob in range(6):
        assert len(labels[truth == blob].unique()) == 1
    assert len(labels.unique()) == 6


def test_an_image_is_clustered_alike_whatever_the_others_are() -> None:
    points = torch.randn(3, 50, 4, generator=torch.Generator().manual_seed(1))
    together = kmeans(points, 5, generators(3))
    alone = kmeans(points[1:2], 5, generators(3)[1:2])
    assert torch.equal(together.labels[1], alone.labels[0])


def test_points_without_weight_move_no_center_and_get_the_nearest_one() -> None:
    points, truth = blobs(2, 20, 0.1)
    far = torch.cat([points, torch.full((1, 5, 8), -500.0)], 1)
    weights = torch.ones(1, 45)
    weights[:, 40:] = 0
    found = kmeans(far, 2, generators(1), weights=weights)
    assert len(found.labels[0, :20].unique()) == len(found.labels[0, 20:40].unique()) == 1
    assert found.labels[0, 0] != found.labels[0, 20]
    assert float(found.inertia) < 20
    assert found.labels[0, 40:].unique().numel() == 1
    assert len(truth) == 40


def test_an_empty_cluster_begins_anew_at_the_farthest_point() -> None:
    points = torch.tensor([[[0.0], [1.0], [2.5], [30.0]]])
    # Nothing is nearest to the last two centers: they become 30 and 2.5, the first one the mean, 8.375. That has no
    # point then, and becomes 0, from which 2.5 was farther than any other from its center.
    found = lloyd(points, torch.tensor([[[1.0], [900.0], [900.0]]]), rounds=3)
    assert sorted(found.centers[0, :, 0].tolist()) == [0.0, 1.75, 30.0]


def test_more_clusters_than_different_points_are_no_error() -> None:
    found = kmeans(torch.zeros(1, 6, 2), 3, generators(1))
    assert float(found.inertia) == 0
    assert not bool(found.centers.isnan().any())


def test_more_restarts_never_have_more_inertia() -> None:
    points = torch.randn(1, 80, 2, generator=torch.Generator().manual_seed(2))
    few, many = (float(kmeans(points, 7, generators(1), restarts=n).inertia) for n in (1, 8))
    assert many <= few
