"""The log of a run."""

from __future__ import annotations

from pathlib import Path

from training.metrics_log import HISTORY_FILE, MetricsLog, read_history
from training.run_dir import RunDir


def write(folder: Path, steps: range) -> None:
    with MetricsLog(RunDir(str(folder)), steps.start) as log:
        for step in steps:
            log.append(step, {"loss": step / 3})
        log.sync()


def steps(folder: Path) -> list[float]:
    return [line["step"] for line in read_history(RunDir(str(folder)))]


def test_lines_are_read_as_they_were_written(tmp_path: Path) -> None:
    write(tmp_path / "new", range(3))
    assert read_history(RunDir(str(tmp_path / "new"))) == [{"step": step, "loss": step / 3} for step in range(3)]


def test_a_run_that_logged_nothing_has_no_history(tmp_path: Path) -> None:
    assert read_history(RunDir(str(tmp_path))) == []


def test_steps_beyond_the_checkpoint_are_removed(tmp_path: Path) -> None:
    write(tmp_path, range(7))
    write(tmp_path, range(4, 6))
    assert steps(tmp_path) == [0, 1, 2, 3, 4, 5]


def test_a_line_that_was_cut_off_is_removed(tmp_path: Path) -> None:
    write(tmp_path, range(4))
    with (tmp_path / HISTORY_FILE).open("a") as file:
        file.write('{"step": 4, "lo')
    write(tmp_path, range(4, 5))
    assert steps(tmp_path) == [0, 1, 2, 3, 4]


def test_a_new_run_starts_a_new_log(tmp_path: Path) -> None:
    write(tmp_path, range(4))
    write(tmp_path, range(2))
    assert steps(tmp_path) == [0, 1]
