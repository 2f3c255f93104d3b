"""How a job reaches Ray: the cluster that it was submitted to, or one of its own."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pipelines.paths import cluster_address
from pipelines.reaper import reaped

# Ray's local clusters authenticate by token, which is right, and say so at every start, which is noise.
_TOKEN_NOTICE = "ray._private.authentication.authentication_token_setup"

# A cluster that is there answers at once, also from another continent.
_ANSWER_S = 15.0


class NoRayError(OSError):
    """Ray is not installed, or cannot be reached, and the command needs it."""


@contextmanager
def cluster() -> Iterator[None]:
    """Connect to Ray for the duration of the block.

    Under `ray job submit` (RAY_ADDRESS is set) the job's cluster is joined as it is. Otherwise a local one is
    started and stopped: a bare `ray.init()` might join a cluster that died and wait for it for ever.

    Raises NoRayError where Ray is not installed, or nobody answers at the cluster's address.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise NoRayError(
            "this runs on Ray, which is not installed: pip install 'classroomnet[train]', or stay in processes of this"
            " machine (build_lake.py --local, train.py --workers 0)"
        ) from error
    # Ray would have its own way to end a driver.
    stop = signal.getsignal(signal.SIGTERM)
    with ExitStack() as stack:
        if address := cluster_address():
            _check_answers(address)
            ray.init(logging_level=logging.WARNING)
        else:
            # Usage reports would go over the network.
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            logging.getLogger(_TOKEN_NOTICE).setLevel(logging.ERROR)
            _have_token()
            reaper = stack.enter_context(reaped())
            try:
                ray.init(address="local", include_dashboard=False, logging_level=logging.WARNING)
            # Whatever its servers did not like: it has no error of its own for that.
            except Exception as error:
                raise NoRayError(f"Ray does not start on this machine: {' '.join(str(error).split())}") from error
            reaper.note()
        _keep(stop)
        try:
            yield
        finally:
            ray.shutdown()
            _keep(stop)


def _have_token() -> None:
    """Give the local cluster a token of its own where Ray could not keep one in the home folder."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    try:
        folder = Path.home() / ".ray"
        if not (folder / "auth_token").exists():
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
    except (OSError, RuntimeError):
        # Read-only, full, or nobody's: a user without an entry has no home.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _check_answers(address: str) -> None:
    """Raise NoRayError unless somebody answers at HOST:PORT: Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        # Such as `auto`: Ray knows.
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise NoRayError(
            f"RAY_ADDRESS {address}: no cluster answers ({error}); start it, or unset RAY_ADDRESS to run on this"
            " machine"
        ) from error


def _keep(stop: Any) -> None:
    """Have SIGTERM handled as before: Ray takes it when it starts, and forgets about it when it ends."""
    if callable(stop) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)
