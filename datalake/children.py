"""Processes that do not outlive the one that started them, however that one ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import wait

# How often a process looks who its parent is, where the pipe between them is held open by others.
_LOOK_S = 1.0


def die_with_parent(*_: object) -> None:
    """Have this process killed as soon as the one that started it has ended, whatever either is doing.

    To be called first in a process of `multiprocessing`; elsewhere it does nothing. The arguments are what pools and
    loaders give to such a function, and say nothing.
    """
    # The kernel's own parent-death signal is sent when the thread ends that started the process, which may be a pool's.
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_watch, args=(parent.sentinel, os.getppid()), name="parent", daemon=True).start()


def _watch(sentinel: int, parent: int) -> None:
    while not wait([sentinel], timeout=_LOOK_S) and os.getppid() == parent:
        pass
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def process_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of so many spawned processes, which are killed when this one ends.

    An exception in the block, a signal's too, kills them at once: what they would still do is nobody's any more.
    """
    others = set(multiprocessing.active_children())
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=die_with_parent) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in set(multiprocessing.active_children()) - others:
                child.kill()
            raise
