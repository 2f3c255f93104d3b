"""From names and folders to teachers in a room."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from datalake.lake import Lake
from datalake.sample import Sample
from pipelines.data import Frames
from pipelines.teacher_loading import (
    NamedTeacher,
    all_remembered,
    class_shares,
    evaluate_teachers,
    needs_points,
    open_pool,
    parse_teachers,
    precompute_targets,
    read_cards,
)
from teachers.card import TeacherCard, TeacherError
from teachers.pool import LocalPool
from teachers.remembered import RememberedTeacher, remembered_total
from tests.drives import DRIVE_CAMERAS
from tests.pipelines.small_teachers import write_teachers
from tests.student.students import COLORS, SHADES, ColorTeacher, samples
from tests.teachers.cards import lidar_folder

GRID, CPU = (16, 24), torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two untrained teachers."""
    return write_teachers(tmp_path_factory.mktemp("teachers"))


@dataclass(frozen=True)
class SpeaksFor(ColorTeacher):
    """Answers in another teacher's name, and faster."""

    other: TeacherCard = ColorTeacher().card

    @property
    def card(self) -> TeacherCard:
        """The other's."""
        return self.other


def frames(lake: Lake, *cameras: str, points: bool = True) -> Frames:
    return Frames(lake=lake, split="train", cameras=cameras, image_size=(96, 64), points=points)


def first_samples(lake: Lake, count: int, *, points: bool = True) -> list[Sample]:
    return list(itertools.islice(frames(lake, "FRONT", points=points).stream(1, shuffle=False), count))


def test_teachers_are_named_on_the_command_line() -> None:
    assert parse_teachers(["a=/one", "b=s3://two?x=y"]) == {"a": "/one", "b": "s3://two?x=y"}
    assert parse_teachers(["none"]) == {}
    assert parse_teachers([]) == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["/one"], "--teachers /one: expected NAME=FOLDER"),
        (["=/one"], "expected NAME=FOLDER"),
        (["a="], "expected NAME=FOLDER"),
        (["a.b=/one"], "expected NAME=FOLDER"),
        (["none", "a=/one"], "--teachers none: expected NAME=FOLDER, or none alone"),
        (["a=/one", "a=/two"], "--teachers a=/two: a is given twice"),
    ],
)
def test_what_names_no_teacher_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(TeacherError, match=message):
        parse_teachers(words)


def test_only_a_lidar_teacher_needs_points(folders: dict[str, str]) -> None:
    cards = read_cards(folders)
    assert list(cards) == ["points", "masks"]
    assert needs_points(cards.values())
    assert not needs_points([cards["masks"]])
    assert not needs_points([])


def test_a_named_teacher_says_the_same_under_another_name() -> None:
    teacher = ColorTeacher()
    named = NamedTeacher("left", teacher)
    assert named.card == replace(teacher.card, name="left")
    assert torch.equal(named.predict(samples(1), 4, 6).values, teacher.predict(samples(1), 4, 6).values)


def test_a_classroom_has_the_teachers_by_the_students_names(drive_lake: Lake, folders: dict[str, str]) -> None:
    pool = open_pool(folders, GRID, CPU, None)
    ((_, targets),) = pool.follow([first_samples(drive_lake, 2)])
    assert list(targets) == list(pool.cards) == ["points", "masks"]
    assert targets["points"].values.shape == (2, pool.cards["points"].channels, *GRID)
    assert targets["masks"].values.shape == (2, 1, *GRID)


def test_what_is_remembered_is_not_asked_again(drive_lake: Lake, folders: dict[str, str], tmp_path: Path) -> None:
    some = first_samples(drive_lake, 2)
    ((_, first),) = open_pool(folders, GRID, CPU, tmp_path).follow([some])
    blind = first_samples(drive_lake, 2, points=False)
    ((_, again),) = open_pool(folders, GRID, CPU, tmp_path).follow([blind])
    for name, target in first.items():
        assert torch.equal(again[name].values, target.values)
        assert torch.equal(again[name].valid, target.valid)


def test_points_are_needed_until_every_frame_is_remembered(drive_lake: Lake, tmp_path: Path) -> None:
    folder = lidar_folder(tmp_path / "lidar")
    asked = frames(drive_lake, "FRONT")
    card = read_cards({"points": folder})["points"]
    remembered = RememberedTeacher(SpeaksFor(other=card), tmp_path / "answers")
    everything = list(frames(drive_lake, *DRIVE_CAMERAS).stream(1, shuffle=False))
    sides = [one for one in everything if one.key.camera != "FRONT"]
    front = [one for one in everything if one.key.camera == "FRONT"]
    remembered.predict(sides, *GRID)
    assert not all_remembered({"points": folder}, asked, GRID, tmp_path / "answers")
    remembered.predict(front[1:], *GRID)
    assert not all_remembered({"points": folder}, asked, GRID, tmp_path / "answers")
    remembered.predict(front[:1], *GRID)
    assert all_remembered({"points": folder}, asked, GRID, tmp_path / "answers")
    assert not all_remembered({"points": folder}, asked, (8, 12), tmp_path / "answers")


def test_answered_ahead_nothing_is_left_to_ask(drive_lake: Lake, folders: dict[str, str], tmp_path: Path) -> None:
    asked = frames(drive_lake, "FRONT")
    precompute_targets(folders, asked, GRID, CPU, tmp_path)
    assert all_remembered(folders, asked, GRID, tmp_path)
    assert remembered_total(tmp_path) == len(folders) * asked.stream(1, shuffle=False).epoch_samples


def test_class_shares_are_of_the_cells_with_an_answer() -> None:
    teachers = [ColorTeacher(COLORS), ColorTeacher(SHADES, blind=8)]
    pool = LocalPool(teachers, GRID)
    batches = [samples(3), samples(2)]
    shares = class_shares(pool, batches)
    assert list(shares) == ["shades"]
    counts = torch.zeros(3)
    for batch in batches:
        values = teachers[1].predict(batch, *GRID).values[:, :, 8:]
        counts += torch.stack([(values == number).sum() for number in range(3)])
    assert torch.allclose(shares["shades"], counts / counts.sum())
    assert bool((shares["shades"] > 0).all())


def test_a_teacher_that_is_not_fit_to_teach_is_refused(drive_lake: Lake, folders: dict[str, str]) -> None:
    batches = [list(itertools.islice(frames(drive_lake, "FRONT").stream(2, shuffle=False, panoptic=True), 4))]
    # Untrained, and without a figure on its card that would say how bad it may be.
    with pytest.raises(TeacherError, match="is no better than always predicting the commonest class"):
        evaluate_teachers({"points": folders["points"]}, batches, GRID, CPU)
