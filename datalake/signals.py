"""How a job ends when it is asked to: by Ctrl-C, `ray job stop`, or whoever needs the machine."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stoppable(program: str) -> Iterator[None]:
    """End the program with one line, and exit status 128 + the signal's number, where it is told to stop in the block.

    For programs that go on where they were when they are started again. Their output appears line by line, also in a
    file: a log that is behind cannot be followed.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)

    process = os.getpid()
    stopped = 0

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal stopped
        stopped = number
        # What is told twice still ends once.
        for other in _SIGNALS:
            signal.signal(other, signal.SIG_IGN)
        # Processes that were forked from this one end in silence.
        if os.getpid() == process:
            line = f"{program}: stopped by {signal.Signals(number).name}; run the same command again to go on\n"
            # At once and past all buffers: Ray kills a job that has not ended after three seconds.
            os.write(2, line.encode())
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        yield
    except BaseException as error:
        # Ray puts another status in its place, and what is stopped in the middle may fail in other ways.
        if stopped:
            raise SystemExit(128 + stopped) from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
