"""What is read back from the lake is what the teacher said, to the last bit, or nothing at all."""

from __future__ import annotations

import random
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import pytest
import torch

from datalake.commit import LakeError
from datalake.derived_table import open_derived_table
from datalake.lake import Lake, open_lake
from datalake.loader import LoaderConfig, SampleStream
from datalake.sample import Sample
from teachers.cached import CachedTeacher, cache_segment, origin_of, table_name
from teachers.card import TeacherCard, TeacherError
from teachers.classes import MASK_CLASSES
from teachers.mask_rcnn import MaskRcnnTeacher
from teachers.pool import LocalPool
from teachers.target import Target
from teachers.teacher import Teacher
from tests.drives import DRIVE_CAMERAS
from tests.teachers.cards import lidar_card
from tests.teachers.masks import mask_folder

GRID, IMAGE_SIZE = (16, 24), (96, 64)
CARD = TeacherCard(
    name="patchy",
    kind="classification",
    architecture="patchy",
    options={"share": (0.5, 0.25)},
    channels=len(MASK_CLASSES),
    class_names=MASK_CLASSES,
    weights_sha256="a" * 64,
)


@dataclass(frozen=True)
class PatchyTeacher:
    """Says something else of every image, and of half of the cells nothing."""

    card: TeacherCard = CARD

    def predict(self, samples: Sequence[Sample], height: int, width: int) -> Target:
        """Return classes that only the image's key decides."""
        cells = 1, height, width
        valid, values = [], []
        for sample in samples:
            numbers = torch.Generator().manual_seed(zlib.crc32(repr(sample.key).encode()))
            valid.append(torch.rand(cells, generator=numbers) > 0.5)
            values.append(torch.randint(len(MASK_CLASSES), cells, generator=numbers) * valid[-1])
        return Target(tuple(sample.key for sample in samples), torch.stack(values), torch.stack(valid))


def cache(lake: Lake, teacher: Teacher, name: str) -> CachedTeacher:
    for base in lake.in_split("train"):
        assert cache_segment(lake, base, teacher, origin_of(teacher.card, name, GRID, IMAGE_SIZE))
    return CachedTeacher.open(lake, "train", teacher.card, name)


def assert_equal(found: Target, expected: Target) -> None:
    assert found.keys == expected.keys
    assert torch.equal(found.values, expected.values)
    assert torch.equal(found.valid, expected.valid)
    if expected.confidence is None:
        assert found.confidence is None
    else:
        assert found.confidence is not None
        assert torch.equal(found.confidence.view(torch.int32), expected.confidence.view(torch.int32))


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> MaskRcnnTeacher:
    """A real Mask R-CNN, untrained."""
    return MaskRcnnTeacher.load(mask_folder(tmp_path_factory.mktemp("masks")))


@pytest.fixture(scope="module")
def mask_lake(drive_url: str, masks: MaskRcnnTeacher, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """The lake of six images with that teacher's answers. Read only."""
    url = str(tmp_path_factory.mktemp("cached") / "lake")
    shutil.copytree(drive_url, url)
    cache(open_lake(url), masks, "mask_rcnn")
    return open_lake(url)


@pytest.fixture
def patchy_lake(drive_lake: Lake, tmp_path: Path) -> Lake:
    """The lake of three segments, for one test to add to."""
    shutil.copytree(drive_lake.store.root, tmp_path / "lake")
    return open_lake(str(tmp_path / "lake"))


@pytest.fixture(scope="module")
def patchy_samples(drive_lake: Lake) -> list[Sample]:
    """The images of that lake."""
    config = LoaderConfig(cameras=DRIVE_CAMERAS, points=False, shuffle=False, global_batch=1)
    return list(SampleStream(drive_lake, config))


def test_a_student_is_told_the_same_from_the_cache_bit_for_bit(
    mask_lake: Lake, masks: MaskRcnnTeacher, drive_samples: list[Sample]
) -> None:
    cached = CachedTeacher.open(mask_lake, "train", masks.card)
    told = []
    for teacher in (masks, cached):
        room = LocalPool([teacher], GRID)
        told.append(room.collect(room.submit(drive_samples))["mask_rcnn"])
    assert told[0].values.unique().numel() > 1
    assert told[0].confidence is not None
    assert_equal(told[1], told[0])


def test_cells_without_an_answer_and_no_confidence_stay_so_in_any_order(
    patchy_lake: Lake, patchy_samples: list[Sample]
) -> None:
    teacher = PatchyTeacher()
    cached = cache(patchy_lake, teacher, "patchy")
    shuffled = random.Random(0).sample(patchy_samples, len(patchy_samples))
    assert_equal(cached.predict(shuffled, *GRID), teacher.predict(shuffled, *GRID))


def test_what_is_no_longer_kept_in_memory_is_read_again(
    patchy_lake: Lake, patchy_samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("teachers.cached._KEPT", 2)
    monkeypatch.setattr("datalake.derived_table._OPEN_FILES", 1)
    teacher = PatchyTeacher()
    cached = cache(patchy_lake, teacher, "patchy")
    twice = patchy_samples[::5] * 2
    assert_equal(cached.predict(twice, *GRID), teacher.predict(twice, *GRID))


def test_one_row_for_each_image_with_the_grid(mask_lake: Lake, masks: MaskRcnnTeacher) -> None:
    table = open_derived_table(mask_lake, table_name("mask_rcnn"), "train", masks.card.weights_sha256)
    rows = table.dataset().to_table().to_pylist()
    found = [(row["height"], row["width"], len(row["class"]), len(row["confidence"])) for row in rows]
    assert found == [(16, 24, 384, 384)] * 6


def test_duckdb_reads_what_is_cached(mask_lake: Lake) -> None:
    files = mask_lake.store.path("train/teacher_mask_rcnn/*.parquet")
    query = "select count(*), min(len(class)), max(list_max(confidence)) <= 1 from read_parquet($files)"
    assert duckdb.execute(query, {"files": files}).fetchall() == [(6, 384, True)]


def test_other_weights_are_refused(mask_lake: Lake, masks: MaskRcnnTeacher) -> None:
    card = replace(masks.card, weights_sha256="b" * 64)
    with pytest.raises(LakeError, match=f"made with weights {masks.card.weights_sha256[:12]}…, not bbbbbbbbbbbb…"):
        CachedTeacher.open(mask_lake, "train", card)


def test_other_options_of_the_same_weights_are_refused(mask_lake: Lake, masks: MaskRcnnTeacher) -> None:
    card = replace(masks.card, options={**masks.card.options, "score": 0.5})
    with pytest.raises(TeacherError, match="not made by the teacher mask_rcnn of this card"):
        CachedTeacher.open(mask_lake, "train", card)


def test_a_continuous_teacher_is_too_large() -> None:
    with pytest.raises(TeacherError, match="teacher lidar: 12 numbers per cell are too large to keep"):
        origin_of(lidar_card(), "lidar", GRID, IMAGE_SIZE)


def test_a_image_that_is_not_cached_is_named(
    mask_lake: Lake, masks: MaskRcnnTeacher, drive_samples: list[Sample]
) -> None:
    cached = CachedTeacher.open(mask_lake, "train", masks.card)
    for change in ({"segment": "elsewhere"}, {"timestamp_us": 1}, {"camera": "SIDE_LEFT"}):
        sample = replace(drive_samples[0], key=replace(drive_samples[0].key, **change))
        with pytest.raises(TeacherError, match=f"{next(iter(change.values()))}.* is not cached"):
            cached.predict([sample], *GRID)


def test_another_grid_is_refused(mask_lake: Lake, masks: MaskRcnnTeacher, drive_samples: list[Sample]) -> None:
    cached = CachedTeacher.open(mask_lake, "train", masks.card)
    with pytest.raises(TeacherError, match="cached on a grid of 16 x 24 cells, asked for 8 x 12"):
        cached.predict(drive_samples, 8, 12)


def test_images_of_another_size_are_refused(
    mask_lake: Lake, masks: MaskRcnnTeacher, drive_samples: list[Sample]
) -> None:
    cached = CachedTeacher.open(mask_lake, "train", masks.card)
    smaller = replace(drive_samples[0], image=drive_samples[0].image[:, ::2, ::2])
    with pytest.raises(TeacherError, match="cached from images of 96 x 64 pixels, got one of 48 x 32"):
        cached.predict([smaller], *GRID)
