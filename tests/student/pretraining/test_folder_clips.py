"""Pairs of a folder of clips: exported from a lake, and of one's own."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datalake.commit import LakeError
from datalake.export import export_split
from datalake.lake import Lake
from datalake.loader import LoaderConfig, SampleStream
from datalake.sample import Sample
from datalake.store import Store
from student.pretraining.clips import Pairs
from student.pretraining.folder_clips import FolderClips

SIZE = (24, 16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three clips of 12, 3 and 1 images, whose first channel is the clip and second one the image's number."""
    for clip, count in enumerate((12, 3, 1)):
        (tmp_path / f"clip_{clip}").mkdir()
        for number in range(count):
            pixels = np.full((16, 24, 3), (50 * clip, 10 * number, 0), np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"clip_{clip}" / f"frame_{number}.png")
    (tmp_path / "notes.txt").write_text("no clip")
    return tmp_path


def shown(sample: Sample) -> tuple[int, int]:
    clip, number = (int(value) for value in sample.image[:2, 0, 0])
    return clip // 50, number // 10


def deal(clips: FolderClips, steps: int, start: int = 0, workers: int = 0) -> list[list[tuple[int, int]]]:
    return [[shown(sample) for sample in batch] for batch in itertools.islice(clips.loader(start, workers), steps)]


def test_next_pairs_are_of_one_clip_and_one_number_apart_and_an_epoch_has_each_once(folder: Path) -> None:
    # 11 and 2 pairs; frame_10 comes behind frame_9.
    dealt = deal(FolderClips(str(folder), "next", SIZE, 1), 13)
    assert {(clip, number) for (clip, number), _ in dealt} == {(0, n) for n in range(11)} | {(1, 0), (1, 1)}
    assert all(second == (first[0], first[1] + 1) for first, second in dealt)


def test_same_pairs_have_no_second_images(folder: Path) -> None:
    dealt = deal(FolderClips(str(folder), "same", SIZE, 4), 4)
    assert Counter(len(batch) for batch in dealt) == {4: 4}
    assert len({each for batch in dealt for each in batch}) == 16


def test_shuffled_pairs_are_of_different_clips(folder: Path) -> None:
    dealt = deal(FolderClips(str(folder), "shuffled", SIZE, 4), 4)
    assert all(one[0] != other[0] for batch in dealt for one, other in zip(batch[:4], batch[4:], strict=True))


@pytest.mark.parametrize("pairs", ["same", "next", "shuffled"])
def test_the_order_is_the_same_again_and_from_anywhere_and_new_in_each_epoch(folder: Path, pairs: Pairs) -> None:
    clips = FolderClips(str(folder), pairs, SIZE, 3)
    whole = deal(clips, 12)
    assert deal(clips, 7, start=5) == whole[5:]
    epoch = len(clips._first) // 3
    assert whole[:epoch] != whole[epoch : 2 * epoch]
    assert deal(FolderClips(str(folder), pairs, SIZE, 3, seed=1), 12) != whole


@pytest.mark.integration
def test_reader_processes_deal_the_same(folder: Path) -> None:
    clips = FolderClips(str(folder), "next", SIZE, 3)
    assert deal(clips, 9, workers=2) == deal(clips, 9)


def test_a_folder_exported_from_a_lake_has_its_images_in_their_order(drive_lake: Lake, tmp_path: Path) -> None:
    list(export_split(drive_lake, "train", Store(str(tmp_path)), "coco", "camera = 'FRONT'"))
    clips = FolderClips(str(tmp_path / "images" / "train"), "next", SIZE, 2)
    settings = LoaderConfig(split="train", image_size=SIZE, points=False, shuffle=False, global_batch=2)
    expected: dict[str, list[torch.Tensor]] = {}
    for sample in SampleStream(drive_lake, settings):
        expected.setdefault(sample.key.segment, []).append(sample.image)
    assert len(clips.images) == sum(map(len, expected.values())) == 33
    for batch in itertools.islice(clips.loader(0), 15):
        for first, second in zip(batch[:2], batch[2:], strict=True):
            images = expected[first.key.segment]
            (place,) = (i for i, image in enumerate(images) if torch.equal(image, first.image))
            assert torch.equal(images[place + 1], second.image)


def test_masks_are_objects_and_all_else(folder: Path) -> None:
    values = np.zeros((16, 24), np.uint8)
    values[4:8, 6:12], values[10:, :3] = 1, 2
    for image in folder.glob("clip_*/*.png"):
        Image.fromarray(values).save(image.with_name(f"{image.stem}_mask.png"))
    clips = FolderClips(str(folder), "same", SIZE, 2, masks=True)
    assert len(clips.images) == 16
    panoptic = clips[0][0].panoptic
    assert panoptic is not None
    assert panoptic.instance.numpy().tolist() == values.tolist()
    assert len(panoptic.semantic_class.unique()) == 2
    assert bool(((panoptic.semantic_class == 2) == (panoptic.instance > 0)).all())


def test_what_is_trained_on_has_a_checksum(folder: Path) -> None:
    before = FolderClips(str(folder), "same", SIZE, 2).sha256
    assert FolderClips(str(folder), "next", SIZE, 3).sha256 == before
    (folder / "clip_2" / "frame_0.png").rename(folder / "clip_2" / "frame_1.png")
    assert FolderClips(str(folder), "same", SIZE, 2).sha256 != before


def test_folders_that_do_not_do_are_refused(folder: Path) -> None:
    with pytest.raises(LakeError, match="no sub-folder with images"):
        FolderClips(str(folder / "clip_0"), "same", SIZE, 1)
    with pytest.raises(LakeError, match="13 pairs, fewer than one batch of 14"):
        FolderClips(str(folder), "next", SIZE, 14)
    with pytest.raises(LakeError, match=r"16 images have no mask, e\.g\. .*frame_0_mask\.png"):
        FolderClips(str(folder), "same", SIZE, 1, masks=True)
    broken = folder / "clip_0" / "frame_3.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n")
    clips = FolderClips(str(folder), "same", SIZE, 16)
    with pytest.raises(LakeError, match=r"frame_3\.png: not an image that decodes"):
        clips[0]


def test_a_mask_has_the_numbers_of_its_objects_whatever_their_colors(tmp_path: Path) -> None:
    truth = np.array([[0, 1, 2], [300, 700, 0]])
    folder = tmp_path / "clip"
    folder.mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (3, 2)).save(folder / f"{name}.png")
    palette = Image.fromarray(truth.clip(0, 2).astype(np.uint8), "P")
    palette.putpalette([0, 0, 0, 0, 0, 1, 0, 0, 1])
    palette.save(folder / "a_mask.png")
    Image.fromarray(truth.astype(np.uint16)).save(folder / "b_mask.png")
    clips = FolderClips(str(tmp_path), "same", (3, 2), 2, masks=True)
    found = {one.key.camera: one.panoptic.instance.tolist() for one in clips[0] if one.panoptic is not None}
    assert found == {"a.png": truth.clip(0, 2).tolist(), "b.png": truth.tolist()}
