"""What dead attempts leave is removed; what anybody may still need is not."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from datalake.commit import LakeError
from datalake.lake import Lake
from datalake.vacuum import GRACE_S, unreferenced, vacuum

ATTEMPT = "0123456789abcdef"


def leave(lake: Lake, name: str, age_s: float = 0) -> Path:
    path = Path(lake.store.path(name))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"left behind")
    then = time.time() - age_s
    os.utime(path, (then, then))
    return path


def test_committed_files_are_kept_without_any_grace(own_lake: Lake) -> None:
    assert unreferenced(own_lake.store, "train", grace_s=0) == []


def test_a_young_file_of_an_uncommitted_segment_may_belong_to_a_running_build(own_lake: Lake) -> None:
    leave(own_lake, f"train/point/drive-{ATTEMPT}.parquet", age_s=GRACE_S / 2)
    assert unreferenced(own_lake.store, "train") == []


def test_an_old_file_of_an_uncommitted_segment_is_removed(own_lake: Lake) -> None:
    path = leave(own_lake, f"train/point/drive-{ATTEMPT}.parquet", age_s=GRACE_S * 2)
    assert vacuum(own_lake.store, "train") == [f"train/point/drive-{ATTEMPT}.parquet"]
    assert not path.exists()


def test_a_loser_of_a_committed_segment_is_removed_at_once(own_lake: Lake) -> None:
    name = f"train/image/{own_lake.commits[0].segment}-{ATTEMPT}.parquet"
    path = leave(own_lake, name)
    assert vacuum(own_lake.store, "train") == [name]
    assert not path.exists()


def test_a_segment_whose_name_begins_like_another_is_not_taken_for_it(own_lake: Lake) -> None:
    leave(own_lake, f"train/image/{own_lake.commits[0].segment}-b-{ATTEMPT}.parquet")
    assert unreferenced(own_lake.store, "train") == []


def test_other_splits_are_left_alone(own_lake: Lake) -> None:
    leave(own_lake, f"val/image/drive-{ATTEMPT}.parquet", age_s=GRACE_S * 2)
    assert unreferenced(own_lake.store, "train") == []


def test_the_list_of_faults_of_a_segment_goes_when_it_is_committed(own_lake: Lake) -> None:
    committed = leave(own_lake, f"_failed/train/{own_lake.commits[0].segment}.json")
    failed = leave(own_lake, "_failed/train/drive.json")
    vacuum(own_lake.store, "train")
    assert (committed.exists(), failed.exists()) == (False, True)


def test_an_unfinished_commit_of_a_dead_builder_goes_after_the_grace(own_lake: Lake) -> None:
    old = leave(own_lake, "_commits/train/.drive.json.1234.tmp", age_s=GRACE_S * 2)
    young = leave(own_lake, "_commits/train/.drive.json.5678.tmp")
    vacuum(own_lake.store, "train")
    assert (old.exists(), young.exists()) == (False, True)


def test_nothing_is_swept_where_commits_of_the_snapshot_are_not_listed(own_lake: Lake) -> None:
    commit = own_lake.commits[0]
    own_lake.store.delete(f"_commits/train/{commit.segment}.json")
    with pytest.raises(LakeError, match="commits of snapshot 1 are not listed"):
        vacuum(own_lake.store, "train", grace_s=0)
    assert all(own_lake.store.exists(commit.file_name(table)) for table in commit.files)
