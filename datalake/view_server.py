"""A recording in the browser: Rerun's own server, on this machine alone, in a process that ends with the block."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import quote

from datalake.commit import LakeError
from datalake.missing_package import need

_HOST = "127.0.0.1"
# What the server keeps of a recording, whose oldest part it would drop beyond this.
_MEMORY = "75%"
_START_S, _LOOK_S = 120.0, 0.1


class ViewServer:
    """A server that answers.

    url: of the page that shows the recording
    """

    def __init__(self, process: subprocess.Popen[bytes], url: str) -> None:
        self._process, self.url = process, url

    def wait(self) -> None:
        """Return when the server has ended, whoever ended it."""
        self._process.wait()


@contextmanager
def view_server(recording: Path, ports: tuple[int, int]) -> Iterator[ViewServer]:
    """Serve a recording to browsers of this machine, until the block is left.

    ports: of the page, and of the recording that it shows

    Raises LakeError where the server does not start, MissingPackageError without rerun-sdk.
    """
    need("view", ("rerun_cli",), "a view in the browser")
    import rerun_cli

    page, data = ports
    with tempfile.TemporaryFile() as log, ExitStack() as stack:
        command = [str(Path(rerun_cli.__file__).with_name("rerun")), str(recording), "--serve-web", "--bind", _HOST]
        command += ["--port", str(data), "--web-viewer-port", str(page), "--server-memory-limit", _MEMORY]
        # With CI it reports its use to nobody. Rerun's own starter would be one more process, which does not end its
        # child.
        environment = {**os.environ, "CI": "1", "NO_COLOR": "1"}
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        stack.callback(_end, process)
        _wait_until_it_answers(process, page, log)
        source = quote(f"rerun+http://{_HOST}:{data}/proxy", safe="")
        yield ViewServer(process, f"http://{_HOST}:{page}/?url={source}")


def free_ports(port: int) -> tuple[int, int]:
    """Return `port` and the next one, or any two that are free for 0; raises LakeError where one is taken."""
    ports = []
    with ExitStack() as stack:
        for wanted in (port, port + 1) if port else (0, 0):
            probe = stack.enter_context(socket.socket())
            # As servers do: a port that was left a moment ago is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((_HOST, wanted))
            except OSError as error:
                raise LakeError(f"port {wanted} of {_HOST}: {error.strerror}; give another --port") from error
            ports.append(int(probe.getsockname()[1]))
    return ports[0], ports[1]


def _wait_until_it_answers(process: subprocess.Popen[bytes], port: int, log: IO[bytes]) -> None:
    begun = time.monotonic()
    while process.poll() is None and time.monotonic() - begun < _START_S:
        connection = http.client.HTTPConnection(_HOST, port, timeout=_START_S)
        try:
            connection.request("HEAD", "/")
            connection.getresponse()
        except ConnectionError:
            time.sleep(_LOOK_S)
        else:
            return
        finally:
            connection.close()
    log.seek(0)
    lines = log.read().decode(errors="replace").splitlines() or ["it said nothing"]
    raise LakeError(f"Rerun's server does not answer at {_HOST}:{port}: {lines[-1]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait()
