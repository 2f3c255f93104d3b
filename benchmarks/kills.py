"""Builds that get SIGKILL or SIGTERM at a random moment, and then run again: is the lake the same every time?

    python -m benchmarks.kills --builds 50

Half of the builds lose their driver, half a worker, to one signal or the other. A build that lost its driver is run
again; one that lost a worker has to finish by itself. No process of it may run 20 s later. Then every file's checksum
must equal that of a build that was never interrupted, `verify` must find nothing, and after a vacuum without grace no
file may be left over. At the end two builders work on one lake at once, and each segment must be committed once.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from datalake.lake import open_lake
from datalake.synthetic import DriveConfig, write_drives
from tests.support.kills import await_lake, build_together, contents, finish, kill_once, start

_KINDS = [(target, number) for number in (signal.SIGKILL, signal.SIGTERM) for target in ("driver", "worker")]


@dataclass(frozen=True, kw_only=True)
class Kills:
    """Kill builds at random moments and compare what a second run makes of them."""

    builds: int = 50
    segments: int = 6
    frames: int = 20
    seed: int = 0
    # Build in processes of this machine, without Ray.
    local: bool = False
    out: Path = Path("out/bench/kills.json")


def write_sources(folder: Path, segments: int, frames: int) -> str:
    """Simulate small drives below `folder` and return the glob that names them."""
    config = DriveConfig(image_width=192, image_height=128, beams=32, columns=320)
    write_drives(str(folder), config, segments=segments, frames=frames, seed=7, workers=os.cpu_count() or 1)
    return f"{folder}/*.tfrecord"


def run(config: Kills, console: Console) -> int:
    """Run the study, print its table, and return exit status 0 only if every lake came out equal."""
    chance = random.Random(config.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        sources = write_sources(root / "drives", config.segments, config.frames)
        builder = start(sources, root / "whole", local=config.local)
        await_lake(root / "whole")
        begun = time.monotonic()
        finish(builder)
        whole_s = time.monotonic() - begun
        expected = contents(open_lake(str(root / "whole")))
        console.print(f"an uninterrupted build takes {whole_s:.1f} s from its first object on")
        outcomes = []
        for number in track(range(config.builds), "kills", console=console):
            target, signal_ = _KINDS[number % len(_KINDS)]
            lake, after_s = root / f"lake-{number}", chance.uniform(0, 1) * whole_s
            outcomes.append(kill_once(sources, lake, target, after_s, expected, number=signal_, local=config.local))
            shutil.rmtree(lake)
        together = build_together(sources, root / "together", expected, local=config.local)

    columns = ("builds", "hit while running", "with commits before", "with files left", "processes left")
    table = Table("target", "signal", *columns, "with problems")
    for target, signal_ in _KINDS:
        of = [outcome for outcome in outcomes if (outcome.target, outcome.signal) == (target, signal_.name)]
        table.add_row(
            target,
            signal_.name,
            str(len(of)),
            str(sum(outcome.killed for outcome in of)),
            str(sum(outcome.committed_before > 0 for outcome in of)),
            str(sum(outcome.left_behind > 0 for outcome in of)),
            str(sum(outcome.children_left for outcome in of)),
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
