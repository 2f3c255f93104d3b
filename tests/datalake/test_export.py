"""Exports, read by the tools that they are for."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.dataset as ds
import pytest
from pycocotools.coco import COCO  # type: ignore[import-untyped]
from torchvision.datasets import CocoDetection

from datalake import export
from datalake.__main__ import main
from datalake.commit import LakeError
from datalake.export import export_split
from datalake.lake import Lake
from datalake.store import Store
from tests.drives import DRIVE_FRAMES, DRIVE_SEGMENTS
from tests.support.programs import Call

TYPES = {"VEHICLE": 1, "PEDESTRIAN": 2, "SIGN": 3, "CYCLIST": 4}


@pytest.fixture(scope="module")
def coco(drive_lake: Lake, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drives as COCO."""
    out = tmp_path_factory.mktemp("coco")
    assert list(export_split(drive_lake, "train", Store(str(out)), "coco")) == [2 * DRIVE_FRAMES] * DRIVE_SEGMENTS
    return out


def read_coco(out: Path) -> COCO:
    return COCO(str(out / "annotations/instances_train.json"))


def test_pycocotools_finds_each_label_with_its_box_class_and_difficulty(drive_lake: Lake, coco: Path) -> None:
    read = read_coco(coco)
    assert {each["id"]: each["name"] for each in read.loadCats(read.getCatIds())} == {n: t for t, n in TYPES.items()}
    found = []
    for image in read.loadImgs(read.getImgIds()):
        for one in read.loadAnns(read.getAnnIds(image["id"])):
            x, y, width, height = one["bbox"]
            assert one["area"] == pytest.approx(width * height)
            key = (image["segment"], image["timestamp_us"], image["camera"], one["object_id"])
            found.append((*key, one["category_id"], one["difficulty"], one["depth_m"], x, y, x + width, y + height))
    names = ["segment", "timestamp_us", "camera", "object_id", "type", "difficulty", "depth_m", "x0", "y0", "x1", "y1"]
    rows = drive_lake.scan("label", names).to_table().to_pylist()
    expected = [tuple(TYPES.get(value, value) for value in row.values()) for row in rows]
    assert sorted(found, key=str) == sorted(expected, key=str)


def test_torchvision_reads_images_with_the_bytes_of_the_lake(drive_lake: Lake, coco: Path) -> None:
    data = CocoDetection(str(coco / "images/train"), str(coco / "annotations/instances_train.json"))
    assert len(data) == DRIVE_SEGMENTS * DRIVE_FRAMES * 2
    read = read_coco(coco)
    for number in (0, len(data) - 1):
        image, annotations = data[number]
        about = read.loadImgs(data.ids[number])[0]
        assert image.size == (about["width"], about["height"])
        assert len(annotations) == len(read.getAnnIds(about["id"]))
        here = (ds.field("timestamp_us") == about["timestamp_us"]) & (ds.field("camera") == about["camera"])
        here &= ds.field("segment") == about["segment"]
        (row,) = drive_lake.scan("image", ["jpeg"], here).to_table().to_pylist()
        assert (coco / "images/train" / about["file_name"]).read_bytes() == row["jpeg"]


def test_numbers_are_the_same_whatever_else_is_exported(drive_lake: Lake, coco: Path, tmp_path: Path) -> None:
    list(export_split(drive_lake, "train", Store(str(tmp_path)), "coco", "camera = 'FRONT'"))
    every, front = read_coco(coco), read_coco(tmp_path)
    assert {image["camera"] for image in front.imgs.values()} == {"FRONT"}
    assert len(front.imgs) == DRIVE_SEGMENTS * DRIVE_FRAMES
    assert all(every.imgs[number] == image for number, image in front.imgs.items())
    assert all(every.anns[number] == one for number, one in front.anns.items())
    ids = [*every.imgs, *every.anns]
    assert len(set(ids)) == len(ids)
    assert all(0 < number < 2**53 for number in ids)
    assert not list(tmp_path.rglob("*FRONT_LEFT.jpg"))


def test_yolo_has_the_boxes_in_shares_of_the_image(drive_lake: Lake, coco: Path, tmp_path: Path) -> None:
    list(export_split(drive_lake, "train", Store(str(tmp_path)), "yolo"))
    read = read_coco(coco)
    for about in read.imgs.values():
        name = about["file_name"].removesuffix(".jpg")
        assert (tmp_path / f"images/train/{name}.jpg").read_bytes() == (coco / f"images/train/{name}.jpg").read_bytes()
        boxes = [[float(word) for word in line.split()]
                 for line in (tmp_path / f"labels/train/{name}.txt").read_text().split("\n") if line]  # fmt: skip
        expected = []
        for one in read.loadAnns(read.getAnnIds(about["id"])):
            x, y, width, height = one["bbox"]
            shares = (x + width / 2) / about["width"], (y + height / 2) / about["height"]
            sides = width / about["width"], height / about["height"]
            expected.append([one["category_id"] - 1, *shares, *sides])
        assert boxes == [pytest.approx(box, abs=1e-6) for box in expected]
    assert (tmp_path / "data.yaml").read_text() == (
        '"train": images/train\nnames:\n  0: VEHICLE\n  1: PEDESTRIAN\n  2: SIGN\n  3: CYCLIST\n'
    )


def test_an_interrupted_export_continues_with_the_segments_that_were_left(
    drive_lake: Lake, coco: Path, tmp_path: Path
) -> None:
    out = Store(str(tmp_path))
    segments = export_split(drive_lake, "train", out, "coco")
    next(segments)
    next(segments)
    del segments
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jpg")}
    assert len(written) == 4 * DRIVE_FRAMES
    # Half a file, of a segment that was not finished.
    broken = tmp_path / "images/train" / drive_lake.commits[2].segment / "1_FRONT.jpg"
    broken.parent.mkdir()
    list(export_split(drive_lake, "train", out, "coco"))
    assert all(path.stat().st_mtime_ns == at for path, at in written.items())
    whole, again = (json.loads((each / "annotations/instances_train.json").read_text()) for each in (coco, tmp_path))
    assert whole == again


def test_two_images_of_the_same_number_are_refused(
    drive_lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As many numbers as two bits have, of more images.
    monkeypatch.setattr(export, "_ID_BITS", 2)
    with pytest.raises(LakeError, match=r"images of split train have the number of another, e\.g\. [123]"):
        list(export_split(drive_lake, "train", Store(str(tmp_path)), "coco"))
    assert not list(tmp_path.glob("annotations/*.json"))


def test_an_export_of_other_settings_is_refused(drive_lake: Lake, coco: Path) -> None:
    with pytest.raises(LakeError, match="other settings: format coco instead of yolo, where None instead of cam"):
        list(export_split(drive_lake, "train", Store(str(coco)), "yolo", "camera = 'FRONT'"))


def test_the_command_exports_into_a_store(drive_lake: Lake, s3_lake: str, call: Call) -> None:
    words = ["export", "yolo", "--lake", drive_lake.store.url, "--split", "train", "--out", s3_lake]
    status, printed, _ = call(main, [*words, "--where", "camera = 'FRONT'"])
    assert status == 0
    assert f"{DRIVE_SEGMENTS * DRIVE_FRAMES} images of split train: {s3_lake}" in printed
    store = Store(s3_lake)
    assert len([name for name in store.listing("images") if name.endswith(".jpg")]) == DRIVE_SEGMENTS * DRIVE_FRAMES
    assert store.read("data.yaml").startswith(b'"train": images/train')
    assert "no split 'dev'" in call.refused(main, [*words[:4], "--split", "dev", "--out", s3_lake])
