"""What a run has logged, as tests compare it."""

from __future__ import annotations

from pathlib import Path

from training.metrics_log import read_history
from training.run_dir import RunDir

_CLOCK = {"images_per_second", "wait/data", "wait/teachers"}


def logged(folder: Path | str) -> list[dict[str, float]]:
    """Return the metrics of a run's steps without what depends on when and how fast they are done."""
    lines = read_history(RunDir(str(folder)))
    return [{name: value for name, value in line.items() if name not in _CLOCK} for line in lines]
