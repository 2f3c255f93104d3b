"""A probe reads what was planted in features, all of it, and nothing off noise."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from student.evaluation.probe import (
    RATES,
    ClassesRead,
    LinearProbe,
    NumbersRead,
    ProbeRows,
    as_map,
    draw_rows,
    fit_probe,
    guess,
    read_rows,
    tuned_probe,
)


def chance(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(features: Tensor, labels: Tensor) -> ProbeRows:
    return ProbeRows(features, labels, torch.arange(len(labels)))


def planted(count: int, seed: int, signal: float = 1.0) -> ProbeRows:
    """Return noise of any scale, in which the class, 0 … 2, moves three of 20 features."""
    labels = torch.randint(3, (count,), generator=chance(seed))
    features = 0.1 * torch.randn(count, 20, generator=chance(seed + 1))
    features[:, 4:7] += signal * torch.eye(3)[labels]
    return rows(1000 * features + 50, labels)


def test_planted_classes_are_read_completely() -> None:
    probe, rate = tuned_probe(planted(300, 0), planted(100, 10), 3)
    assert read_rows(probe, planted(500, 20)).metrics() == {"mIoU": 1.0, "recall": 1.0}
    assert rate in RATES


def test_off_noise_no_more_than_chance_is_read() -> None:
    probe, _ = tuned_probe(planted(2000, 0, 0.0), planted(500, 10, 0.0), 3)
    assert read_rows(probe, planted(3000, 20, 0.0)).metrics()["recall"] == pytest.approx(1 / 3, abs=0.04)


def test_planted_distances_are_read() -> None:
    def far(count: int, seed: int) -> ProbeRows:
        distance = 3 + 70 * torch.rand(count, generator=chance(seed))
        features = torch.randn(count, 8, generator=chance(seed + 1))
        features[:, 2] = distance.log()
        return rows(features, distance)

    probe, _ = tuned_probe(far(400, 0), far(100, 10), None)
    assert read_rows(probe, far(300, 20)).metrics()["AbsRel"] < 0.02


def test_a_rare_class_counts_as_much_as_a_frequent_one() -> None:
    # Both have the same mean but for a small step, so that who is weighted by frequency never says 1.
    labels = (torch.arange(4000) % 40 == 0).long()
    features = torch.randn(4000, 1, generator=chance(3)) + labels[:, None]
    metrics = read_rows(fit_probe(rows(features, labels), 2, 1e-1), rows(features, labels)).metrics()
    # Of two normal distributions a deviation apart, halfway between them: Phi(.5).
    assert metrics["recall"] == pytest.approx(0.5 * (1 + math.erf(0.5 / math.sqrt(2))), abs=0.03)


def test_the_scale_of_features_changes_nothing() -> None:
    some = planted(200, 0, 0.1)
    one = fit_probe(some, 3, 1e-2).predict(as_map(some.features))
    scaled = rows(some.features / 77 - 3, some.labels)
    assert torch.equal(one, fit_probe(scaled, 3, 1e-2).predict(as_map(scaled.features)))


def test_on_a_map_each_cell_is_read_by_itself() -> None:
    some = planted(200, 0)
    probe = fit_probe(some, 3, 1e-2)
    grid = some.features[:6].T.reshape(1, 20, 2, 3)
    assert probe.predict(grid).flatten().tolist() == some.labels[:6].tolist()


def test_a_probe_is_a_linear_layer_on_standardized_features() -> None:
    some = planted(50, 0)
    probe = LinearProbe(some, 3)
    assert {name for name, _ in probe.named_parameters()} == {"layer.weight", "layer.bias"}
    torch.nn.init.ones_(probe.layer.weight)
    found = probe(as_map(some.features))[0, 0, 0]
    z = (some.features - some.features.mean(0)) / some.features.std(0, correction=0)
    torch.testing.assert_close(found, z.sum(1), rtol=1e-3, atol=1e-3)


def test_metrics_are_what_they_are_by_hand() -> None:
    classes = ClassesRead(4)
    classes.add(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 1]))
    # Class 0: one of two said and there; class 1: one of three; class 2 is not labelled.
    assert classes.metrics() == {"mIoU": pytest.approx((1 / 2 + 1 / 3) / 2), "recall": pytest.approx((1 + 1 / 3) / 2)}
    numbers = NumbersRead()
    numbers.add(torch.tensor([10.0, 30.0]), torch.tensor([10.0, 20.0]))
    assert numbers.metrics() == {"AbsRel": pytest.approx(0.25), "delta1": 0.5}


def test_a_guess_is_the_best_that_can_be_said_without_looking() -> None:
    assert guess(rows(torch.zeros(5, 1), torch.tensor([2, 0, 2, 1, 2])), 3) == 2
    distances = 2 + 60 * torch.rand(101, generator=chance(0))

    def error(constant: float) -> float:
        return float(((constant - distances).abs() / distances).mean())

    best = guess(rows(torch.zeros(101, 1), distances), None)
    assert error(best) <= min(error(float(other)) for other in distances) + 1e-9


def test_cells_without_a_label_are_not_drawn() -> None:
    maps = torch.arange(24.0).view(2, 3, 4)
    labels = torch.full((3, 4), -1)
    labels[0, 1], labels[2, 3] = 5, 6
    drawn = draw_rows(maps, labels, frame=7, most=10, seed=0, known=lambda values: values >= 0)
    order = drawn.labels.argsort()
    assert drawn.labels[order].tolist() == [5, 6]
    assert drawn.features[order].tolist() == [[1.0, 13.0], [11.0, 23.0]]
    assert drawn.frame.tolist() == [7, 7]
    assert len(draw_rows(maps, labels, 7, 1, 0, lambda values: values >= 0).labels) == 1
