"""Builds that are killed or stopped, and then run again: is the lake the same every time?"""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from datalake.lake import Lake, list_commits, open_lake
from datalake.schema import TABLES
from datalake.store import Store
from datalake.vacuum import unreferenced, vacuum
from datalake.verify import verify
from tests.orphans import ROOT, Program

_BUILD = ROOT / "pipelines" / "build_lake.py"
# How long the processes of a builder may outlive it.
_CHILDREN_S = 20.0


@dataclass(slots=True)
class Outcome:
    """What was left by the killed build, and after the second run: `problems` must be empty.

    children_left: processes of the killed builder that ran after it
    """

    target: str
    signal: str
    killed_after_s: float
    killed: bool
    committed_before: int
    left_behind: int
    children_left: int
    problems: list[str]


def start(sources: str, lake: Path, *, local: bool = False, more: Mapping[str, str] | None = None) -> Program:
    """Start a build as a user would, in a process group of its own, with its log beside the lake.

    local: without Ray
    more: environment beside that of the tests
    """
    words = [str(_BUILD), "--source", sources, "--lake", str(lake), *(["--local"] if local else [])]
    return Program(words, lake.with_name(f"{lake.name}-{uuid.uuid4().hex[:8]}.log"), more)


def finish(builder: Program) -> None:
    """Wait for a build; raises RuntimeError with its output unless it ends with exit status 0."""
    status = builder.process.wait(timeout=300)
    if status != 0:
        raise RuntimeError(f"the build ended with {status}:\n{builder.output}")


def contents(lake: Lake) -> dict[tuple[str, str], str]:
    """Return the checksum of each table of each segment: attempts differ in their names, never in their bytes."""
    return {(commit.segment, table): file.sha256 for commit in lake.commits for table, file in commit.files.items()}


def workers_of(driver: int) -> list[int]:
    """Return the processes that run a task for the driver, on Ray or without."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        title = _title(int(entry.name))
        runs = title.startswith("ray::attempt") or "multiprocessing.spawn" in title
        if runs and _descends(int(entry.name), driver):
            found.append(int(entry.name))
    return found


def kill_once(
    sources: str,
    lake: Path,
    target: str,
    after_s: float,
    expected: dict[tuple[str, str], str],
    *,
    number: signal.Signals = signal.SIGKILL,
    local: bool = False,
    more: Mapping[str, str] | None = None,
) -> Outcome:
    """Run a build whose `target` (`driver` or `worker`) gets a signal after a while, complete it, and compare.

    local, more: as in `start`
    """
    builder = start(sources, lake, local=local, more=more)
    problems = []
    try:
        await_lake(lake)
        time.sleep(after_s)
        victims = [builder.process.pid] if target == "driver" else _await_worker(builder)
        killed = bool(victims) and builder.process.poll() is None
        if killed:
            os.kill(victims[0], number)
        if target == "driver":
            status = builder.process.wait(timeout=300)
            # With its work done, while Python shuts down, a process no longer handles signals.
            done = len(names_in(lake)) == len({segment for segment, _ in expected})
            told = -number if number == signal.SIGKILL or done else 128 + number
            if killed and status not in (0, 128 + number, told):
                problems.append(f"the driver ended with {status} upon {number.name}")
        else:
            finish(builder)
        children = _children_left(builder)
        problems += [f"outlived the build: {child}" for child in children]
    finally:
        builder.end()
    commits = len(names_in(lake))
    before = files_in(lake) - len(TABLES) * commits
    if target == "driver":
        finish(start(sources, lake, local=local, more=more))
    opened = open_lake(str(lake))
    problems += [problem for _, found in verify(opened) for problem in found]
    if contents(opened) != expected:
        problems.append("the lake's content differs from that of the uninterrupted build")
    vacuum(opened.store, "train", grace_s=0)
    if unreferenced(opened.store, "train", grace_s=0) or files_in(lake) != len(TABLES) * len(opened.commits):
        problems.append("files are left over after a vacuum without grace")
    return Outcome(target, number.name, round(after_s, 2), killed, commits, before, len(children), problems)


def build_together(
    sources: str,
    lake: Path,
    expected: dict[tuple[str, str], str],
    *,
    local: bool = False,
    more: Mapping[str, str] | None = None,
) -> list[str]:
    """Run two builders on one lake at once; return what is wrong with the result.

    local, more: as in `start`
    """
    builders = [start(sources, lake, local=local, more=more) for _ in range(2)]
    for builder in builders:
        finish(builder)
    opened = open_lake(str(lake))
    problems = [problem for _, found in verify(opened) for problem in found]
    if contents(opened) != expected:
        problems.append("two builders: the lake's content differs from that of one")
    if files_in(lake) != len(TABLES) * len(opened.commits):
        problems.append("two builders: the loser left files behind")
    return problems


def _children_left(builder: Program) -> list[str]:
    """Return what still runs of all that the builder started, a while after its end."""
    give_up = time.monotonic() + _CHILDREN_S
    while (left := builder.descendants()) and time.monotonic() < give_up:
        time.sleep(0.1)
    return left


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


def _await_worker(builder: Program) -> list[int]:
    """Return the workers that run a task, as soon as there are any; none if the build ends first."""
    while builder.process.poll() is None:
        if workers := workers_of(builder.process.pid):
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
