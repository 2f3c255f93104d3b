"""The viewer in a browser: what its server answers, to whom, and how it ends."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

import pytest

from datalake.__main__ import main
from datalake.lake import Lake
from tests.support.data import ROOT
from tests.support.programs import Call, environment


class Served(NamedTuple):
    """A running command, the page that it names, and its temporary files."""

    process: subprocess.Popen[str]
    page: str
    temporary: Path


@pytest.fixture
def served(drive_lake: Lake, tmp_path: Path) -> Iterator[Served]:
    words = ["view", "--lake", drive_lake.store.url, "--frames", "1", "--port", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "datalake", *words],
        cwd=ROOT,
        env=environment({"TMPDIR": str(tmp_path)}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "1 frames: http://" in line
        yield Served(process, line.split()[-1], tmp_path)
    finally:
        process.kill()
        process.communicate()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def listening(pid: int) -> set[tuple[str, int]]:
    """Return address and port of every socket on which a process listens."""
    inodes = {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()}
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    found = [row[1].split(":") for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes]
    return {(socket.inet_ntoa(bytes.fromhex(address)[::-1]), int(port, 16)) for address, port in found}


@pytest.mark.integration
def test_the_viewer_answers_on_loopback_alone_and_ends_with_its_command(served: Served) -> None:
    with urllib.request.urlopen(served.page, timeout=60) as answer:
        assert answer.status == 200
        assert b"<html" in answer.read()
    (server,) = children(served.process.pid)
    source = urlsplit(parse_qs(urlsplit(served.page).query)["url"][0])
    ports = {urlsplit(served.page).port, source.port}
    assert listening(server) == {("127.0.0.1", port) for port in ports}
    served.process.send_signal(signal.SIGTERM)
    _, errors = served.process.communicate(timeout=60)
    assert served.process.returncode == 128 + signal.SIGTERM
    assert len(errors.splitlines()) == 1
    assert not Path(f"/proc/{server}").exists()
    assert not list(served.temporary.iterdir())


def test_a_port_that_is_taken_is_one_line(drive_lake: Lake, call: Call) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = call.refused(main, ["view", "--lake", drive_lake.store.url, "--port", str(port)])
    assert f"port {port} of 127.0.0.1: Address already in use; give another --port" in line
