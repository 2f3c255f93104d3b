"""Tasks of a build in processes of this machine, without Ray."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from datalake.children import die_with_parent
from datalake.task import attempt

Item = TypeVar("Item")

# A task whose process dies (killed, out of memory) is run again, as often as Ray does it.
_RETRIES = 3
# Locks that threads of this process hold, of pyarrow for one, would stay closed in a fork.
_SPAWN = multiprocessing.get_context("spawn")


class WorkerDiedError(Exception):
    """Each process that ran a task ended before the task did."""


def run_in_processes(
    function: Callable[..., Any], calls: Iterable[tuple[Item, tuple[Any, ...]]], processes: int | None = None
) -> Iterator[tuple[Item, Any]]:
    """Yield (item, result) or (item, exception) as the calls finish; function, arguments and results are pickled.

    processes: how many tasks run at a time; by default one for each CPU that this process may use

    A task whose process dies is run again a few times, then its item comes with a WorkerDiedError. What a task raises
    beyond what `attempt` returns is a bug and is raised here.
    """
    limit = processes or len(os.sched_getaffinity(0))
    waiting: Iterator[_Call] = (_Call(item, arguments) for item, arguments in calls)
    idle: list[_Worker] = []
    busy: dict[Any, tuple[_Worker, _Call]] = {}
    try:
        while True:
            while len(busy) < limit and (call := next(waiting, None)):
                worker = idle.pop() if idle else _Worker(function)
                busy[worker.connection] = (worker, call)
                worker.connection.send(call.arguments)
            if not busy:
                return
            for connection in wait(list(busy)):
                worker, call = busy.pop(connection)
                try:
                    raised, result = worker.connection.recv()
                except (EOFError, ConnectionError):
                    call.deaths += 1
                    if call.deaths <= _RETRIES:
                        waiting = itertools.chain([call], waiting)
                        continue
                    raised, result = False, WorkerDiedError(f"its process {worker.end()}, {call.deaths} times")
                else:
                    idle.append(worker)
                if raised:
                    raise result
                yield call.item, result
    finally:
        for worker in [*idle, *(worker for worker, _ in busy.values())]:
            worker.process.terminate()
            worker.end()


@dataclass(slots=True)
class _Call:
    """A task, and how many of its processes died."""

    item: Any
    arguments: tuple[Any, ...]
    deaths: int = 0


class _Worker:
    """A process that runs one task after the other."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.connection, theirs = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=_serve, args=(function, theirs), daemon=True)
        self.process.start()
        # Its death is the end of the connection only if nobody else holds that end.
        theirs.close()

    def end(self) -> str:
        """Wait for the process's end, and say how it came."""
        self.process.join()
        self.connection.close()
        code = self.process.exitcode or 0
        return f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"


def _serve(function: Callable[..., Any], connection: Connection) -> None:
    die_with_parent()
    # Ctrl-C reaches every process of a terminal; the one that was started there ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            arguments = connection.recv()
        except EOFError:
            # The process that hands out tasks is gone, whatever ended it.
            return
        raised = False
        try:
            result = attempt(function, *arguments)
        except Exception as error:
            error.add_note(f"in a worker process:\n{traceback.format_exc()}")
            raised, result = True, error
        try:
            connection.send((raised, result))
        except BrokenPipeError:
            return
