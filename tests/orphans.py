"""A program that is stopped or killed, and what is left of all that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_MARK = "CLASSROOMNET_TEST"


class Program:
    """A Python program whose descendants, forked or started, can be found also when it is gone."""

    def __init__(self, words: Sequence[str], log: Path, more: Mapping[str, str] | None = None) -> None:
        """Start it, its output in `log`.

        more: environment beside that of the tests
        """
        self._mark = f"{_MARK}={uuid.uuid4().hex}".encode()
        name, _, value = self._mark.decode().partition("=")
        self._log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, *words],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **(more or {}), name: value},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def await_(self, ready: Callable[[], bool], within_s: float = 240) -> None:
        give_up = time.monotonic() + within_s
        while not ready():
            assert self.process.poll() is None, self.output
            assert time.monotonic() < give_up, self.output
            time.sleep(0.02)

    @property
    def output(self) -> str:
        return self._log.read_text()

    def stop(self, number: signal.Signals) -> int:
        """Send the signal to the program alone; return its exit status."""
        self.process.send_signal(number)
        return self.process.wait(timeout=60)

    def descendants(self) -> list[str]:
        """Return what runs of all that the program started, itself not counted."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if self._mark not in (entry / "environ").read_bytes().split(b"\0"):
                    continue
                is_dead = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
            except OSError:
                continue
            if not is_dead and int(entry.name) != self.process.pid:
                found.append(f"{entry.name}: {(entry / 'cmdline').read_text()[:100]!r}")
        return found

    def await_no_descendants(self, within_s: float = 20) -> None:
        give_up = time.monotonic() + within_s
        while left := self.descendants():
            assert time.monotonic() < give_up, left
            time.sleep(0.05)

    def end(self) -> None:
        """Clear away whatever a failed test leaves."""
        for line in [*self.descendants(), f"{self.process.pid}:"]:
            try:
                os.kill(int(line.partition(":")[0]), signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()
