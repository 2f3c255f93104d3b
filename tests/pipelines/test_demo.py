"""The demo, small: drives, lake, pictures and a page, from one command."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from datalake.lake import open_lake

ROOT = Path(__file__).resolve().parents[2]
SIZES = ("--train-segments", "2", "--val-segments", "1", "--frames", "3")


def demo(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "pipelines/demo.py"), "--out", str(out), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the output of one demo."""
    out = tmp_path_factory.mktemp("demo")
    done = demo(out, *SIZES)
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done.stdout


def test_the_lake_has_every_frame_in_two_splits(finished: tuple[Path, str]) -> None:
    lake = open_lake(str(finished[0] / "lake"))
    assert {split: sum(c.frames for c in lake.in_split(split)) for split in lake.splits} == {"train": 6, "val": 3}


def test_the_splits_share_no_segment(finished: tuple[Path, str]) -> None:
    lake = open_lake(str(finished[0] / "lake"))
    train, val = ({commit.segment for commit in lake.in_split(split)} for split in ("train", "val"))
    assert not train & val


def test_the_page_shows_a_picture_of_every_segment_and_needs_no_other_file(finished: tuple[Path, str]) -> None:
    page = (finished[0] / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == 3
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert len(list((finished[0] / "pictures").glob("*.png"))) == 3


def test_the_page_is_named_at_the_end(finished: tuple[Path, str]) -> None:
    assert finished[1].strip().endswith(str(finished[0] / "report.html"))


def test_running_it_again_keeps_what_is_there(finished: tuple[Path, str]) -> None:
    out = finished[0]
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.tfrecord")}
    done = demo(out, *SIZES)
    assert done.returncode == 0
    assert "0 committed, 2 there before, 0 failed" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.tfrecord")} == before


def test_bad_arguments_end_in_one_line_and_status_2(tmp_path: Path) -> None:
    done = demo(tmp_path, "--cameras", "ROOF")
    assert done.returncode == 2
    assert "unknown camera 'ROOF'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
