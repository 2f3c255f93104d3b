"""What dead attempts leave is removed; what this lake did not write, or anybody may still need, is not."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from datalake.commit import LakeError
from datalake.lake import Lake
from datalake.schema import SCHEMA_VERSION
from datalake.store import Store
from datalake.vacuum import GRACE_S, unreferenced, vacuum
from tests.drives import build_drives

ATTEMPT = "0123456789abcdef"
OLD_S = 2 * GRACE_S


def leave(lake: Lake, name: str, age_s: float = 0, content: bytes = b"left behind") -> Path:
    path = Path(lake.store.path(name))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    then = time.time() - age_s
    os.utime(path, (then, then))
    return path


def leave_attempt(
    lake: Lake, segment: str, age_s: float = 0, split: str = "train", fields: dict[str, object] | None = None
) -> list[Path]:
    """Leave what an attempt has written that was killed at its second file: two files and, last, the record."""
    values = {
        "split": split,
        "segment": segment,
        "attempt": ATTEMPT,
        "tables": ["image", "point", "label"],
        "commit": f"_commits/{split}/{segment}.json",
        "schema_version": SCHEMA_VERSION,
        **(fields or {}),
    }
    record = f"_attempts/{split}/{segment}-{ATTEMPT}.json"
    return [
        *(leave(lake, f"{split}/{table}/{segment}-{ATTEMPT}.parquet", age_s) for table in ("image", "point")),
        leave(lake, record, age_s, json.dumps(values).encode()),
    ]


def names(lake: Lake, paths: list[Path]) -> list[str]:
    return [str(path.relative_to(lake.store.root)) for path in paths]


def test_committed_files_are_kept_without_any_grace(own_lake: Lake) -> None:
    assert unreferenced(own_lake.store, "train", grace_s=0) == []


def test_an_attempt_that_has_ended_leaves_no_record(own_lake: Lake) -> None:
    assert own_lake.store.listing("_attempts") == {}


def test_a_young_attempt_at_an_uncommitted_segment_may_be_running(own_lake: Lake) -> None:
    leave_attempt(own_lake, "drive", GRACE_S / 2)
    assert unreferenced(own_lake.store, "train") == []


def test_an_old_attempt_that_still_writes_is_running(own_lake: Lake) -> None:
    image, *_ = leave_attempt(own_lake, "drive", OLD_S)
    os.utime(image)
    assert unreferenced(own_lake.store, "train") == []


def test_the_files_of_a_dead_attempt_go_and_then_its_record(own_lake: Lake) -> None:
    left = leave_attempt(own_lake, "drive", OLD_S)
    assert vacuum(own_lake.store, "train") == names(own_lake, left)
    assert not any(path.exists() for path in left)


def test_the_files_of_an_attempt_that_can_only_lose_go_at_once(own_lake: Lake) -> None:
    *files, record = leave_attempt(own_lake, own_lake.commits[0].segment)
    assert vacuum(own_lake.store, "train") == names(own_lake, files)
    # It may still be at work, and write another.
    assert record.exists()


def test_of_an_attempt_that_died_after_its_commit_the_record_alone_goes(own_lake: Lake) -> None:
    commit = own_lake.commits[0]
    record = f"_attempts/train/{commit.segment}-{commit.attempt}.json"
    values = {
        "split": "train",
        "segment": commit.segment,
        "attempt": commit.attempt,
        "tables": list(commit.files),
        "commit": f"_commits/train/{commit.segment}.json",
        "schema_version": SCHEMA_VERSION,
    }
    leave(own_lake, record, OLD_S, json.dumps(values).encode())
    assert vacuum(own_lake.store, "train", grace_s=0) == [record]
    assert all(own_lake.store.exists(commit.file_name(table)) for table in commit.files)


@pytest.mark.parametrize(
    "name",
    [
        f"train/point/drive-{ATTEMPT}.parquet",
        f"train/image/{{segment}}-{ATTEMPT}.parquet",
        "train/image/000001.jpg",
        "train/label/000001.txt",
        "train/teacher_mine/notes.parquet",
        "_commits/train/.notes.tmp",
        "_attempts/train/notes.txt",
    ],
)
def test_what_no_attempt_says_it_wrote_is_never_removed(own_lake: Lake, name: str) -> None:
    path = leave(own_lake, name.format(segment=own_lake.commits[0].segment), OLD_S)
    assert vacuum(own_lake.store, "train", grace_s=0) == []
    assert path.exists()


def test_a_folder_that_is_no_lake_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "train/image/000001.jpg"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"somebody's")
    os.utime(image, (0, 0))
    with pytest.raises(LakeError, match="no lake here"):
        vacuum(Store(str(tmp_path)), "train")
    assert image.exists()


@pytest.mark.parametrize("linked", ["train", "train/image", f"train/image/drive-{ATTEMPT}.parquet"])
def test_nothing_is_removed_through_a_symbolic_link(own_lake: Lake, tmp_path: Path, linked: str) -> None:
    leave_attempt(own_lake, "drive", OLD_S)
    inside, outside = Path(own_lake.store.root, linked), tmp_path / "elsewhere"
    inside.rename(outside)
    inside.symlink_to(outside)
    vacuum(own_lake.store, "train")
    assert Path(own_lake.store.root, f"train/image/drive-{ATTEMPT}.parquet").read_bytes() == b"left behind"


@pytest.mark.parametrize(
    "fields",
    [
        {"tables": ["../../elsewhere"]},
        {"tables": None},
        {"attempt": "../x"},
        {"segment": "../x"},
        {"split": "val"},
        {"commit": "_commits/train/../../x.json"},
        {"commit": "notes.json"},
        {"schema_version": 99},
        {"more": 1},
    ],
    ids=str,
)
def test_a_record_that_could_point_elsewhere_is_refused(own_lake: Lake, fields: dict[str, object]) -> None:
    left = leave_attempt(own_lake, "drive", OLD_S, fields=fields)
    with pytest.raises(LakeError, match=f"_attempts/train/drive-{ATTEMPT}.json"):
        vacuum(own_lake.store, "train")
    assert all(path.exists() for path in left)


def test_other_splits_are_left_alone(own_lake: Lake) -> None:
    leave_attempt(own_lake, "drive", OLD_S, split="val")
    assert unreferenced(own_lake.store, "train") == []


def test_the_list_of_faults_of_a_segment_goes_when_it_is_committed(own_lake: Lake) -> None:
    committed = leave(own_lake, f"_failed/train/{own_lake.commits[0].segment}.json", age_s=3600)
    failed = leave(own_lake, "_failed/train/drive.json", age_s=3600)
    again = leave(own_lake, f"_failed/train/{own_lake.commits[1].segment}.json", age_s=-60)
    vacuum(own_lake.store, "train")
    assert (committed.exists(), failed.exists(), again.exists()) == (False, True, True)


@pytest.mark.parametrize("folder", ["_commits/train", "_attempts/train"])
def test_an_unfinished_object_of_a_dead_builder_goes_after_the_grace(own_lake: Lake, folder: str) -> None:
    old = leave(own_lake, f"{folder}/.drive.json.{ATTEMPT}{ATTEMPT}.tmp", OLD_S)
    young = leave(own_lake, f"{folder}/.drive.json.{ATTEMPT[::-1]}{ATTEMPT}.tmp")
    vacuum(own_lake.store, "train")
    assert (old.exists(), young.exists()) == (False, True)


def test_nothing_is_swept_where_commits_of_the_snapshot_are_not_listed(own_lake: Lake) -> None:
    commit = own_lake.commits[0]
    own_lake.store.delete(f"_commits/train/{commit.segment}.json")
    with pytest.raises(LakeError, match="commits of snapshot 1 are not listed"):
        vacuum(own_lake.store, "train", grace_s=0)
    assert all(own_lake.store.exists(commit.file_name(table)) for table in commit.files)


def test_a_dead_attempt_on_an_object_store_is_removed(s3_lake: str, drive_sources: list[str]) -> None:
    store = build_drives(drive_sources[:1], s3_lake).store
    values = {
        "split": "train",
        "segment": "drive",
        "attempt": ATTEMPT,
        "tables": ["image", "point"],
        "commit": "_commits/train/drive.json",
        "schema_version": SCHEMA_VERSION,
    }
    store.write(f"train/image/drive-{ATTEMPT}.parquet", b"left behind")
    store.write(f"_attempts/train/drive-{ATTEMPT}.json", json.dumps(values).encode())
    store.write("train/image/notes.jpg", b"somebody's")
    assert vacuum(store, "train") == []
    time.sleep(1.1)  # the store's times are whole seconds
    assert vacuum(store, "train", grace_s=1.0) == [
        f"train/image/drive-{ATTEMPT}.parquet",
        f"_attempts/train/drive-{ATTEMPT}.json",
    ]
    assert store.exists("train/image/notes.jpg")
