"""Progress of a job: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_LOG_EVERY_S = 10.0


class ProgressBar:
    """Shows `done` of `total` units of one stage after another, with the rate and the time left."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description:>8}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[unit]}"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._stage = ""
        self._task = self._bar.add_task("", total=None, visible=False, unit="", rate="")
        self._started = self._logged = time.monotonic()

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, stage: str, done: int, total: int, unit: str) -> None:
        """Show that `done` of `total` units of `stage` are finished; a new stage starts a new bar."""
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._started, self._logged = stage, now, now
            self._task = self._bar.add_task(stage, total=total, unit=unit, rate="")
        rate = done / max(now - self._started, 1e-9)
        text = f"{rate:,.1f} {unit}/s" if done else ""
        self._bar.update(self._task, completed=done, total=total, rate=text)
        if self._bar.disable and (now - self._logged > _LOG_EVERY_S or done == total):
            self._logged = now
            left = f", {(total - done) / rate:,.0f} s left" if done and done < total else ""
            self._console.print(f"{stage}: {done:,}/{total:,} {unit}, {text or 'starting'}{left}")
