"""One owner of a run's folder at a time, on a disk and in a store, by processes of their own."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from datalake.store import Store
from training.errors import TrainingError
from training.run_lock import run_lock

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
LEASE_S = 2.0
OWNER = """
import os, sys, time
from training.run_lock import run_lock
with run_lock(sys.argv[1], float(sys.argv[2])):
    print("owner", flush=True)
    if sys.argv[3] == "fork":
        if os.fork() == 0:
            time.sleep(600)
    sys.stdin.readline()
"""


class Owner:
    """A process that owns a folder until it is told to end, or killed."""

    def __init__(self, url: str, lease_s: float = 60.0, how: str = "") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWNER, url, str(lease_s), how],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "owner\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def owners() -> Iterator[list[Owner]]:
    """Collects processes that must not survive the test."""
    started: list[Owner] = []
    yield started
    for owner in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(owner.process.pid, signal.SIGKILL)
        owner.process.wait()


@pytest.mark.parametrize("kind", ["disk", "s3"])
def test_the_second_is_told_who_the_first_is(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, owners: list[Owner]
) -> None:
    url = str(tmp_path / "run") if kind == "disk" else request.getfixturevalue("s3_lake")
    owners.append(Owner(url))
    first = rf"process {owners[0].process.pid} on .* is at work here"
    with pytest.raises(TrainingError, match=first) as caught, run_lock(url):
        pass
    assert "\n" not in str(caught.value)
    assert re.search("wait for it, stop it, or give another --out", str(caught.value))


@pytest.mark.parametrize("kind", ["disk", "s3"])
def test_the_folder_is_free_when_its_owner_has_ended(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, owners: list[Owner]
) -> None:
    url = str(tmp_path / "run") if kind == "disk" else request.getfixturevalue("s3_lake")
    owners.append(Owner(url))
    owners[0].process.communicate("\n", timeout=30)
    with run_lock(url):
        pass
    with run_lock(url):
        pass


@pytest.mark.parametrize("how", ["", "fork"], ids=["alone", "with a child that lives on"])
def test_on_a_disk_the_lock_dies_with_its_process(tmp_path: Path, owners: list[Owner], how: str) -> None:
    owners.append(Owner(str(tmp_path / "run"), how=how))
    owners[0].kill()
    with run_lock(str(tmp_path / "run")):
        pass


def test_on_a_disk_nothing_is_left_of_the_lock(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    for name in ("new/run", "old"):
        with run_lock(str(tmp_path / name)):
            pass
    assert [path.name for path in tmp_path.rglob("*")] == ["old"]


def test_a_process_cannot_own_a_folder_twice(tmp_path: Path) -> None:
    with run_lock(str(tmp_path)):
        with pytest.raises(TrainingError, match=f"process {os.getpid()} "), run_lock(str(tmp_path)):
            pass
        # The attempt, whose file was opened and closed, has not unlocked it.
        command = [sys.executable, "-c", OWNER, str(tmp_path), "60", ""]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, input="\n")
        assert "is at work here" in done.stderr


@pytest.mark.parametrize("kind", ["disk without locks", "s3"])
def test_a_dead_owner_loses_its_lease_and_not_before(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, owners: list[Owner], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    url = str(tmp_path) if kind != "s3" else request.getfixturevalue("s3_lake")
    if kind == "s3":
        owners.append(Owner(url, LEASE_S))
        # Alive, it keeps it for longer than a lease.
        time.sleep(1.5 * LEASE_S)
        with pytest.raises(TrainingError), run_lock(url, LEASE_S):
            pass
        owners[0].kill()
    else:
        monkeypatch.setattr(fcntl, "lockf", unsupported)
        Store(url).write("_owner/1.json", b'{"process": 17, "host": "elsewhere"}')
    told = r"it was heard of \d s ago, and loses the folder 2 s after that"
    with pytest.raises(TrainingError, match=told), run_lock(url, LEASE_S):
        pass
    time.sleep(LEASE_S + 1.1)
    with run_lock(url, LEASE_S):
        assert [name for name in Store(url).listing("_owner") if name.endswith(".json")] == ["_owner/2.json"]


def test_of_many_that_follow_a_dead_owner_one_has_the_folder(s3_lake: str) -> None:
    Store(s3_lake).write("_owner/7.json", b'{"process": 17, "host": "elsewhere"}')
    time.sleep(2.1)
    command = [sys.executable, "-c", OWNER, s3_lake, str(LEASE_S), ""]
    started = [
        subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    # None ends before all have tried.
    outcomes = []
    for process in started:
        assert process.stdout is not None
        outcomes.append(process.stdout.readline())
    for process in started:
        process.communicate("\n", timeout=30)
    assert sorted(outcomes) == ["", "", "owner\n"]


def test_an_owner_that_was_taken_for_dead_is_ended(s3_lake: str, owners: list[Owner]) -> None:
    owners.append(Owner(s3_lake, 1.0))
    # As another does that has heard nothing for too long.
    assert Store(s3_lake).create("_owner/2.json", b'{"process": 17, "host": "elsewhere"}')
    assert owners[0].process.wait(timeout=30) == -signal.SIGTERM
    assert owners[0].process.stderr is not None
    assert "another training has taken over" in owners[0].process.stderr.read()


def test_a_store_that_cannot_tell_owners_apart_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with run_lock("http://127.0.0.1/run"):
        pass
    assert "http://127.0.0.1/run: this kind of store cannot keep two trainings apart" in capsys.readouterr().err
