"""The size of images that is chosen where none is given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from datalake.build import BuildConfig
from datalake.commit import LakeError
from datalake.lake import Lake
from pipelines.image_size import choose_image_size, find_image_size, fixed
from student.config import StudentError
from tests.frames import FRONT, jpeg, make_frame, write_frames
from tests.lakes import build_files, build_frames
from training.checkpoint import Checkpoint, save_checkpoint
from training.run_dir import RunDir

FRONT_ALONE = BuildConfig(cameras=("FRONT",))


def frame(index: int, size: tuple[int, int], sides: Sequence[float]) -> Any:
    """Return a frame whose front image is of this size and has square boxes of these sides."""
    frame = make_frame(index, lidar=False)
    width, height = size
    for image, calibration in zip(frame.images, frame.context.camera_calibrations, strict=True):
        if image.name == FRONT:
            image.image = jpeg(width, height)
            calibration.width, calibration.height = width, height
    del frame.camera_labels[:]
    group = frame.camera_labels.add(name=FRONT)
    for number, side in enumerate(sides):
        label = group.labels.add(id=f"box-{index}-{number}", type=1)
        label.box.center_x, label.box.center_y, label.box.length, label.box.width = width / 2, height / 2, side, side
    return frame


def chosen(lake: Lake) -> tuple[int, int]:
    return choose_image_size(lake, ("FRONT",))[0]


@pytest.mark.parametrize(
    ("sides", "size"),
    [
        ([4.1] * 8 + [1.0] * 2, (384, 256)),
        ([4.1] * 7 + [2.7] * 3, (576, 384)),
        ([4.1] * 7 + [2.1] * 3, (768, 512)),
        ([4.1] * 7 + [1.7] * 3, (960, 640)),
        ([1.0] * 10, (960, 640)),
        ([], (384, 256)),
    ],
)
def test_at_the_smallest_size_four_of_five_boxes_are_8_px_large(
    sides: list[float], size: tuple[int, int], tmp_path: Path
) -> None:
    # Half as wide as the smallest size: 4 px here are 8 px there.
    lake = build_frames(tmp_path, [frame(0, (192, 128), sides[:4]), frame(1, (192, 128), sides[4:])]).lake
    assert chosen(lake) == size


def test_the_boxes_of_all_splits_decide(tmp_path: Path) -> None:
    for split, side in (("train", 4.1), ("val", 2.7)):
        frames = [frame(0, (192, 128), [side] * 4)]
        frames[0].context.name = split
        source = write_frames(tmp_path / f"{split}.tfrecord", frames)
        lake = build_files(str(tmp_path / "lake"), [source], BuildConfig(split=split, cameras=("FRONT",))).lake
    assert chosen(lake) == (576, 384)


@pytest.mark.parametrize(
    ("pictures", "size"),
    [
        ([(192, 96)], (384, 192)),
        ([(192, 96), (192, 128), (384, 192)], (384, 192)),
        ([(192, 96), (192, 128)], (384, 256)),
        # 384 x 177 would not divide into cells.
        ([(1920, 886)], (384, 192)),
    ],
)
def test_it_has_the_proportions_of_most_images_in_whole_cells(
    pictures: list[tuple[int, int]], size: tuple[int, int], tmp_path: Path
) -> None:
    frames = [frame(index, each, [each[0] / 8]) for index, each in enumerate(pictures)]
    assert chosen(build_frames(tmp_path, frames, FRONT_ALONE).lake) == size


def test_a_size_that_is_given_is_taken_and_one_that_is_found_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = build_frames(tmp_path, [frame(0, (192, 128), [4.1, 4.1, 2.7])], FRONT_ALONE).lake
    assert find_image_size((96, 64), lake, ("FRONT",), Console()) == (96, 64)
    assert capsys.readouterr().out == ""
    assert find_image_size("auto", lake, ("FRONT",), Console(), run=str(tmp_path / "run")) == (576, 384)
    told = "image size 576 x 384: 100% of the 3 boxes are at least 8 px there, 67% at 384 x 256\n"
    assert capsys.readouterr().out == told


def test_a_run_goes_on_with_the_size_that_it_began_with(tmp_path: Path) -> None:
    lake = build_frames(tmp_path, [frame(0, (192, 128), [4.1])], FRONT_ALONE).lake
    begun = Checkpoint(
        fingerprint={"image_size": "(96, 64)"}, config="{}", step=1, cursor=1, seconds=1.0, objective={}, optimizer={}
    )
    save_checkpoint(RunDir(str(tmp_path / "run")), begun)
    assert find_image_size("auto", lake, ("FRONT",), Console(quiet=True), run=str(tmp_path / "run")) == (96, 64)


def test_without_an_image_there_is_no_size_to_choose(tmp_path: Path) -> None:
    lake = build_frames(tmp_path, [frame(0, (192, 128), [4.1])], FRONT_ALONE).lake
    with pytest.raises(LakeError, match="has 0 images of SIDE_LEFT to choose a size for"):
        find_image_size("auto", lake, ("SIDE_LEFT",), Console(quiet=True))


def test_a_size_that_was_not_found_yet_is_no_size() -> None:
    assert fixed((96, 64)) == (96, 64)
    with pytest.raises(StudentError, match="image_size auto"):
        fixed("auto")
