"""The log of a run."""

from __future__ import annotations

from pathlib import Path

from teachers.training.history import History, read_history


def write(path: Path, steps: range) -> None:
    with History(path, steps.start) as history:
        for step in steps:
            history.append(step, {"loss": step / 3})
        history.sync()


def test_lines_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "history.jsonl"
    write(path, range(3))
    assert read_history(path) == [{"step": step, "loss": step / 3} for step in range(3)]


def test_steps_beyond_the_checkpoint_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    write(path, range(7))
    write(path, range(4, 6))
    assert [line["step"] for line in read_history(path)] == [0, 1, 2, 3, 4, 5]


def test_a_line_that_was_cut_off_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    write(path, range(4))
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    write(path, range(4, 5))
    assert [line["step"] for line in read_history(path)] == [0, 1, 2, 3, 4]


def test_a_new_run_starts_a_new_log(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    write(path, range(4))
    write(path, range(2))
    assert [line["step"] for line in read_history(path)] == [0, 1]
