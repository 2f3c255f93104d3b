"""From names and folders to teachers in a room."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from datalake.lake import Lake
from datalake.sample import Sample
from pipelines.data import Frames
from teachers.cached import cache_segment, origin_of
from teachers.card import TeacherError
from teachers.load import load_teacher, needs_points
from teachers.loading import (
    CachedTargets,
    class_shares,
    evaluate_teachers,
    open_pool,
    parse_cached,
    parse_teachers,
    read_cards,
)
from teachers.pool import LocalPool
from tests.pipelines.small_teachers import write_teachers
from tests.student.students import COLORS, SHADES, ColorTeacher, samples

GRID, CPU = (16, 24), torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two untrained teachers."""
    return write_teachers(tmp_path_factory.mktemp("teachers"))


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


def test_a_classroom_has_the_teachers_by_the_students_names(drive_lake: Lake, folders: dict[str, str]) -> None:
    pool = open_pool(folders, GRID, CPU)
    ((_, targets),) = pool.follow([first_samples(drive_lake, 2)])
    assert list(targets) == list(pool.cards) == ["points", "masks"]
    assert targets["points"].values.shape == (2, pool.cards["points"].channels, *GRID)
    assert targets["masks"].values.shape == (2, 1, *GRID)


def test_cached_teachers_are_named_with_their_tables() -> None:
    assert parse_cached(["a", "b=c"], ["a", "b", "d"]) == {"a": None, "b": "c"}
    with pytest.raises(TeacherError, match="--cached e: expected one of the teachers a, b"):
        parse_cached(["a", "e=a"], ["a", "b"])
    with pytest.raises(TeacherError, match=r"--cached a: expected one of the teachers \(there is none\)"):
        parse_cached(["a"], [])


def test_a_cached_teacher_is_looked_up_and_the_other_asked(own_lake: Lake, folders: dict[str, str]) -> None:
    teacher = load_teacher(folders["points"])
    for base in own_lake.commits:
        assert cache_segment(own_lake, base, teacher, origin_of(teacher.card, "once", GRID, (96, 64)))
    some = list(itertools.islice(frames(own_lake, "FRONT").stream(1, shuffle=False), 2))
    # Without points, which only the teacher that is looked up needs.
    blind = [replace(sample, lidar=None) for sample in some]
    ((_, asked),) = open_pool(folders, GRID, CPU).follow([some])
    cached = CachedTargets(own_lake, "train", {"points": "once"})
    ((_, found),) = open_pool(folders, GRID, CPU, cached).follow([blind])
    assert list(found) == ["points", "masks"]
    for name, target in asked.items():
        torch.testing.assert_close(found[name].values, target.values, rtol=2**-10, atol=1e-3)
        assert torch.equal(found[name].valid, target.valid)


def test_class_shares_are_of_the_cells_with_an_answer() -> None:
    teachers = {"colors": ColorTeacher(COLORS), "shades": ColorTeacher(SHADES, blind=8)}
    pool = LocalPool(teachers, GRID)
    batches = [samples(3), samples(2)]
    shares = class_shares(pool, batches)
    assert list(shares) == ["shades"]
    counts = torch.zeros(3)
    for batch in batches:
        values = teachers["shades"].predict(batch, *GRID).values[:, :, 8:]
        counts += torch.stack([(values == number).sum() for number in range(3)])
    assert torch.allclose(shares["shades"], counts / counts.sum())
    assert bool((shares["shades"] > 0).all())


def test_a_teacher_that_is_not_fit_to_teach_is_refused(drive_lake: Lake, folders: dict[str, str]) -> None:
    batches = [list(itertools.islice(frames(drive_lake, "FRONT").stream(2, shuffle=False, panoptic=True), 4))]
    # Untrained, and without a figure on its card that would say how bad it may be.
    with pytest.raises(TeacherError, match="is no better than always predicting the commonest class"):
        evaluate_teachers({"points": folders["points"]}, batches, GRID, CPU)
