"""Kills what a process leaves behind: `python reaper.py`, started by that process with a pipe as its input.

While the process lives, the reaper notes which processes descend from it; when it ends without a word over the pipe,
they are killed. Of Ray's local clusters the servers notice the end of their driver, the agents do not. Linux only:
elsewhere there is no /proc, and nobody is noted.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STARTED, _DONE = b"s", b"d"
# How often the reaper looks while processes are being started, and afterwards.
_LOOK_S, _LATER_LOOK_S = 0.5, 30.0


class Reaper:
    """The end of the pipe that the watched process holds."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def note(self) -> None:
        """Have all processes that run now noted; from here on few are expected to be started."""
        self._tell(_STARTED)

    def dismiss(self) -> None:
        """End the reaper: nothing is left to kill."""
        self._tell(_DONE)
        self._process.communicate()

    def _tell(self, word: bytes) -> None:
        # It is nobody's loss if it was killed.
        with contextlib.suppress(BrokenPipeError):
            assert self._process.stdin is not None
            self._process.stdin.write(word)
            self._process.stdin.flush()


@contextmanager
def reaped() -> Iterator[Reaper]:
    """Have what is started in the block killed where this process ends in it."""
    # In a session of its own: what stops this process, such as Ctrl-C, must not stop the reaper before.
    command = [sys.executable, "-I", "-S", __file__]
    reaper = Reaper(subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True))
    try:
        yield reaper
    finally:
        reaper.dismiss()


def _processes() -> dict[int, tuple[int, str]]:
    """Return the parent of each process, and when it was started: a number may be given to another later."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue  # it has ended meanwhile
        found[int(entry.name)] = int(fields[1]), fields[19]
    return found


def _descendants(processes: dict[int, tuple[int, str]], ancestors: set[int]) -> set[int]:
    found: set[int] = set()
    while new := {child for child, (parent, _) in processes.items() if parent in ancestors | found} - found:
        found |= new
    return found - {os.getpid()}


def _watch(stream: int, parent: int) -> dict[int, str]:
    """Return what the parent left when it ended, with the time of its start; nothing where all is done."""
    noted: dict[int, str] = {}
    pause_s, next_look = _LOOK_S, 0.0
    while os.getppid() == parent:
        if time.monotonic() >= next_look:
            processes = _processes()
            noted = {process: processes[process][1] for process in _descendants(processes, {parent})}
            next_look = time.monotonic() + pause_s
        # A fork of the parent may hold the pipe open for longer than the parent lives: it is not waited for alone.
        if select.select([stream], [], [], _LOOK_S)[0]:
            word = os.read(stream, 1)
            if word == _DONE:
                return {}
            if word != _STARTED:
                break
            pause_s, next_look = _LATER_LOOK_S, 0.0
    return noted


def main() -> None:
    """Wait for the end of the process that started this one, and kill what it left."""
    noted = _watch(sys.stdin.fileno(), os.getppid())
    processes = _processes()
    left = {process for process, started in noted.items() if processes.get(process, (0, ""))[1] == started}
    for process in left | _descendants(processes, left):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    main()
