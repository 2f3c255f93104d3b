"""Images and 2D boxes of a split for other tools, as COCO or YOLO have them.

    OUT/images/<split>/<segment>/<timestamp_us>_<camera>.jpg     the record's own bytes
    OUT/annotations/instances_<split>.json                       COCO
    OUT/labels/<split>/<segment>/<timestamp_us>_<camera>.txt     YOLO: class, center, width, height, in shares
    OUT/data.yaml                                                YOLO: the splits that were exported, and the classes
    OUT/_export/…                                                which segments are done, and of what

Numbers of images are a function of segment, time and camera, those of annotations also of the object and of its place
among the image's labels: they stay the same in every export and in every split. An export that was interrupted
continues with the segment at which it was.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from datalake.commit import Commit, LakeError
from datalake.lake import Lake
from datalake.sources.frame import OBJECT_TYPES
from datalake.store import Store

Format = Literal["coco", "yolo"]
FORMATS: tuple[str, ...] = get_args(Format)
_STATE = "_export"
_IMAGE_COLUMNS = ["segment", "timestamp_us", "camera", "jpeg", "width", "height", "location", "time_of_day", "weather"]
_LABEL_COLUMNS = ["timestamp_us", "camera", "object_id", "type", "x0", "y0", "x1", "y1", "difficulty", "depth_m"]
# Numbers of images and annotations have so many bits: a JSON reader of any language keeps them, and among a million
# images two have the same one in one of 10,000 lakes, whose export is refused.
_ID_BITS = 52
# Objects of a store are written at the same time; an image and its file of labels wait for one round trip.
_PARALLEL_WRITES = 16
# Rows of `image` that are in memory at once.
_BATCH_ROWS = 64


def export_split(lake: Lake, split: str, out: Store, style: Format, condition: str | None = None) -> Iterator[int]:
    """Write the images of a split for which the condition holds, and their boxes; yield the images of each segment.

    Raises LakeError where the condition is none or holds for no image, or the folder has an export of other settings.
    """
    lake = lake.where(condition, split)
    settings = {"format": style, "lake": lake.store.url, "snapshot": lake.snapshot, "split": split, "where": condition}
    _claim(out, split, settings)
    commits = lake.in_split(split)
    for commit in commits:
        done = f"{_STATE}/{split}/{commit.segment}.json"
        if not out.exists(done):
            rows = _export_segment(lake.of_commits(commit), commit, out, style)
            out.create(done, json.dumps(rows, separators=(",", ":")).encode())
        yield len(_read_rows(out, commit)["images"])
    if style == "coco":
        _write_instances(out, split, commits, settings)
    else:
        _write_data_yaml(out)


def _number(*key: object) -> int:
    """Return the number above 0 of an image or annotation with this key, always the same."""
    digest = hashlib.sha256("\0".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8]) % (2**_ID_BITS - 1) + 1


def _claim(out: Store, split: str, settings: dict[str, Any]) -> None:
    """Make the folder's split one of these settings; raises LakeError where it has another export."""
    name, mine = f"{_STATE}/{split}.json", json.dumps(settings, sort_keys=True).encode()
    if not out.create(name, mine) and (theirs := out.read(name)) != mine:
        found = json.loads(theirs)
        differing = [f"{each} {found.get(each)} instead of {value}" for each, value in settings.items()
                     if found.get(each) != value]  # fmt: skip
        raise LakeError(
            f"{out.url}: holds an export of split {split} with other settings: {', '.join(differing)}; give another"
            " --out, or delete it"
        )


def _export_segment(lake: Lake, commit: Commit, out: Store, style: Format) -> dict[str, list[dict[str, Any]]]:
    """Write a segment's files, and return its images and annotations as COCO has them."""
    labels: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for row in lake.scan("label", _LABEL_COLUMNS).to_table().to_pylist():
        labels.setdefault((row["timestamp_us"], row["camera"]), []).append(row)
    images, annotations = [], []
    with ThreadPoolExecutor(1 if out.is_local else _PARALLEL_WRITES) as pool:
        for rows in _image_batches(lake, commit):
            writes = []
            for row in rows:
                name = f"{commit.segment}/{row['timestamp_us']}_{row['camera']}"
                writes.append(pool.submit(out.write, f"images/{commit.split}/{name}.jpg", row.pop("jpeg")))
                mine = labels.get((row["timestamp_us"], row["camera"]), [])
                if style == "yolo":
                    lines = "".join(_yolo_line(label, row["width"], row["height"]) for label in mine)
                    # An object of a store is not empty; a line's end alone is no box.
                    writes.append(pool.submit(out.write, f"labels/{commit.split}/{name}.txt", lines.encode() or b"\n"))
                number = _number(commit.segment, row["timestamp_us"], row["camera"])
                images.append({"id": number, "file_name": f"{name}.jpg", **row})
                annotations += [_annotation(number, place, label) for place, label in enumerate(mine)]
            for write in writes:
                write.result()
    return {"images": images, "annotations": annotations if style == "coco" else []}


def _image_batches(lake: Lake, commit: Commit) -> Iterator[list[dict[str, Any]]]:
    """Yield rows of `image` that the lake has kept."""
    kept, place = "".join(commit.chunks), 0
    scanner: ds.Scanner = lake.dataset("image").scanner(columns=_IMAGE_COLUMNS, batch_size=_BATCH_ROWS)
    for batch in scanner.to_batches():
        mask = pa.array([number != "0" for number in kept[place : place + len(batch)]], pa.bool_())
        place += len(batch)
        yield batch.filter(mask).to_pylist()


def _annotation(image: int, place: int, label: dict[str, Any]) -> dict[str, Any]:
    width, height = label["x1"] - label["x0"], label["y1"] - label["y0"]
    return {
        # A record may have an object's identity twice in an image.
        "id": _number(image, place, label["object_id"]),
        "image_id": image,
        "category_id": OBJECT_TYPES.index(label["type"]),
        "bbox": [label["x0"], label["y0"], width, height],
        "area": width * height,
        "iscrowd": 0,
        "difficulty": label["difficulty"],
        "depth_m": label["depth_m"],
        "object_id": label["object_id"],
    }


def _yolo_line(label: dict[str, Any], width: int, height: int) -> str:
    center_x, center_y = (label["x0"] + label["x1"]) / 2 / width, (label["y0"] + label["y1"]) / 2 / height
    sides = f"{(label['x1'] - label['x0']) / width:.7f} {(label['y1'] - label['y0']) / height:.7f}"
    # YOLO counts classes from 0 on.
    return f"{OBJECT_TYPES.index(label['type']) - 1} {center_x:.7f} {center_y:.7f} {sides}\n"


def _write_instances(out: Store, split: str, commits: Sequence[Commit], settings: dict[str, Any]) -> None:
    """Write the JSON of all segments, one in memory at a time; raises LakeError where numbers are not different."""
    categories = [{"id": number, "name": name} for number, name in enumerate(OBJECT_TYPES) if name is not None]
    _check_numbers(out, split, commits)
    head = json.dumps({"info": settings, "licenses": [], "categories": categories})
    with out.sink(f"annotations/instances_{split}.json") as sink:
        sink.write(head[:-1].encode())
        for part in ("images", "annotations"):
            sink.write(f',\n"{part}": ['.encode())
            before = b"\n"
            for commit in commits:
                for row in _read_rows(out, commit)[part]:
                    sink.write(before + json.dumps(row).encode())
                    before = b",\n"
            sink.write(b"]")
        sink.write(b"}\n")


def _check_numbers(out: Store, split: str, commits: Sequence[Commit]) -> None:
    """Raise LakeError where two images, or two annotations, have the same number: readers keep one of them alone."""
    numbers = {"images": array("Q"), "annotations": array("Q")}
    for commit in commits:
        for part, rows in _read_rows(out, commit).items():
            numbers[part].extend(row["id"] for row in rows)
    for part, found in numbers.items():
        values = np.sort(np.frombuffer(found, np.uint64))
        if len(twice := values[1:][values[1:] == values[:-1]]):
            raise LakeError(
                f"{out.url}: {len(twice)} {part} of split {split} have the number of another, e.g. {twice[0]}; export"
                " parts of the split, with --where"
            )


def _read_rows(out: Store, commit: Commit) -> dict[str, list[dict[str, Any]]]:
    """Return the images and annotations of a segment that is done."""
    rows: dict[str, list[dict[str, Any]]] = json.loads(out.read(f"{_STATE}/{commit.split}/{commit.segment}.json"))
    return rows


def _write_data_yaml(out: Store) -> None:
    """Write what YOLO's trainers read: where the images of each split are that was exported so far."""
    names = [name for name in OBJECT_TYPES if name is not None]
    splits = sorted(name.removesuffix(".json") for name in _states(out))
    lines = [*(f"{json.dumps(split)}: images/{split}" for split in splits), "names:"]
    lines += [f"  {number}: {name}" for number, name in enumerate(names)]
    out.write("data.yaml", ("\n".join(lines) + "\n").encode())


def _states(out: Store) -> list[str]:
    """Return the names of the files directly in the folder of states: one for each split."""
    return [name.removeprefix(f"{_STATE}/") for name in out.listing(_STATE) if name.count("/") == 1]
