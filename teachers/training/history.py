"""What a run did, step by step: one line of JSON each."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType


class History:
    """Appends to a JSONL file, from a given step on.

    Steps that an interrupted run had logged beyond its last checkpoint are removed: they are about to be done again.
    """

    def __init__(self, path: Path, step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = _lines_before(path, step) if step else []
        unfinished = path.with_name(f"{path.name}.unfinished")
        unfinished.write_text("".join(kept))
        unfinished.replace(path)
        self._file = path.open("a")

    def __enter__(self) -> History:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, step: int, values: Mapping[str, float]) -> None:
        """Log `values` of step number `step`, for others to follow at once."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Wait until all lines are on disk. Before a checkpoint, so that no step it has done is missing here."""
        os.fsync(self._file.fileno())


def read_history(path: Path) -> list[dict[str, float]]:
    """Return the lines of a run's log, oldest first."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def _lines_before(path: Path, step: int) -> list[str]:
    kept = []
    with path.open() as file:
        for line in file:
            # The process may have died within a line, which then is the last and of a step to be repeated.
            if not line.endswith("\n") or json.loads(line)["step"] >= step:
                break
            kept.append(line)
    return kept
