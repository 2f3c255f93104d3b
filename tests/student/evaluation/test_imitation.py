"""What imitation is worth, by hand and by its properties."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from student.config import StudentError
from student.evaluation.imitation import CellMean, ClassScores, RegressionScores
from teachers.target import Target
from tests.teachers.test_target import keys, random_target

NAMES = ("BACKGROUND", "VEHICLE", "PEDESTRIAN")


def cells(*values: tuple[float, ...] | None) -> Target:
    """Return a target of one sample, one row of cells, each with a value per channel; None: not valid."""
    channels = next(len(value) for value in values if value is not None)
    rows = [(0.0,) * channels if value is None else value for value in values]
    valid = torch.tensor([value is not None for value in values]).reshape(1, 1, 1, -1)
    return Target(keys(1), torch.tensor(rows, dtype=torch.float32).T.reshape(1, channels, 1, -1), valid)


def class_cells(*numbers: int | None) -> Target:
    """Return a target of one sample and one row of cells of these classes; None: not valid."""
    values = torch.tensor([number or 0 for number in numbers], dtype=torch.int64).reshape(1, 1, 1, -1)
    return Target(keys(1), values, torch.tensor([number is not None for number in numbers]).reshape(values.shape))


def rows_of(values: Tensor, where: Tensor) -> np.ndarray:
    """Return float64 [n, D] of the cells [B, 1, h, w]."""
    return values.permute(0, 2, 3, 1)[where[:, 0]].double().numpy()


def regression(
    prediction: Tensor, target: Target, foreground: Tensor | None = None, position_mean: Tensor | None = None
) -> dict[str, float]:
    scores = RegressionScores(target.values.shape[1], position_mean)
    scores.add(prediction, target, foreground)
    return scores.metrics()


def test_regression_metrics_by_hand() -> None:
    target = cells((3, 0), (1, 2), None, (2, 4))
    prediction = torch.tensor([(3, 0), (1, 0), (99, 99), (0, 4)], dtype=torch.float32).T.reshape(1, 2, 1, 4)
    # Means 2 and 2, deviations 1, 1, 0 and 4, 0, 4.
    assert regression(prediction, target) == pytest.approx(
        {
            "cells": 3,
            "R2": 1 - 8 / 10,
            "R2/worst_channel": 1 - 4 / 2,
            "cosine": (1 + 1 / math.sqrt(5) + 4 / math.sqrt(20)) / 3,
            # (1, 1) against (3, 0), (1, 2) and (2, 4).
            "cosine/mean": (1 / math.sqrt(2) + 3 / math.sqrt(10) + 6 / math.sqrt(40)) / 3,
        }
    )


def test_foreground_is_compared_with_its_own_mean() -> None:
    target = cells((0,), (10,), (14,), None)
    prediction = torch.tensor([5.0, 10, 15, 0]).reshape(1, 1, 1, 4)
    foreground = torch.tensor([False, True, True, True]).reshape(1, 1, 1, 4)
    # About 12: deviations 4 and 4, errors 0 and 1.
    assert regression(prediction, target, foreground)["R2/foreground"] == pytest.approx(1 - 1 / 8)


def test_batches_of_unknown_foreground_do_not_count_for_it() -> None:
    target = cells((0,), (10,), (14,))
    scores = RegressionScores(1)
    scores.add(target.values * 0, target)
    assert "R2/foreground" not in scores.metrics()
    scores.add(target.values, target, torch.ones_like(target.valid))
    assert scores.metrics()["R2/foreground"] == 1
    assert scores.metrics()["cells"] == 6


def test_position_mean_is_judged_as_a_predictor() -> None:
    target = cells((0,), (10,), None, (14,))
    position = torch.tensor([0.0, 8, 50, 14]).reshape(1, 1, 4)
    deviations = 64 + 4 + 36
    result = regression(target.values, target, position_mean=position)
    assert result["R2/position"] == pytest.approx(1 - 4 / deviations)
    assert result["R2"] == 1


def test_the_mean_is_that_of_the_whole_data_set() -> None:
    scores = RegressionScores(1)
    for value in (0.0, 4.0):
        scores.add(torch.full((1, 1, 1, 1), 1.0), cells((value,)))
    # About 2, not about each batch's own mean.
    assert scores.metrics()["R2"] == pytest.approx(1 - (1 + 9) / 8)


def test_constant_channels_have_no_share_and_constant_targets_no_figure() -> None:
    target = cells((1, 5), (3, 5))
    result = regression(target.values + torch.tensor([0.0, 1.0]).reshape(1, 2, 1, 1), target)
    assert result["R2/worst_channel"] == 1
    assert result["R2"] == pytest.approx(1 - 2 / 2)
    assert regression(torch.zeros(1, 1, 1, 2), cells((0.1,), (0.1,))).keys() == {"cells", "cosine", "cosine/mean"}


def test_without_valid_cells_only_their_count_is_told() -> None:
    assert RegressionScores(3).metrics() == {"cells": 0}
    target = random_target(0, classes=False, share=0.0)
    assert regression(target.values + 1, target, torch.ones_like(target.valid)) == {"cells": 0}


def test_a_prediction_of_zero_is_not_similar() -> None:
    result = regression(torch.zeros(1, 2, 1, 2), cells((1, 2), (2, 1)))
    assert result["cosine"] == 0


@given(st.integers(0, 1000), st.sampled_from([0.3, 1.0]), st.floats(-1e4, 1e4, width=32))
@settings(deadline=None, max_examples=50)
def test_the_perfect_prediction_has_one_and_the_mean_zero(seed: int, share: float, offset: float) -> None:
    target = random_target(seed, classes=False, share=share)
    if target.valid.sum() < 2:
        return
    target = dataclasses.replace(target, values=(target.values + offset) * target.valid)
    perfect = regression(target.values, target, target.valid)
    for name in ("R2", "R2/foreground", "R2/worst_channel", "cosine"):
        assert perfect[name] == pytest.approx(1)
    mean = torch.tensor(rows_of(target.values, target.valid).mean(0))[None, :, None, None].expand_as(target.values)
    trivial = regression(mean, target)
    # The targets are float32 about the offset and vary by about 1: the mean is exact.
    assert trivial["R2"] == pytest.approx(0, abs=1e-9)
    assert trivial["R2/worst_channel"] == pytest.approx(0, abs=1e-9)
    assert trivial["cosine"] == pytest.approx(trivial["cosine/mean"])
    assert perfect["cosine/mean"] == pytest.approx(trivial["cosine/mean"])


@given(st.integers(0, 1000), st.integers(1, 5), st.floats(-1e4, 1e4, width=32))
@settings(deadline=None, max_examples=50)
def test_many_batches_are_one_data_set(seed: int, batches: int, offset: float) -> None:
    random = torch.Generator().manual_seed(seed)
    scores = RegressionScores(3, position_mean := torch.randn(3, 4, 5, generator=random) + offset)
    predicted, true, objects, position = [], [], [], []
    for number in range(batches):
        target = random_target(seed + number, classes=False, share=0.7)
        # What is not valid must not matter, whatever it is.
        target = dataclasses.replace(target, values=(target.values + offset).where(target.valid, torch.nan))
        prediction = (target.values + 0.5 * torch.randn(2, 3, 4, 5, generator=random)).where(target.valid, torch.inf)
        foreground = torch.rand(2, 1, 4, 5, generator=random) < 0.6
        scores.add(prediction, target, foreground)
        predicted.append(rows_of(prediction, target.valid))
        true.append(rows_of(target.values, target.valid))
        objects.append(foreground[target.valid].numpy())
        position.append(rows_of(position_mean.expand_as(prediction), target.valid))
    p, t, on, at = (np.concatenate(parts) for parts in (predicted, true, objects, position))
    length = np.linalg.norm
    mean = t.mean(0)
    by_channel = 1 - ((p - t) ** 2).sum(0) / ((t - mean) ** 2).sum(0)
    assert scores.metrics() == pytest.approx(
        {
            "cells": len(t),
            "R2": 1 - ((p - t) ** 2).sum() / ((t - mean) ** 2).sum(),
            "R2/foreground": 1 - ((p - t)[on] ** 2).sum() / ((t[on] - t[on].mean(0)) ** 2).sum(),
            "R2/position": 1 - ((at - t) ** 2).sum() / ((t - mean) ** 2).sum(),
            "R2/worst_channel": by_channel.min(),
            "cosine": ((p * t).sum(1) / length(p, axis=1) / length(t, axis=1)).mean(),
            "cosine/mean": (t @ mean / length(mean) / length(t, axis=1)).mean(),
        },
        rel=1e-6,
        abs=1e-9,
    )


def test_regression_of_other_shapes_is_refused() -> None:
    target = random_target(0, classes=False)
    scores = RegressionScores(3)
    with pytest.raises(ValueError, match=r"prediction \[2, 3, 4, 5\], got: \[2, 3, 5, 4\]"):
        scores.add(target.values.transpose(2, 3), target)
    with pytest.raises(ValueError, match=r"prediction \[2, 3, 4, 5\], got: \[1, 3, 4, 5\]"):
        scores.add(target.values[:1], target)
    with pytest.raises(ValueError, match=r"foreground bool \[2, 1, 4, 5\], got: torch.bool \[2, 4, 5\]"):
        scores.add(target.values, target, target.valid[:, 0])
    with pytest.raises(ValueError, match=r"got: torch\.float32"):
        scores.add(target.values, target, target.valid.float())
    with pytest.raises(ValueError, match="5 channels, got: 3"):
        RegressionScores(5).add(target.values, target)
    with pytest.raises(ValueError, match="got: one of classes"):
        scores.add(target.values, random_target(0, classes=True))
    with pytest.raises(ValueError, match=r"position_mean \[3, h, w\], got: \[4, 4, 5\]"):
        RegressionScores(3, torch.zeros(4, 4, 5))
    with pytest.raises(ValueError, match=r"position_mean \[3, 5, 4\], got: \[3, 4, 5\]"):
        RegressionScores(3, torch.zeros(3, 5, 4)).add(target.values, target)
    assert scores.metrics() == {"cells": 0}


def test_values_that_are_not_finite_are_refused() -> None:
    target = cells((1,), (2,))
    with pytest.raises(ValueError, match="finite"):
        regression(torch.tensor([1.0, torch.nan]).reshape(1, 1, 1, 2), target)


def logits_of(numbers: Tensor, classes: int) -> Tensor:
    """Return logits [B, K, h, w] whose largest is the class of the cells [B, 1, h, w]."""
    return torch.nn.functional.one_hot(numbers[:, 0], classes).permute(0, 3, 1, 2).float() - 3


def test_class_metrics_by_hand() -> None:
    scores = ClassScores(NAMES)
    answer = torch.tensor([0, 0, 0, 1, 1, 0, 2, 2]).reshape(1, 1, 1, -1)
    scores.add(logits_of(answer, 3), class_cells(0, 0, 0, 0, 1, 1, None, None))
    assert scores.metrics() == pytest.approx(
        {
            "accuracy": 4 / 6,
            "mIoU": (3 / 5 + 1 / 3) / 2,
            "IoU/BACKGROUND": 3 / 5,
            "IoU/VEHICLE": 1 / 3,
            "trivial/accuracy": 4 / 6,
            "trivial/mIoU": 4 / 6 / 2,
        }
    )


def test_the_trivial_answer_is_background_even_where_another_class_is_commoner() -> None:
    scores = ClassScores(NAMES)
    target = class_cells(0, 1, 1, 2)
    scores.add(logits_of(target.values, 3), target)
    metrics = scores.metrics()
    assert (metrics["trivial/accuracy"], metrics["trivial/mIoU"]) == pytest.approx((1 / 4, 1 / 4 / 3))
    assert metrics["mIoU"] == metrics["accuracy"] == 1


def test_saying_background_is_as_good_as_the_trivial_answer() -> None:
    scores = ClassScores((*NAMES, "CYCLIST"))
    for seed in range(3):
        target = random_target(seed, classes=True)
        scores.add(logits_of(torch.zeros_like(target.values), 4), target)
    metrics = scores.metrics()
    assert metrics["mIoU"] == metrics["trivial/mIoU"] > 0
    assert metrics["accuracy"] == metrics["trivial/accuracy"] > 0


def test_without_valid_cells_there_are_no_class_metrics() -> None:
    scores = ClassScores(NAMES)
    assert scores.metrics() == {}
    scores.add(torch.zeros(1, 3, 1, 2), class_cells(None, None))
    assert scores.metrics() == {}


def test_what_is_not_valid_has_no_class() -> None:
    target = class_cells(0, 1, None)
    scores = ClassScores(NAMES)
    scores.add(logits_of(target.values, 3), dataclasses.replace(target, values=target.values + 99 * ~target.valid))
    assert scores.metrics()["accuracy"] == 1


def test_classes_of_other_shapes_are_refused() -> None:
    target = random_target(0, classes=True)
    scores = ClassScores(NAMES)
    with pytest.raises(ValueError, match=r"logits \[2, 3, 4, 5\], got: \[2, 4, 4, 5\]"):
        scores.add(torch.zeros(2, 4, 4, 5), target)
    with pytest.raises(ValueError, match=r"logits \[2, 3, 4, 5\], got: \[2, 3, 5, 4\]"):
        scores.add(torch.zeros(2, 3, 5, 4), target)
    with pytest.raises(ValueError, match="classes below 3, got: 0 … 3"):
        scores.add(torch.zeros(2, 3, 4, 5), target)
    with pytest.raises(ValueError, match="got: one of regression"):
        scores.add(torch.zeros(2, 3, 4, 5), random_target(0, classes=False))


def test_means_of_cells_by_hand() -> None:
    mean = CellMean(2, 1, 3)
    mean.add(cells((1, 10), (5, 50), None))
    mean.add(cells((3, 30), None, None))
    # The third cell was never valid: (1 + 5 + 3) / 3 = 3 and (10 + 50 + 30) / 3 = 30.
    assert mean.values().tolist() == [[[2, 5, 3]], [[20, 50, 30]]]
    assert mean.values().dtype == torch.float32


def test_what_is_not_valid_is_in_no_mean() -> None:
    target = random_target(4, classes=False)
    mean, clean = CellMean(3, 4, 5), CellMean(3, 4, 5)
    mean.add(dataclasses.replace(target, values=target.values.where(target.valid, torch.nan)))
    clean.add(target)
    assert torch.equal(mean.values(), clean.values())


@given(st.integers(0, 1000), st.integers(1, 4))
@settings(deadline=None, max_examples=30)
def test_on_its_own_data_the_position_mean_is_no_worse_than_the_channel_mean(seed: int, batches: int) -> None:
    targets = [random_target(seed + number, classes=False) for number in range(batches)]
    if sum(int(target.valid.sum()) for target in targets) < 2:
        return
    mean = CellMean(3, 4, 5)
    for target in targets:
        mean.add(target)
    scores = RegressionScores(3, mean.values())
    for target in targets:
        scores.add(target.values, target)
    assert scores.metrics()["R2/position"] >= -1e-6


def test_cell_means_that_do_not_fit_are_refused() -> None:
    with pytest.raises(StudentError, match="predicts no valid cell of the training split"):
        CellMean(3, 4, 5).values()
    with pytest.raises(ValueError, match=r"targets \[B, 3, 5, 4\], got: \[2, 3, 4, 5\]"):
        CellMean(3, 5, 4).add(random_target(0, classes=False))
    with pytest.raises(ValueError, match="2 channels, got: 3"):
        CellMean(2, 4, 5).add(random_target(0, classes=False))
    with pytest.raises(ValueError, match="got: one of classes"):
        CellMean(1, 4, 5).add(random_target(0, classes=True))
