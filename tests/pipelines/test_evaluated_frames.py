"""Whether a student has seen the frames that it is to be examined on."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from datalake.commit import LakeError
from datalake.lake import Lake
from pipelines.evaluated_frames import check_unseen
from training.checkpoint import Checkpoint

RUN = Checkpoint(
    fingerprint={"lake": "/gone", "snapshot": 1, "split": "train"},
    config="{}",
    step=1,
    cursor=1,
    seconds=0.0,
    objective={},
    optimizer={},
)


def test_without_the_lake_of_the_training_the_split_of_its_name_is_compared(drive_lake: Lake) -> None:
    with pytest.raises(LakeError, match="the student was trained on 3 segments of split train"):
        check_unseen("/run", RUN, drive_lake, "train", Console(quiet=True))


def test_without_that_split_either_a_line_says_that_nothing_is_known(drive_lake: Lake) -> None:
    other = replace(drive_lake, commits=tuple(replace(commit, split="val") for commit in drive_lake.commits))
    told = StringIO()
    check_unseen("/run", RUN, other, "val", Console(file=told, width=300))
    assert "cannot be read, so it is unknown whether it saw these frames: " in told.getvalue()
