"""Builds that are killed with SIGKILL at a random moment, and then run again: is the lake the same every time?

    python -m benchmarks.kills --builds 50

Half of the builds lose their driver, half a worker. A build that lost its driver is run again; one that lost a
worker has to finish by itself. Then every file's checksum must equal that of a build that was never interrupted,
`verify` must find nothing, and after a vacuum without grace no file may be left over. At the end two builders
work on one lake at once, and each segment must be committed once.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from datalake.lake import Lake, list_commits, open_lake
from datalake.store import Store
from datalake.synthetic import DriveConfig, write_drives
from datalake.vacuum import unreferenced, vacuum
from datalake.verify import verify

_BUILD = Path(__file__).resolve().parents[1] / "pipelines" / "build_lake.py"


@dataclass(frozen=True, kw_only=True)
class Kills:
    """Kill builds at random moments and compare what a second run makes of them."""

    builds: int = 50
    segments: int = 6
    frames: int = 20
    seed: int = 0
    out: Path = Path("out/bench/kills.json")


@dataclass(slots=True)
class Outcome:
    """What was left by the killed build, and after the second run: `problems` must be empty."""

    target: str
    killed_after_s: float
    killed: bool
    committed_before: int
    left_behind: int
    problems: list[str]


def write_sources(folder: Path, segments: int, frames: int) -> str:
    """Simulate small drives below `folder` and return the glob that names them."""
    config = DriveConfig(image_width=192, image_height=128, beams=32, columns=320)
    write_drives(str(folder), config, segments=segments, frames=frames, seed=7, workers=os.cpu_count() or 1)
    return f"{folder}/*.tfrecord"


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
    _await_lake(lake)
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
    commits = len(_names(lake))
    before = _files(lake) - 6 * commits
    if target == "driver":
        finish(start(sources, lake))
    opened = open_lake(str(lake))
    problems = [problem for _, found in verify(opened) for problem in found]
    if contents(opened) != expected:
        problems.append("the lake's content differs from that of the uninterrupted build")
    vacuum(opened.store, "train", grace_s=0)
    if unreferenced(opened.store, "train", grace_s=0) or _files(lake) != 6 * len(opened.commits):
        problems.append("files are left over after a vacuum without grace")
    return Outcome(target, round(after_s, 2), killed, commits, before, problems)


def build_together(sources: str, lake: Path, expected: dict[tuple[str, str], str]) -> list[str]:
    """Run two builders on one lake at once; return what is wrong with the result."""
    builders = [start(sources, lake), start(sources, lake)]
    for builder in builders:
        finish(builder)
    opened = open_lake(str(lake))
    problems = [problem for _, found in verify(opened) for problem in found]
    if contents(opened) != expected:
        problems.append("two builders: the lake's content differs from that of one")
    if _files(lake) != 6 * len(opened.commits):
        problems.append("two builders: the loser left files behind")
    return problems


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


def _await_lake(lake: Path) -> None:
    """Wait until the build has begun: what comes before is the start of Ray, where there is nothing to lose."""
    for _ in range(600):
        if (lake / "_lake.json").exists():
            return
        time.sleep(0.05)
    raise RuntimeError("the build has not begun after 30 s")


def _names(lake: Path) -> list[str]:
    return list_commits(Store(str(lake)))


def _files(lake: Path) -> int:
    return len(list((lake / "train").rglob("*.parquet"))) if lake.exists() else 0


def run(config: Kills, console: Console) -> int:
    """Run the study, print its table, and return exit status 0 only if every lake came out equal."""
    chance = random.Random(config.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        sources = write_sources(root / "drives", config.segments, config.frames)
        process = start(sources, root / "whole")
        _await_lake(root / "whole")
        begun = time.monotonic()
        finish(process)
        whole_s = time.monotonic() - begun
        expected = contents(open_lake(str(root / "whole")))
        console.print(f"an uninterrupted build takes {whole_s:.1f} s from its first object on")
        outcomes = []
        for number in track(range(config.builds), "kills", console=console):
            target = "driver" if number % 2 == 0 else "worker"
            lake = root / f"lake-{number}"
            outcomes.append(kill_once(sources, lake, target, chance.uniform(0, 1) * whole_s, expected))
            shutil.rmtree(lake)
        together = build_together(sources, root / "together", expected)

    table = Table("target", "builds", "hit while running", "with commits before", "with files left", "unequal after")
    for target in ("driver", "worker"):
        of = [outcome for outcome in outcomes if outcome.target == target]
        table.add_row(
            target,
            str(len(of)),
            str(sum(outcome.killed for outcome in of)),
            str(sum(outcome.committed_before > 0 for outcome in of)),
            str(sum(outcome.left_behind > 0 for outcome in of)),
            str(sum(bool(outcome.problems) for outcome in of)),
        )
    console.print(table)
    problems = [problem for outcome in outcomes for problem in outcome.problems] + together
    for problem in problems:
        console.print(f"[red]{problem}", soft_wrap=True)
    console.print(f"two builders at once: {'each segment committed once' if not together else 'failed'}")
    config.out.parent.mkdir(parents=True, exist_ok=True)
    report = {"uninterrupted_s": whole_s, "kills": [asdict(outcome) for outcome in outcomes], "together": together}
    config.out.write_text(json.dumps(report, indent=1))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(run(tyro.cli(Kills, description=__doc__), Console()))
