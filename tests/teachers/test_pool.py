"""Batches and their targets, in the student's own process."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from datalake.sample import Sample
from teachers.card import TeacherCard, TeacherError
from teachers.pool import LocalPool
from teachers.target import Target
from tests.student.students import SHADES, ColorTeacher
from tests.support.training_step import targets_of
from tests.teachers.cards import lidar_card, lidar_teacher
from training.objective import Batch

GRID = (16, 24)


class Swapper:
    """A teacher that mixes up whom it answers."""

    card: TeacherCard = replace(lidar_card(), name="swapper")

    def predict(self, samples: Sequence[Sample], height: int, width: int) -> Target:
        """Return the answers in reverse."""
        return lidar_teacher().predict(list(samples)[::-1], height, width)


class LabelSeeker:
    """A teacher that looks whether it can see labels."""

    card: TeacherCard = replace(lidar_card(), name="seeker")

    def predict(self, samples: Sequence[Sample], height: int, width: int) -> Target:
        """Return an answer where there are none."""
        for sample in samples:
            assert sample.panoptic is None
            assert sample.lidar is None or sample.lidar.semantic_class is None
        return lidar_teacher().predict(samples, height, width)


def test_targets_come_in_half_precision_under_the_teachers_names(drive_samples: list[Sample]) -> None:
    teacher = lidar_teacher()
    pool = LocalPool({"points": teacher}, GRID)
    targets = targets_of(pool, drive_samples[:2])
    assert targets.keys() == pool.cards.keys() == {"points"}
    expected = teacher.predict(drive_samples[:2], *GRID)
    assert torch.equal(targets["points"].valid, expected.valid)
    assert torch.equal(targets["points"].values, expected.values.half().float())


def test_answers_about_other_samples_are_noticed(drive_samples: list[Sample]) -> None:
    following = LocalPool({"swapper": Swapper()}, GRID).follow([drive_samples[:1], drive_samples[:2]])
    next(following)
    message = "swapper answered about other samples than it was asked: sample 0 of batch 1 is"
    with pytest.raises(TeacherError, match=message):
        next(following)


def test_labels_do_not_reach_the_teachers(drive_samples: list[Sample]) -> None:
    pool = LocalPool({"seeker": LabelSeeker()}, GRID)
    assert targets_of(pool, drive_samples[:1])["seeker"].valid.any()


class Counting(LocalPool):
    """Counts the batches that were asked about and whose targets nobody has."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._questions: list[weakref.ref[Question]] = []

    def in_flight(self) -> int:
        """Return how many there are."""
        return sum(question() is not None for question in self._questions)

    def _ask(self, batch: list[Sample]) -> Question:
        question = Question(batch)
        self._questions.append(weakref.ref(question))
        return question

    def _answers(self, asked: Question) -> Mapping[str, Target]:
        return super()._answers(asked.batch)


@dataclass
class Question:
    """A batch that is asked about."""

    batch: list[Sample]


@pytest.mark.parametrize("window", [1, 2, 4])
def test_no_more_than_a_window_is_in_flight(drive_samples: list[Sample], window: int) -> None:
    pool = Counting({"shades": ColorTeacher(SHADES)}, GRID, window=window)
    seen = []

    def loader() -> Iterator[list[Sample]]:
        for sample in drive_samples:
            # What is asked about next comes on top of these.
            seen.append(pool.in_flight())
            yield [sample]

    for _ in pool.follow(loader()):
        assert pool.in_flight() < window
    assert max(seen) == window - 1
    assert pool.in_flight() == 0


def test_batches_of_a_training_keep_their_places(drive_samples: list[Sample]) -> None:
    pool = LocalPool({"lidar": lidar_teacher()}, GRID, window=3)
    batches = [Batch(drive_samples[start : start + 2], 1, start) for start in (0, 2, 4)]
    taught = list(pool.teach(batches))
    assert [batch for batch, _ in taught] == batches
    for batch, targets in taught:
        assert targets["lidar"].keys == tuple(sample.key for sample in batch.samples)


@pytest.mark.parametrize("window", [1, 2, 4, 9])
def test_following_a_loader_keeps_pace_with_the_student(drive_samples: list[Sample], window: int) -> None:
    pool = LocalPool({"lidar": lidar_teacher()}, GRID, window=window)
    taken = 0

    def loader() -> Iterator[list[Sample]]:
        nonlocal taken
        for sample in drive_samples:
            taken += 1
            yield [sample]

    for trained, (batch, targets) in enumerate(pool.follow(loader())):
        assert targets["lidar"].keys == (batch[0].key,) == (drive_samples[trained].key,)
        assert taken == min(trained + window, 6)
    assert taken == trained + 1 == 6


def test_whoever_stops_following_leaves_nothing_behind(drive_samples: list[Sample]) -> None:
    pool = Counting({"shades": ColorTeacher(SHADES)}, GRID, window=3)
    following = pool.follow([[sample] for sample in drive_samples])
    next(following)
    assert pool.in_flight() == 2
    following.close()
    assert pool.in_flight() == 0


def test_a_window_of_nothing_is_refused() -> None:
    with pytest.raises(TeacherError, match="at least 1 batch, got: 0"):
        LocalPool({"lidar": lidar_teacher()}, GRID, window=0)


class Shouter:
    """Says more than half precision can hold."""

    card: TeacherCard = replace(lidar_card(), name="shouter")

    def predict(self, samples: Sequence[Sample], height: int, width: int) -> Target:
        """Return the answers a million times as loud."""
        target = lidar_teacher().predict(samples, height, width)
        return replace(target, values=target.values * 1e6)


def test_what_half_precision_cannot_hold_is_an_error(drive_samples: list[Sample]) -> None:
    pool = LocalPool({"lidar": lidar_teacher(), "shouter": Shouter()}, GRID)
    with pytest.raises(TeacherError, match="beyond what float16 holds"):
        targets_of(pool, drive_samples[:2])


class OutOfRangeTeacher:
    """Predicts a class that is not on its card, in the second sample's last cell."""

    card: TeacherCard = ColorTeacher(SHADES).card

    def predict(self, samples: Sequence[Sample], height: int, width: int) -> Target:
        """Return class 3 of 0 … 2 there, and 0 everywhere else."""
        values = torch.zeros(len(samples), 1, height, width, dtype=torch.int64)
        values[1, 0, -1, -1] = 3
        return Target(tuple(sample.key for sample in samples), values, torch.ones_like(values, dtype=torch.bool))


def test_a_class_that_is_not_on_the_card_is_refused_with_the_sample(drive_samples: list[Sample]) -> None:
    pool = LocalPool({"shades": OutOfRangeTeacher()}, GRID)
    with pytest.raises(TeacherError, match=rf"shades: expected classes 0 … 2 .* got: 3 of {drive_samples[1].key};"):
        targets_of(pool, drive_samples[:3])


def test_whatever_a_teacher_raises_names_the_samples(
    drive_samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("no such channel")

    teacher = Swapper()
    monkeypatch.setattr(teacher, "predict", broken)
    pool = LocalPool({"swapper": teacher}, GRID)
    with pytest.raises(ValueError, match="no such channel") as caught:
        targets_of(pool, drive_samples[:2])
    assert caught.value.__notes__ == [f"about {drive_samples[0].key}, {drive_samples[1].key}"]
