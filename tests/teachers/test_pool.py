"""Batches handed in and targets collected, in the student's own process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch

from datalake.sample import Sample
from teachers.card import TeacherCard, TeacherError
from teachers.pool import LocalPool
from teachers.target import Target
from tests.student.students import SHADES, ColorTeacher
from tests.teachers.cards import lidar_card, lidar_teacher

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
    pool = LocalPool([teacher], GRID)
    targets = pool.collect(pool.submit(drive_samples[:2]))
    assert targets.keys() == pool.cards.keys() == {"lidar"}
    expected = teacher.predict(drive_samples[:2], *GRID)
    assert torch.equal(targets["lidar"].valid, expected.valid)
    assert torch.equal(targets["lidar"].values, expected.values.half().float())


def test_answers_about_other_samples_are_noticed(drive_samples: list[Sample]) -> None:
    pool = LocalPool([Swapper()], GRID)
    ticket = pool.submit(drive_samples[:2])
    with pytest.raises(TeacherError, match="swapper predicted other samples than were submitted: sample 0"):
        pool.collect(ticket)


def test_labels_do_not_reach_the_teachers(drive_samples: list[Sample]) -> None:
    pool = LocalPool([LabelSeeker()], GRID)
    assert pool.collect(pool.submit(drive_samples[:1]))["seeker"].valid.any()


def test_a_full_window_refuses_more(drive_samples: list[Sample]) -> None:
    pool = LocalPool([lidar_teacher()], GRID, window=2)
    first, _ = pool.submit(drive_samples[:1]), pool.submit(drive_samples[1:2])
    with pytest.raises(TeacherError, match="2 batches are in flight"):
        pool.submit(drive_samples[2:3])
    pool.collect(first)
    pool.submit(drive_samples[2:3])


def test_batches_may_be_collected_in_any_order_and_once(drive_samples: list[Sample]) -> None:
    pool = LocalPool([lidar_teacher()], GRID, window=2)
    first, second = pool.submit(drive_samples[:1]), pool.submit(drive_samples[1:2])
    assert pool.collect(second)["lidar"].keys == (drive_samples[1].key,)
    assert pool.collect(first)["lidar"].keys == (drive_samples[0].key,)
    with pytest.raises(TeacherError, match="batch 0 is not in flight"):
        pool.collect(first)


@pytest.mark.parametrize("window", [1, 2, 4, 9])
def test_following_a_loader_keeps_pace_with_the_student(drive_samples: list[Sample], window: int) -> None:
    pool = LocalPool([lidar_teacher()], GRID, window=window)
    taken = 0

    def loader() -> Iterator[list[Sample]]:
        nonlocal taken
        for sample in drive_samples:
            taken += 1
            yield [sample]

    for trained, (batch, targets) in enumerate(pool.follow(loader())):
        assert targets["lidar"].keys == (batch[0].key,) == (drive_samples[trained].key,)
        assert taken == min(trained + window, 6)
        assert pool.in_flight < window
    assert taken == 6
    assert pool.in_flight == 0


def test_whoever_stops_following_leaves_nothing_behind(drive_samples: list[Sample]) -> None:
    pool = LocalPool([lidar_teacher()], GRID, window=3)
    following = pool.follow([[sample] for sample in drive_samples])
    next(following)
    assert pool.in_flight == 2
    following.close()
    assert pool.in_flight == 0


def test_teachers_of_one_name_are_refused() -> None:
    with pytest.raises(TeacherError, match="two teachers are called lidar"):
        LocalPool([lidar_teacher(), lidar_teacher()], GRID)


def test_a_window_of_nothing_is_refused() -> None:
    with pytest.raises(TeacherError, match="at least 1 batch, got: 0"):
        LocalPool([lidar_teacher()], GRID, window=0)


class Shouter:
    """Says more than half precision can hold."""

    card: TeacherCard = replace(lidar_card(), name="shouter")

    def predict(self, samples: Sequence[Sample], height: int, width: int) -> Target:
        """Return the answers a million times as loud."""
        target = lidar_teacher().predict(samples, height, width)
        return replace(target, values=target.values * 1e6)


def test_what_half_precision_cannot_hold_is_an_error(drive_samples: list[Sample]) -> None:
    pool = LocalPool([lidar_teacher(), Shouter()], GRID)
    ticket = pool.submit(drive_samples[:2])
    with pytest.raises(TeacherError, match="beyond what float16 holds"):
        pool.collect(ticket)


class Stranger:
    """Says a class that is not on its card, in the second sample's last cell."""

    card: TeacherCard = ColorTeacher(SHADES).card

    def predict(self, samples: Sequence[Sample], height: int, width: int) -> Target:
        """Return class 3 of 0 … 2 there, and 0 everywhere else."""
        values = torch.zeros(len(samples), 1, height, width, dtype=torch.int64)
        values[1, 0, -1, -1] = 3
        return Target(tuple(sample.key for sample in samples), values, torch.ones_like(values, dtype=torch.bool))


def test_a_class_that_is_not_on_the_card_is_refused_with_the_sample(drive_samples: list[Sample]) -> None:
    room = LocalPool([Stranger()], GRID)
    ticket = room.submit(drive_samples[:3])
    with pytest.raises(TeacherError, match=rf"shades: expected classes 0 … 2 .* got: 3 of {drive_samples[1].key};"):
        room.collect(ticket)


def test_whatever_a_teacher_raises_names_the_samples(
    drive_samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("no such channel")

    teacher = Swapper()
    monkeypatch.setattr(teacher, "predict", broken)
    pool = LocalPool([teacher], (16, 24))
    with pytest.raises(ValueError, match="no such channel") as caught:
        pool.collect(pool.submit(drive_samples[:2]))
    assert caught.value.__notes__ == [f"about {drive_samples[0].key}, {drive_samples[1].key}"]
