"""Builds that are killed with SIGKILL, and then run again: is the lake the same every time?"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from datalake.lake import Lake, list_commits, open_lake
from datalake.schema import TABLES
from datalake.store import Store
from datalake.vacuum import unreferenced, vacuum
from datalake.verify import verify
from tests.support.data import ROOT

_BUILD = ROOT / "pipelines" / "build_lake.py"


@dataclass(slots=True)
class Outcome:
    """What was left by the killed build, and after the second run: `problems` must be empty."""

    target: str
    killed_after_s: float
    killed: bool
    committed_before: int
    left_behind: int
    problems: list[str]


def start(sources: str, lake: Path) -> subprocess.Popen[str]:
    """Start a build as a user would, in a process group of its own."""
    command = [sys.executable, str(_BUILD), "--source", sources, "--lake", str(lake)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for a build; raises RuntimeError with its output unless it ends with exit status 0."""
    output, _ = process.communicate(timeout=300)
    if process.returncode != 0:
        raise RuntimeError(f"the build ended with {process.returncode}:\n{output}")


def contents(lake: Lake) -> dict[tuple[str, str], str]:
    """Return the checksum of each table of each segment: attempts differ in their names, never in their bytes."""
    return {(commit.segment, table): file.sha256 for commit in lake.commits for table, file in commit.files.items()}


def workers_of(driver: int) -> list[int]:
    """Return the processes that run a task for the driver."""
    found = []
    for entry in Path("/proc").iterdir():
        if (
            entry.name.isdigit()
            and _title(int(entry.name)).startswith("ray::attempt")
            and _descends(int(entry.name), driver)
        ):
            found.append(int(entry.name))
    return found


def kill_once(sources: str, lake: Path, target: str, after_s: float, expected: dict[tuple[str, str], str]) -> Outcome:
    """Run a build that loses its `target` (`driver` or `worker`) after a while, complete it, and compare."""
    process = start(sources, lake)
    await_lake(lake)
    time.sleep(after_s)
    victims = [process.pid] if target == "driver" else _await_worker(process)
    killed = bool(victims) and process.poll() is None
    if killed:
        os.kill(victims[0], signal.SIGKILL)
    if target == "driver":
        process.wait()
        _await_end_of_group(process.pid)
    else:
        finish(process)
    commits = len(names_in(lake))
    before = files_in(lake) - len(TABLES) * commits
    if target == "driver":
        finish(start(sources, lake))
    opened = open_lake(str(lake))
    problems = [problem for _, found in verify(opened) for problem in found]
    if contents(opened) != expected:
        problems.append("the lake's content differs from that of the uninterrupted build")
    vacuum(opened.store, "train", grace_s=0)
    if unreferenced(opened.store, "train", grace_s=0) or files_in(lake) != len(TABLES) * len(opened.commits):
        problems.append("files are left over after a vacuum without grace")
    return Outcome(target, round(after_s, 2), killed, commits, before, problems)


def _title(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _status(process: int) -> list[str]:
    """Return the fields of /proc/<process>/stat behind the name: state, parent, group, …; none if it is gone."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _descends(process: int, ancestor: int) -> bool:
    while process > 1 and (status := _status(process)):
        process = int(status[1])
        if process == ancestor:
            return True
    return False


def _await_end_of_group(group: int) -> None:
    """Wait until no worker of the killed driver can write any more, then clear away what Ray left running."""
    for _ in range(300):
        if not any(_title(process).startswith("ray::attempt") for process in _members(group)):
            break
        time.sleep(0.1)
    else:
        raise RuntimeError("workers of the killed driver are still running after 30 s")
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _members(group: int) -> list[int]:
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (status := _status(int(entry.name))) and int(status[2]) == group:
            members.append(int(entry.name))
    return members


def _await_worker(process: subprocess.Popen[str]) -> list[int]:
    """Return the workers that run a task, as soon as there are any; none if the build ends first."""
    while process.poll() is None:
        if workers := workers_of(process.pid):
            return workers
        time.sleep(0.02)
    return []


def await_lake(lake: Path) -> None:
    """Wait until the build has begun: what comes before is the start of Ray, where there is nothing to lose."""
    for _ in range(2400):
        if (lake / "_lake.json").exists():
            return
        time.sleep(0.05)
    raise RuntimeError("the build has not begun after 2 minutes")


def names_in(lake: Path) -> list[str]:
    return list_commits(Store(str(lake)))


def files_in(lake: Path) -> int:
    return len(list((lake / "train").rglob("*.parquet"))) if lake.exists() else 0
