"""What is read back from the lake is what the teacher said, to the last bit, or nothing at all."""

from __future__ import annotations

import random
import shutil
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import pytest
import torch

from datalake.commit import LakeError
from datalake.derived_table import open_derived_table, read_derived_commits
from datalake.lake import Lake, open_lake
from datalake.loader import LoaderConfig, SampleStream
from datalake.sample import Sample
from teachers.cached import CachedTeacher, cache_segment, origin_of, table_name
from teachers.card import ChannelStatistics, TeacherCard, TeacherError
from teachers.classes import MASK_CLASSES
from teachers.mask_rcnn.teacher import MaskRcnnTeacher
from teachers.pool import LocalPool
from teachers.target import Target
from teachers.teacher import Teacher
from tests.drives import DRIVE_CAMERAS
from tests.teachers.cards import lidar_teacher
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


NUMBERS = replace(CARD, kind="regression", channels=3, class_names=())


@dataclass(frozen=True)
class PatchyTeacher:
    """Says something else of every image, and of half of the cells nothing.

    told: whether it says how sure it is
    share: of the cells that it has an answer for
    """

    card: TeacherCard = CARD
    told: bool = False
    share: float = 0.5

    def predict(self, samples: Sequence[Sample], height: int, width: int) -> Target:
        """Return classes or numbers that only the image's key decides."""
        cells = 1, height, width
        valid, values = [], []
        for sample in samples:
            numbers = torch.Generator().manual_seed(zlib.crc32(repr(sample.key).encode()))
            valid.append(torch.rand(cells, generator=numbers) < self.share)
            if self.card.kind == "classification":
                values.append(torch.randint(len(MASK_CLASSES), cells, generator=numbers) * valid[-1])
            else:
                values.append(torch.randn(self.card.channels, height, width, generator=numbers) * valid[-1])
        told = torch.stack(valid)
        keys = tuple(sample.key for sample in samples)
        return Target(keys, torch.stack(values), told, 0.3 * told if self.told else None)


def cache(lake: Lake, teacher: Teacher, name: str) -> CachedTeacher:
    for base in lake.in_split("train"):
        assert cache_segment(lake, base, teacher, origin_of(teacher.card, name, GRID, IMAGE_SIZE))
    return CachedTeacher.open(lake, "train", teacher.card, name)


def assert_equal(found: Target, expected: Target) -> None:
    assert found.keys == expected.keys
    assert found.values.dtype == expected.values.dtype
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
        ((_, targets),) = LocalPool({"masks": teacher}, GRID).follow([drive_samples])
        told.append(targets["masks"])
    assert told[0].values.unique().numel() > 1
    assert told[0].confidence is not None
    assert_equal(told[1], told[0])


def test_a_lidar_teachers_cached_targets_need_no_points(
    drive_url: str, drive_samples: list[Sample], tmp_path: Path
) -> None:
    shutil.copytree(drive_url, tmp_path / "lake")
    teacher = lidar_teacher(ChannelStatistics(mean=(0.5,) * 12, variance=(4.0,) * 12))
    cached = cache(open_lake(str(tmp_path / "lake")), teacher, "lidar")
    told = []
    blind = [replace(sample, lidar=None) for sample in drive_samples]
    for asked, samples in ((teacher, drive_samples), (cached, blind)):
        ((_, targets),) = LocalPool({"lidar": asked}, GRID).follow([samples])
        told.append(targets["lidar"])
    assert 0 < float(told[0].valid.float().mean()) < 1
    assert_equal(told[1], told[0])


@pytest.mark.parametrize(
    "teacher",
    [
        PatchyTeacher(),
        PatchyTeacher(told=True),
        PatchyTeacher(share=0.0),
        PatchyTeacher(NUMBERS),
        PatchyTeacher(NUMBERS, told=True),
        PatchyTeacher(NUMBERS, share=1.0),
        PatchyTeacher(NUMBERS, share=0.0),
    ],
    ids=["classes", "sure", "no class", "numbers", "sure numbers", "numbers everywhere", "no number"],
)
def test_what_is_cached_is_what_travels_in_any_order(
    patchy_lake: Lake, patchy_samples: list[Sample], teacher: PatchyTeacher
) -> None:
    cached = cache(patchy_lake, teacher, "patchy")
    shuffled = random.Random(0).sample(patchy_samples, len(patchy_samples))
    assert_equal(cached.predict(shuffled, *GRID), teacher.predict(shuffled, *GRID).to_sparse().to_dense())
    assert cached.predict([], *GRID).keys == ()


def test_a_table_of_numbers_has_the_valid_cells_alone(patchy_lake: Lake, patchy_samples: list[Sample]) -> None:
    teacher = PatchyTeacher(NUMBERS, share=0.1)
    cache(patchy_lake, teacher, "patchy")
    table = open_derived_table(patchy_lake, table_name("patchy"), "train", teacher.card.weights_sha256)
    rows = {(row["segment"], row["timestamp_us"], row["camera"]): row for row in table.dataset().to_table().to_pylist()}
    assert len(rows) == len(patchy_samples)
    for sample in patchy_samples[::7]:
        row = rows[sample.key.segment, sample.key.timestamp_us, sample.key.camera]
        target = teacher.predict([sample], *GRID)
        cells = target.valid.flatten().nonzero()[:, 0]
        assert row["cell"] == cells.tolist()
        assert row["value"] == target.values[0].flatten(1)[:, cells].T.half().flatten().tolist()
        assert (row["height"], row["width"], row["channels"], row["confidence"]) == (*GRID, 3, None)


def test_duckdb_reads_a_table_of_numbers(patchy_lake: Lake) -> None:
    cache(patchy_lake, PatchyTeacher(NUMBERS), "patchy")
    files = patchy_lake.store.path("train/teacher_patchy/*.parquet")
    query = "select count(*), bool_and(len(value) = 3 * len(cell)) from read_parquet($files)"
    assert duckdb.execute(query, {"files": files}).fetchall() == [(66, True)]


@pytest.mark.parametrize("change", [{"statistics": None}, {"options": {"share": 1}}, {"channels": 12}])
def test_numbers_of_another_standardization_or_network_are_refused(
    patchy_lake: Lake, change: Mapping[str, object]
) -> None:
    card = replace(NUMBERS, statistics=ChannelStatistics(mean=(0.0,) * 3, variance=(1.0,) * 3))
    cache(patchy_lake, PatchyTeacher(card), "patchy")
    with pytest.raises(TeacherError, match="not made by the teacher patchy of this card"):
        CachedTeacher.open(patchy_lake, "train", replace(card, **{"statistics": None, **change}), "patchy")  # type: ignore[arg-type]


def test_an_answer_that_cannot_travel_is_not_cached(patchy_lake: Lake) -> None:
    class Shouting(PatchyTeacher):
        def predict(self, samples: Sequence[Sample], height: int, width: int) -> Target:
            target = super().predict(samples, height, width)
            return replace(target, values=target.values * 1e6)

    teacher = Shouting(NUMBERS)
    (base, *_) = patchy_lake.commits
    with pytest.raises(TeacherError, match="beyond what float16 holds"):
        cache_segment(patchy_lake, base, teacher, origin_of(teacher.card, "patchy", GRID, IMAGE_SIZE))
    assert read_derived_commits(patchy_lake.store, table_name("patchy"), [base]) == [None]
    assert not patchy_lake.store.listing("train/teacher_patchy")


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
