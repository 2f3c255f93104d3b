"""Which frames a student sees, in which order, and with which labels."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from datalake.commit import LakeError
from datalake.lake import Lake
from datalake.loader import SampleStream
from datalake.sample import Sample
from pipelines.data import (
    Frames,
    check_disjoint_splits,
    check_no_leakage,
    labelled_segments,
    mixed_batches,
    read_boxes,
    unlabelled_per_batch,
)
from pipelines.train_config import TrainConfig
from student.config import StudentError
from teachers.card import TeacherError, TrainingData
from tests.drives import DRIVE_CAMERAS
from tests.teachers.cards import lidar_card


def frames(lake: Lake, **changes: object) -> Frames:
    return replace(
        Frames(lake=lake, split="train", cameras=("FRONT",), image_size=(96, 64), points=False),
        **changes,  # type: ignore[arg-type]
    )


def names(lake: Lake) -> list[str]:
    return sorted(commit.segment for commit in lake.in_split("train"))


def in_split(lake: Lake, segment: str, split: str) -> Lake:
    """Return the lake with one segment in another split as well."""
    (commit,) = (commit for commit in lake.commits if commit.segment == segment)
    return replace(lake, commits=(*lake.commits, replace(commit, split=split)))


@pytest.mark.parametrize(("fraction", "count"), [(0.001, 1), (0.34, 1), (0.6, 2), (1.0, 3)])
def test_a_fixed_share_of_the_segments_keeps_its_labels(drive_lake: Lake, fraction: float, count: int) -> None:
    labelled, unlabelled = labelled_segments(drive_lake, "train", fraction)
    assert len(labelled) == count
    assert not labelled & unlabelled
    assert sorted(labelled | unlabelled) == names(drive_lake)
    shuffled = replace(drive_lake, commits=drive_lake.commits[::-1])
    assert labelled_segments(shuffled, "train", fraction) == (labelled, unlabelled)


def test_a_larger_share_has_the_segments_of_the_smaller_one(drive_lake: Lake) -> None:
    shares = [labelled_segments(drive_lake, "train", fraction)[0] for fraction in (0.3, 0.6, 1.0)]
    assert shares[0] < shares[1] < shares[2]


@given(fraction=st.one_of(st.floats(max_value=0), st.floats(min_value=1, exclude_min=True), st.just(float("nan"))))
def test_a_share_is_more_than_nothing_and_at_most_all(drive_lake: Lake, fraction: float) -> None:
    with pytest.raises(StudentError, match=r"--labelled-fraction .*: expected more than 0 and at most 1"):
        labelled_segments(drive_lake, "train", fraction)


def test_only_the_chosen_segments_are_read(drive_lake: Lake) -> None:
    first, second, _ = names(drive_lake)
    chosen = frames(drive_lake, segments=frozenset({first, second}))
    seen = Counter(sample.key.segment for sample in chosen.stream(1, shuffle=False))
    assert seen == {first: 11, second: 11}


def test_a_training_sees_only_images_for_which_its_condition_holds(drive_lake: Lake) -> None:
    first, second, third = names(drive_lake)
    config = TrainConfig(lake=drive_lake.store.url, out="/out", where=f"segment IN ('{first}', '{third}')")
    lake = config.open_lake(None)
    assert labelled_segments(lake, "train", 1.0)[0] == {first, third}
    seen = Counter(sample.key.segment for sample in frames(lake).stream(1, shuffle=False))
    assert seen == {first: 11, third: 11}
    assert second not in seen


def test_boxes_are_of_images_for_which_the_condition_holds(drive_lake: Lake) -> None:
    times = sorted(drive_lake.images(["timestamp_us"]).column(0).to_pylist())
    early, late = (drive_lake.where(f"timestamp_us {sign} {times[len(times) // 2]}", "train") for sign in ("<", ">="))
    boxes = [read_boxes(frames(lake)) for lake in (early, late, drive_lake)]
    assert 0 < len(boxes[0]) < len(boxes[2])
    assert sorted([*boxes[0].tolist(), *boxes[1].tolist()]) == sorted(boxes[2].tolist())


def test_the_condition_decides_about_a_run(drive_lake: Lake) -> None:
    config = TrainConfig(lake=drive_lake.store.url, out="/out", where="camera = 'FRONT'")
    assert config.identity(config.open_lake(None))["where"] == "camera = 'FRONT'"
    assert replace(config, where=None).identity(drive_lake)["where"] is None


def keys(batches: list[list[Sample]]) -> list[list[tuple[str, int]]]:
    return [[(one.key.segment, one.key.timestamp_us) for one in batch] for batch in batches]


def take(
    lake: Lake, step: int, count: int, rank: int = 0, world_size: int = 1, data_workers: int = 0
) -> list[list[tuple[str, int]]]:
    """Return what is in the batches of one rank, of four labelled images and two without labels."""
    first, *others = names(lake)
    labelled = frames(lake, segments=frozenset({first}))
    unlabelled = frames(lake, segments=frozenset(others))
    from_step = mixed_batches(labelled, 4, unlabelled, 2, rank, world_size, data_workers)
    return keys(list(itertools.islice(from_step(step), count)))


def test_labelled_images_come_first(drive_lake: Lake) -> None:
    labelled = names(drive_lake)[0]
    for batch in take(drive_lake, 0, 8):
        assert [segment == labelled for segment, _ in batch] == [True] * 4 + [False] * 2


def test_every_labelled_image_is_seen_in_each_epoch(drive_lake: Lake) -> None:
    # Eleven images are two whole batches of four, and the next epoch is in another order.
    batches = take(drive_lake, 0, 8)
    epochs = [[key for batch in batches[i : i + 2] for key in batch[:4]] for i in range(0, 8, 2)]
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert epochs[0] != epochs[1]


@pytest.mark.integration
def test_reader_processes_change_nothing_of_the_batches(drive_lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    here = take(drive_lake, 3, 4)
    asked: list[int] = []
    loader = SampleStream.loader

    def counted(self: SampleStream, workers: int = 0) -> DataLoader[list[Sample]]:
        asked.append(workers)
        return loader(self, workers)

    monkeypatch.setattr(SampleStream, "loader", counted)
    assert take(drive_lake, 3, 4, data_workers=2) == here
    assert asked == [2, 2]


@pytest.mark.parametrize("step", [1, 2, 7, 13])
def test_from_a_later_step_on_come_the_batches_that_would_have_come(drive_lake: Lake, step: int) -> None:
    assert take(drive_lake, step, 4) == take(drive_lake, 0, step + 4)[step:]


def test_two_workers_see_together_what_one_sees(drive_lake: Lake) -> None:
    one, first, second = (take(drive_lake, 3, 6, rank, size) for rank, size in ((0, 1), (0, 2), (1, 2)))
    for whole, left, right in zip(one, first, second, strict=True):
        assert whole == [*left[:2], *right[:2], *left[2:], *right[2:]]


@given(batch=st.integers(1, 64), steps=st.integers(1, 100_000), labelled=st.integers(1, 100_000))
def test_unlabelled_images_get_the_places_that_labelled_ones_do_not_need(batch: int, steps: int, labelled: int) -> None:
    spare = unlabelled_per_batch(batch, steps, labelled)
    assert 0 <= spare <= batch // 2
    visits = (batch - spare) * steps / labelled
    assert visits >= 20 or spare == 0
    # One place more would be too many.
    assert spare == batch // 2 or (batch - spare - 1) * steps / labelled < 20


@given(batch=st.integers(1, 8), workers=st.integers(1, 4), steps=st.integers(1, 1000), labelled=st.integers(1, 1000))
def test_each_worker_gets_as_many_unlabelled_images(batch: int, workers: int, steps: int, labelled: int) -> None:
    spare = unlabelled_per_batch(batch * workers, steps, labelled, workers)
    alone = unlabelled_per_batch(batch * workers, steps, labelled)
    assert spare % workers == 0
    assert alone - workers < spare <= alone


def test_without_unlabelled_frames_a_batch_is_all_labelled(drive_lake: Lake) -> None:
    only = frames(drive_lake, segments=frozenset(names(drive_lake)[:1]))
    nobody = frames(drive_lake, segments=frozenset())
    for unlabelled in (None, nobody):
        batches = list(itertools.islice(mixed_batches(only, 4, unlabelled, 0, 0, 1)(0), 3))
        assert [len(batch) for batch in batches] == [4, 4, 4]


def test_reading_draws_nothing_from_the_generator_of_the_weights(drive_lake: Lake) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    take(drive_lake, 0, 3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("cameras", [("FRONT",), DRIVE_CAMERAS])
def test_the_boxes_are_those_of_the_samples(drive_lake: Lake, cameras: tuple[str, ...]) -> None:
    chosen = frames(drive_lake, cameras=cameras, image_size=(192, 32), segments=frozenset(names(drive_lake)[:2]))
    expected = torch.cat([sample.objects.boxes for sample in chosen.stream(1, shuffle=False)])
    found = read_boxes(chosen)
    assert found.dtype == torch.float32
    assert len(found) == len(expected) > 20
    order = [sorted(boxes.double().round(decimals=2).tolist()) for boxes in (found, expected)]
    assert torch.allclose(torch.tensor(order[0]), torch.tensor(order[1]), atol=0.02)


def test_no_segment_may_have_taught_the_teacher(drive_lake: Lake) -> None:
    own = names(drive_lake)[1]
    unrelated = lidar_card()
    taught = replace(unrelated, data=TrainingData(lake="/lake", snapshot=1, segments={"val": (own, "other")}))
    check_no_leakage({"spvcnn": unrelated, "public": replace(unrelated, data=None)}, drive_lake, ["train"])
    check_no_leakage({"spvcnn": taught}, drive_lake, ["val"])
    with pytest.raises(TeacherError, match=f"spvcnn was trained on 1 of the student's .*, e.g. {own} of split train"):
        check_no_leakage({"public": unrelated, "spvcnn": taught}, drive_lake, ["train"])


def test_no_segment_may_be_in_both_splits(drive_lake: Lake) -> None:
    first, second, _ = names(drive_lake)
    val_only = replace(
        drive_lake,
        commits=tuple(replace(c, split="val") if c.segment == first else c for c in drive_lake.commits),
    )
    check_disjoint_splits(val_only, "train", "val")
    with pytest.raises(LakeError, match=f"segment {second} and 0 more are in both splits, train and val"):
        check_disjoint_splits(in_split(val_only, second, "val"), "train", "val")
