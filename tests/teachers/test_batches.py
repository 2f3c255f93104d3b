"""Batches of labelled samples."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datalake.sample import Sample
from teachers.batches import labelled_batches
from tests.teachers.samples import sample
from training.distributed import Distributed
from training.errors import TrainingError


def numbers(labelled: list[bool], size: int, start: int = 0) -> list[tuple[list[int], int]]:
    """Return what batches hold, by number, and how far the stream was read; the stream starts at `start`."""
    stream = (sample(number) for number in range(start, len(labelled)))

    def is_labelled(one: Sample) -> bool:
        return labelled[one.key.timestamp_us]

    batches = labelled_batches(stream, is_labelled, size, start=start, patience=len(labelled) + 1)
    return [([one.key.timestamp_us for one in batch.samples], batch.cursor) for batch in batches]


def test_unlabelled_samples_are_passed_over() -> None:
    assert numbers([True, False, True, True, False, False, True, True], 2) == [([0, 2], 3), ([3, 6], 7)]


@given(labelled=st.lists(st.booleans(), min_size=1, max_size=40), size=st.integers(1, 5), data=st.data())
def test_starting_where_a_batch_ended_gives_the_next(labelled: list[bool], size: int, data: st.DataObject) -> None:
    whole = numbers(labelled, size)
    done = data.draw(st.integers(0, len(whole)))
    start = whole[done - 1][1] if done else 0
    assert numbers(labelled, size, start) == whole[done:]


def test_an_epoch_without_labels_ends_in_an_error() -> None:
    stream = (sample(number) for number in range(100))
    with pytest.raises(TrainingError, match="none of 5 samples has the labels"):
        next(labelled_batches(stream, lambda one: one.key.timestamp_us < 3, 4, start=0, patience=5))


def test_workers_cut_every_batch_and_read_on_together() -> None:
    def batches(distributed: Distributed) -> list[tuple[list[int], int]]:
        stream = (sample(number) for number in range(20))
        found = labelled_batches(
            stream, lambda one: one.key.timestamp_us % 3 != 0, 4, start=0, patience=9, distributed=distributed
        )
        return [([one.key.timestamp_us for one in batch.samples], batch.cursor) for batch in found]

    alone, first, second = batches(Distributed()), batches(Distributed(0, 2)), batches(Distributed(1, 2))
    assert len(alone) == 3
    assert [(one + two, cursor) for (one, cursor), (two, _) in zip(first, second, strict=True)] == alone
    assert [cursor for _, cursor in second] == [cursor for _, cursor in alone]
