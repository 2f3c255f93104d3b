"""Clusters of planted features against planted truths, by all protocols."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from student.evaluation.object_masks import ObjectTruth
from student.evaluation.principal import principal
from student.evaluation.segmentation import (
    ClusterConfig,
    LabelledImage,
    best_rule,
    cluster_images,
    differences,
    knee_metrics,
    measure_cells,
    measure_components,
    object_metrics,
    parts,
    rank_correlation,
    with_intervals,
)

GRID = (8, 12)
CONFIG = ClusterConfig(clusters=4, most=6, class_clusters=(4, 8), restarts=3, class_cells=500)
SEGMENTS = ("a", "a", "b", "c")


def scene(number: int) -> np.ndarray:
    """Return the id of each cell: sky, road, and two objects of classes of their own."""
    ids = np.zeros(GRID, np.int64)
    ids[4:] = 1
    ids[2:6, 1 + number : 4 + number] = 2
    ids[4:7, 7:10] = 3
    return ids


def images() -> list[LabelledImage]:
    found = []
    for number, segment in enumerate(SEGMENTS):
        pixels = scene(number).repeat(4, 0).repeat(4, 1)
        truth = ObjectTruth(np.where(pixels > 1, pixels - 1, 0), np.array([16, 12]))
        # Sky, road, vehicle, person.
        found.append(LabelledImage(segment, torch.zeros(3, 32, 48).byte(), truth, np.array([4, 0, 5, 6])[pixels]))
    return found


def features(noise: float) -> Tensor:
    """Return a vector of its own for each of the four things, and noise: [M, h * w, 8]."""
    random = torch.Generator().manual_seed(0)
    ids = torch.from_numpy(np.stack([scene(number) for number in range(len(SEGMENTS))])).flatten(1)
    return torch.eye(8)[ids] + noise * torch.randn(*ids.shape, 8, generator=random)


def measured(rows: Tensor) -> dict[str, float]:
    found = cluster_images(rows, GRID, range(1, 7), CONFIG, 0)
    rules = {"2": "fewest cells", "knee": "fewest cells"}
    metrics = measure_cells(images(), rows, found, rules, ["a", "b", "c"], CONFIG, 0)
    return {name: metric.value for name, metric in metrics.items()}


def test_features_that_know_the_objects_score_one() -> None:
    found = measured(features(0.02))
    assert found["A@4/iou"] == found["A@4/best"] == found["A@4/iou/0-16px"] == found["A@4/iou/16-32px"] == 1
    assert found["C@4/miou"] == found["C@8/miou"] == 1


def test_features_that_know_nothing_score_far_less() -> None:
    found = measured(torch.randn(4, 96, 8, generator=torch.Generator().manual_seed(1)))
    assert found["A@4/iou"] < 0.3
    assert found["C@4/miou"] < 0.4


def test_the_knee_is_the_number_of_things() -> None:
    # As many cells of each: knees look at the inertia, of which small things have little.
    random = torch.Generator().manual_seed(0)
    rows = torch.eye(8)[torch.arange(96) % 4] + 0.02 * torch.randn(4, 96, 8, generator=random)
    found = cluster_images(rows, GRID, range(1, 7), CONFIG, 0)
    assert found.knees.tolist() == [4] * 4
    assert np.array_equal(found.at_knee(), found.of(4))
    assert knee_metrics(images(), found)["knee/off_null"] == 1


def test_a_clustering_does_not_depend_on_how_many_others_there_are() -> None:
    rows = torch.randn(2, 96, 8, generator=torch.Generator().manual_seed(2))
    whole = cluster_images(rows, GRID, range(1, 7), CONFIG, 0).of(4)
    assert np.array_equal(whole, cluster_images(rows, GRID, [4], CONFIG, 0).of(4))


def test_the_best_cluster_is_never_worse_than_the_rules() -> None:
    found = measured(torch.randn(4, 96, 8, generator=torch.Generator().manual_seed(3)))
    assert found["B@2/oracle"] >= found["B@2/rule"]
    assert found["B@knee/oracle"] >= found["B@knee/rule"]


def test_the_best_rule_is_that_of_the_objects() -> None:
    # The objects are the smaller of two clusters.
    clusters = np.stack([(scene(number) > 1).astype(np.int64) for number in range(4)])
    assert best_rule(images(), clusters) in ("fewest cells", "second most cells")
    assert best_rule(images(), 1 - clusters) in ("fewest cells", "second most cells")


def test_as_many_components_as_things_differ_by_are_enough_and_one_is_not() -> None:
    rows = features(0.02)
    fit = principal(rows.flatten(0, 1))
    found = dict(measure_components(images(), rows, fit, (1, 3), GRID, ["a", "b", "c"], CONFIG, 0))
    assert found["PCA3/A@4/iou"].value == 1
    assert found["PCA1/A@4/iou"].value < 1


def test_components_have_the_variances_of_a_decomposition_and_explain_their_share() -> None:
    vectors = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([5.0, 3, 2, 1, 0.1])
    fit = principal(vectors)
    values = np.linalg.svd(vectors.numpy() - vectors.numpy().mean(0), compute_uv=False) ** 2 / 200
    assert fit.variance.numpy() == pytest.approx(values, rel=1e-4)
    assert fit.explained(2) == pytest.approx(values[:2].sum() / values.sum(), rel=1e-4)
    shares = np.sqrt(values) / np.sqrt(values).sum()
    assert fit.effective_rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-4)
    assert fit.project(vectors, 2).var(0, unbiased=False).numpy() == pytest.approx(values[:2], rel=1e-3)


def test_heights_are_counted_apart_and_together() -> None:
    clusters = np.stack([scene(number) for number in range(4)])
    # The second object of each image is cut in half.
    clusters[:, 4:7, 7:8] = 1
    found = object_metrics(images(), parts(clusters, 1), ["a", "b", "c"])
    assert found["iou/16-32px"].value == 1
    assert found["iou/0-16px"].value == pytest.approx(2 / 3)
    assert found["iou"].value == pytest.approx(5 / 6)


def test_ranks_correlate_as_positions_do() -> None:
    assert rank_correlation(np.array([1.0, 5, 3]), np.array([10.0, 900, 20])) == pytest.approx(1)
    # By hand: ranks 1.5, 1.5, 3 and 3, 2, 1.
    assert rank_correlation(np.array([1.0, 1, 2]), np.array([3.0, 2, 1])) == pytest.approx(-1.5 / np.sqrt(1.5 * 2))
    assert np.isnan(rank_correlation(np.ones(3), np.arange(3.0)))


def test_the_interval_of_a_difference_is_that_of_the_same_segments() -> None:
    clusters, order = np.stack([scene(number) for number in range(4)]), ["a", "b", "c"]
    good = object_metrics(images(), parts(clusters, 1), order)
    worse = object_metrics(images(), parts(np.where(clusters == 3, 1, clusters), 1), order)
    gain = differences(good, worse, 200, 0)["iou"]
    # The second object loses nearly all, in each segment: together the two scatter much more than their difference.
    assert gain["value"] == pytest.approx(1 - worse["iou"].value)
    assert 0.35 < gain["low"] <= gain["value"] <= gain["high"] < 0.45
    assert with_intervals(good, 200, 0)["iou"] == {"value": 1, "low": 1, "high": 1}


def test_clusters_of_a_knee_are_looked_for_among_all_numbers_alone() -> None:
    found = cluster_images(features(0.02), GRID, [4], replace(CONFIG, most=9), 0)
    assert found.knees.tolist() == [1] * 4
