"""A program that is told to stop ends in one line, and goes on when it is started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from datalake.lake import Lake, list_commits, open_lake, read_commits
from datalake.store import Store
from datalake.verify import verify
from student.checkpoint import read_student
from tests.drives import DRIVE_CAMERAS, DRIVE_SEGMENTS
from training.metrics_log import HISTORY_FILE

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
STEPS = 400


def start(script: str, words: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "pipelines" / script), *words],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def stop(process: subprocess.Popen[bytes], number: signal.Signals, when: Callable[[], bool]) -> int:
    """Send the signal when it is time; return the exit status."""
    give_up = time.monotonic() + 240
    while not when():
        assert process.poll() is None
        assert time.monotonic() < give_up
        time.sleep(0.01)
    process.send_signal(number)
    return process.wait(timeout=60)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_stopped_training_says_so_and_keeps_its_checkpoint(
    drive_lake: Lake, tmp_path: Path, number: signal.Signals
) -> None:
    words = [
        "--lake", drive_lake.store.root, "--out", str(tmp_path / "run"), "--image-size", "96", "64", "--batch", "2",
        "--unlabelled", "0", "--min-anchor-recall", "0", "--device", "cpu", "--loop.steps", str(STEPS),
        "--loop.checkpoint-every", "2", "--loop.precision", "float32",
    ]  # fmt: skip
    history = tmp_path / "run" / HISTORY_FILE
    training = start("train.py", words, tmp_path / "log")
    status = stop(training, number, lambda: history.exists() and history.read_text().count("\n") >= 3)
    log = (tmp_path / "log").read_text()
    assert status == 128 + number
    assert log.splitlines()[-1] == f"train: stopped by {number.name}; run the same command again to go on"
    assert "Traceback" not in log
    done = read_student(str(tmp_path / "run"))[1].step
    assert done >= 2
    again = start("train.py", words, tmp_path / "log")
    stop(again, number, lambda: json.loads(history.read_text().splitlines()[-1])["step"] > done)
    steps = [json.loads(line)["step"] for line in history.read_text().splitlines()]
    assert steps == list(range(len(steps)))


def test_a_stopped_build_says_so_and_leaves_whole_segments(drive_sources: list[str], tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    words = ["--source", *drive_sources, "--lake", str(lake), "--cameras", *DRIVE_CAMERAS]
    build = start("build_lake.py", words, tmp_path / "log")
    status = stop(build, signal.SIGTERM, lambda: (lake / "_lake.json").exists())
    log = (tmp_path / "log").read_text()
    assert status == 128 + signal.SIGTERM
    assert "build_lake: stopped by SIGTERM; run the same command again to go on" in log
    assert "Traceback" not in log
    store = Store(str(lake))
    left = Lake(store, 0, "quantised", tuple(read_commits(store, list_commits(store))))
    assert len(left.commits) < DRIVE_SEGMENTS
    assert [problems for _, problems in verify(left) if problems] == []
    again = start("build_lake.py", words, tmp_path / "log")
    assert again.wait(timeout=240) == 0, (tmp_path / "log").read_text()
    assert len(open_lake(str(lake)).commits) == DRIVE_SEGMENTS
