"""A teacher that is asked once, and what it said for ever after."""

from __future__ import annotations

import multiprocessing
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from datalake.sample import Sample, SampleKey
from teachers.card import TeacherCard, TeacherError
from teachers.remembered import RememberedTeacher, remembered_count, remembered_folder
from teachers.target import Target
from tests.teachers.cards import lidar_teacher
from tests.teachers.training.samples import sample

CARD = TeacherCard(
    name="patchy",
    kind="regression",
    architecture="patchy",
    options={},
    channels=3,
    class_names=(),
    weights_sha256="a" * 64,
)


@dataclass(frozen=True)
class PatchyTeacher:
    """Says something else of every image, and of half of the cells nothing; keeps what it was asked about.

    told: whether it says how sure it is
    whole: whether it has an answer for every cell
    """

    card: TeacherCard = CARD
    told: bool = False
    whole: bool = False
    asked: list[int] = field(default_factory=list)

    def predict(self, samples: Sequence[Sample], height: int, width: int) -> Target:
        """Return what only the image's key decides."""
        self.asked.extend(one.key.timestamp_us for one in samples)
        valid, values = [], []
        for one in samples:
            random = torch.Generator().manual_seed(zlib.crc32(repr(one.key).encode()))
            valid.append((torch.rand(1, height, width, generator=random) > 0.5) | self.whole)
            if self.card.kind == "classification":
                values.append(torch.randint(1, 3, (1, height, width), generator=random) * valid[-1])
            else:
                values.append(torch.randn(3, height, width, generator=random) * valid[-1])
        cells = torch.stack(valid)
        keys = tuple(one.key for one in samples)
        return Target(keys, torch.stack(values), cells, 0.3 * cells if self.told else None)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def assert_equal(found: Target, expected: Target) -> None:
    assert found.keys == expected.keys
    assert found.values.dtype == expected.values.dtype
    assert torch.equal(found.values, expected.values)
    assert torch.equal(found.valid, expected.valid)
    assert (found.confidence is None) == (expected.confidence is None)
    if found.confidence is not None and expected.confidence is not None:
        assert torch.equal(found.confidence, expected.confidence)


CLASSES = replace(CARD, kind="classification", class_names=("a", "b", "c"))


@pytest.mark.parametrize(
    "teacher",
    [PatchyTeacher(), PatchyTeacher(told=True), PatchyTeacher(whole=True), PatchyTeacher(CLASSES, told=True)],
    ids=["numbers", "confident", "everywhere", "classes"],
)
def test_what_is_remembered_is_what_travels(tmp_path: Path, teacher: PatchyTeacher) -> None:
    some = [sample(number) for number in range(3)]
    expected = teacher.predict(some, 4, 6).to_sparse().to_dense()
    for _ in range(2):
        assert_equal(RememberedTeacher(teacher, tmp_path).predict(some, 4, 6), expected)


def test_a_real_teacher_says_the_same(tmp_path: Path, drive_samples: list[Sample]) -> None:
    teacher = lidar_teacher()
    remembered = RememberedTeacher(teacher, tmp_path)
    expected = teacher.predict(drive_samples[:2], 16, 24).to_sparse().to_dense()
    assert_equal(remembered.predict(drive_samples[:2], 16, 24), expected)
    # Now even without the points.
    blind = [replace(one, lidar=None) for one in drive_samples[:2]]
    assert all(remembered.remembers(one, 16, 24) for one in blind)
    assert_equal(remembered.predict(blind, 16, 24), expected)


def test_only_new_images_are_looked_at_and_answers_keep_their_places(tmp_path: Path) -> None:
    teacher = PatchyTeacher()
    remembered = RememberedTeacher(teacher, tmp_path)
    remembered.predict([sample(1), sample(3)], 4, 6)
    assert [remembered.remembers(sample(number), 4, 6) for number in range(4)] == [False, True, False, True]
    mixed = [sample(number) for number in (3, 2, 1, 0)]
    found = remembered.predict(mixed, 4, 6)
    assert teacher.asked == [1, 3, 2, 0]
    assert_equal(found, PatchyTeacher().predict(mixed, 4, 6).to_sparse().to_dense())


def test_another_grid_image_or_teacher_is_another_question(tmp_path: Path) -> None:
    teacher = PatchyTeacher()
    RememberedTeacher(teacher, tmp_path).predict([sample(1)], 4, 6)
    # What the student calls it makes no difference.
    assert RememberedTeacher(PatchyTeacher(replace(CARD, name="other")), tmp_path).remembers(sample(1), 4, 6)
    others = [
        (teacher, sample(1), (8, 12)),
        (teacher, sample(1, image=torch.zeros(3, 16, 24, dtype=torch.uint8)), (4, 6)),
        (PatchyTeacher(replace(CARD, weights_sha256="b" * 64)), sample(1), (4, 6)),
        (PatchyTeacher(replace(CARD, architecture="other")), sample(1), (4, 6)),
        (teacher, replace(sample(1), key=replace(sample(1).key, camera="SIDE_LEFT")), (4, 6)),
    ]
    for other, one, grid in others:
        assert not RememberedTeacher(other, tmp_path).remembers(one, *grid)


def test_answers_are_counted_by_camera(tmp_path: Path) -> None:
    some = [sample(1), replace(sample(1), key=SampleKey("segment_1", 1, "FRONT_LEFT"))]
    RememberedTeacher(PatchyTeacher(), tmp_path).predict([*some, sample(2)], 4, 6)
    answers = remembered_folder(tmp_path, CARD, (4, 6), (8, 12)) / "segment_1"
    (answers / "2-FRONT.unfinished").touch()
    assert remembered_count(answers, ("FRONT", "FRONT_LEFT")) == 2
    assert remembered_count(answers, ("FRONT",)) == 1
    assert remembered_count(answers, ("SIDE_LEFT",)) == 0
    assert remembered_count(tmp_path / "nowhere", ("FRONT",)) == 0


def _look_at_all(folder: Path, start: int) -> None:
    remembered = RememberedTeacher(PatchyTeacher(), folder)
    for _ in range(5):
        for number in range(20):
            remembered.predict([sample((start + number) % 20), sample((start + number + 7) % 20)], 4, 6)


def test_several_processes_share_a_folder(tmp_path: Path) -> None:
    # Forked: these processes do nothing that torch's threads would have to survive.
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_look_at_all, args=(tmp_path, 5 * number)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert len(files(tmp_path)) == 20
    assert all(path.suffix == ".safetensors" for path in files(tmp_path))
    some = [sample(number) for number in range(20)]
    silent = PatchyTeacher()
    assert_equal(
        RememberedTeacher(silent, tmp_path).predict(some, 4, 6),
        PatchyTeacher().predict(some, 4, 6).to_sparse().to_dense(),
    )
    assert silent.asked == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda _: b"not an answer",
        lambda content: content[: len(content) // 2],
        lambda _: safetensors.torch.save({"shape": torch.tensor([1, 3, 4, 6])}),
        lambda _: safetensors.torch.save({"values": torch.zeros(24, 3)}),
        lambda _: safetensors.torch.save({"shape": torch.tensor([1, 3, 4, 6]), "values": torch.zeros(7, 3).half()}),
        lambda _: safetensors.torch.save({"shape": torch.tensor([1, 3]), "values": torch.zeros(24, 3).half()}),
    ],
    ids=["empty", "other", "cut", "no values", "no shape", "too few cells", "half a shape"],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, damage: object) -> None:
    remembered = RememberedTeacher(PatchyTeacher(), tmp_path)
    remembered.predict([sample(1), sample(2)], 4, 6)
    path = files(tmp_path)[0]
    assert callable(damage)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(TeacherError, match=r"1-FRONT\.safetensors: not a kept prediction: .*; delete it$") as refused:
        remembered.predict([sample(1), sample(2)], 4, 6)
    assert "\n" not in str(refused.value)


def test_an_answer_that_cannot_travel_is_not_remembered(tmp_path: Path) -> None:
    class Shouting(PatchyTeacher):
        def predict(self, samples: Sequence[Sample], height: int, width: int) -> Target:
            target = super().predict(samples, height, width)
            return replace(target, values=target.values * 1e6)

    with pytest.raises(TeacherError, match="beyond what float16 holds"):
        RememberedTeacher(Shouting(), tmp_path).predict([sample(1)], 4, 6)
    assert files(tmp_path) == []
