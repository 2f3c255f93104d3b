"""The demo, small: drives, lake, teachers, student and a page, from one command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from datalake.commit import LakeError
from datalake.lake import open_lake
from pipelines.demo import DemoConfig, main, run
from teachers.card import read_card
from tests.support.data import ROOT
from tests.support.programs import Call, environment
from training.checkpoint import load_checkpoint
from training.run_dir import RunDir

# The smallest of which a student's batch of 6 images can be made.
SIZES = (
    *("--teach-segments", "1", "--train-segments", "2", "--val-segments", "1", "--frames", "3"),
    *("--lidar-steps", "2", "--mask-steps", "4", "--student-steps", "4", "--device", "cpu"),
)


def demo(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "pipelines/demo.py"), "--out", str(out), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=900, env=environment())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the output of one demo."""
    out = tmp_path_factory.mktemp("demo")
    done = demo(out, *SIZES)
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done.stdout


def test_the_lake_has_every_frame_in_three_splits(finished: tuple[Path, str]) -> None:
    lake = open_lake(str(finished[0] / "lake"))
    frames = {split: sum(c.frames for c in lake.in_split(split)) for split in lake.splits}
    assert frames == {"teach": 3, "train": 6, "val": 3}


def test_the_splits_share_no_segment(finished: tuple[Path, str]) -> None:
    lake = open_lake(str(finished[0] / "lake"))
    names = [commit.segment for commit in lake.commits]
    assert len(set(names)) == len(names) == 4


def test_the_page_shows_images_and_needs_no_other_file(finished: tuple[Path, str]) -> None:
    page = (finished[0] / "report.html").read_text()
    assert page.count('src="data:image/') > 8
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_the_metrics_are_of_both_teachers(finished: tuple[Path, str]) -> None:
    metrics = json.loads((finished[0] / "metrics.json").read_text())["metrics"]
    assert {"imitation/spvcnn/R2", "imitation/mask_rcnn/mIoU", "recall@100"} <= metrics.keys()


def test_the_teachers_were_trained_on_segments_of_their_own(finished: tuple[Path, str]) -> None:
    lake = open_lake(str(finished[0] / "lake"))
    taught = {commit.segment for commit in lake.in_split("teach")}
    for name in ("spvcnn", "mask_rcnn"):
        card = read_card(str(finished[0] / "teachers" / name))
        assert card.data is not None
        assert card.data.all_segments == taught


def test_on_a_cpu_the_lidar_teacher_learns_in_float32(finished: tuple[Path, str]) -> None:
    checkpoint = load_checkpoint(RunDir(str(finished[0] / "teachers/spvcnn")))
    assert checkpoint is not None
    assert checkpoint.fingerprint["bfloat16"] is False


def test_nobody_waited_for_a_teacher(finished: tuple[Path, str]) -> None:
    lines = (finished[0] / "student/history.jsonl").read_text().splitlines()
    shares = [json.loads(line)["wait/teachers"] for line in lines]
    assert len(shares) == 4
    assert sorted(shares)[1] < 0.2


def test_the_page_is_named_at_the_end(finished: tuple[Path, str]) -> None:
    assert finished[1].strip().endswith(str(finished[0] / "report.html"))


@pytest.mark.slow
def test_running_it_again_keeps_what_is_there(finished: tuple[Path, str]) -> None:
    out = finished[0]
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.tfrecord")}
    done = demo(out, *SIZES)
    assert done.returncode == 0
    assert "0 committed, 2 there before, 0 failed" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.tfrecord")} == before


@pytest.mark.slow
def test_with_a_store_everything_is_there_and_the_same(
    finished: tuple[Path, str], s3_lake: str, tmp_path: Path
) -> None:
    done = demo(tmp_path, *SIZES, "--store", s3_lake)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip().endswith(f"{s3_lake}/report.html")
    local, remote = open_lake(str(finished[0] / "lake")), open_lake(f"{s3_lake}/lake")
    assert [commit.files for commit in remote.commits] == [commit.files for commit in local.commits]
    there = RunDir(s3_lake)
    content = there.read("metrics.json")
    assert content is not None
    metrics, expected = (json.loads(text)["metrics"] for text in (content, (finished[0] / "metrics.json").read_bytes()))
    for values in (metrics, expected):
        del values["images_per_second"]
    assert metrics == expected
    for name in ("spvcnn", "mask_rcnn"):
        local_card = read_card(str(finished[0] / "teachers" / name))
        assert read_card(f"{s3_lake}/teachers/{name}").weights_sha256 == local_card.weights_sha256
    assert not list(tmp_path.rglob("*.tfrecord"))


def test_bad_arguments_end_in_one_line_and_status_2(tmp_path: Path, call: Call) -> None:
    assert "unknown camera 'ROOF'" in call.refused(main, ["--out", str(tmp_path), "--cameras", "ROOF"])


def test_a_store_as_the_local_folder_is_refused() -> None:
    with pytest.raises(LakeError, match="--store takes a URL"):
        run(DemoConfig(out=Path("s3://bucket/demo")), Console(quiet=True))


def test_no_step_of_a_kind_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(LakeError, match="--mask-steps 0: expected at least 1"):
        run(DemoConfig(out=tmp_path / "demo", mask_steps=0), Console(quiet=True))
    assert not (tmp_path / "demo").exists()
