"""Accuracy and IoU mean what they are said to mean."""

from __future__ import annotations

import math

import pytest
import torch

from teachers.classes import IGNORED
from teachers.confusion import Confusion

TRUTH = torch.tensor([0, 0, 0, 0, 1, 1, 2, IGNORED])
ANSWER = torch.tensor([0, 0, 0, 1, 1, 2, 2, 0])


def test_metrics_by_hand() -> None:
    metrics = Confusion.of(TRUTH, ANSWER, 4).metrics("abcd")
    assert metrics == pytest.approx(
        {
            "accuracy": 5 / 7,
            "mIoU": (3 / 4 + 1 / 3 + 1 / 2) / 3,
            "IoU/a": 3 / 4,
            "IoU/b": 1 / 3,
            "IoU/c": 1 / 2,
            "trivial/accuracy": 4 / 7,
            "trivial/mIoU": 4 / 7 / 3,
        }
    )


def test_ignored_labels_do_not_count() -> None:
    assert Confusion.of(TRUTH, ANSWER, 4).total == 7


def test_parts_add_up_to_the_whole() -> None:
    parts = Confusion.of(TRUTH[:3], ANSWER[:3], 4) + Confusion.empty(4) + Confusion.of(TRUTH[3:], ANSWER[3:], 4)
    assert torch.equal(parts.counts, Confusion.of(TRUTH, ANSWER, 4).counts)


def test_without_labels_there_are_no_metrics() -> None:
    nothing = Confusion.of(torch.full((3,), IGNORED), torch.zeros(3, dtype=torch.int64), 4)
    assert nothing.metrics("abcd") == {}
    assert math.isnan(nothing.accuracy())


def test_rows_are_labels_and_columns_answers() -> None:
    assert Confusion.of(torch.tensor([1]), torch.tensor([2]), 3).counts.tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 0]]
