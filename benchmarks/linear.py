"""Do the driver, the commit log and the snapshot stay linear? Ten thousand segments, and a thousand writers.

    python -m benchmarks.linear

The whole driver of a build (`datalake.fanout.build_lake`: index, plan, tasks on Ray, commits, vacuum, snapshot) runs
over segments that cost nothing to build, each time over twice as many. Then a thousand writers commit at the same time,
and one snapshot of all is published and opened. CPU time, requests and bytes may grow by at most `limit` per doubling;
else the command fails. CPU time is of the driver's process alone, so that a busy machine counts little.
"""

from __future__ import annotations

import gc
import itertools
import json
import math
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.tiny_segments import build_tiny, index_tiny, segment_name, source_url, tiny_commit
from datalake.build import BuildConfig
from datalake.commit import Commit, SourceFile
from datalake.fanout import build_lake
from datalake.lake import list_commits, open_lake, prepare_lake, publish_snapshot, read_commits, write_commit
from datalake.store import Store
from datalake.vacuum import unreferenced
from pipelines.cluster import cluster

_CONFIG = BuildConfig()
# Below this a CPU clock says more of the interpreter than of the work.
_LEAST_S = 0.05
# Mostly a thousand threads of one process in each other's way, which nodes are not: shown, not judged.
_UNJUDGED = "commit CPU s"


@dataclass(frozen=True, kw_only=True)
class Linear:
    """Measure how driver, commits and snapshot grow.

    segments: of the driver's runs; frames: of each segment, for the size of its plan and commit
    commits: of the snapshot's runs, by `writers` at once
    limit: the most that doubling may multiply anything by
    """

    segments: tuple[int, ...] = (1250, 2500, 5000, 10_000)
    frames: int = 172
    commits: tuple[int, ...] = (1000, 2000, 4000, 8000)
    writers: int = 1000
    # Of the snapshot's runs, of which the shortest times count.
    rounds: int = 3
    limit: float = 2.6
    out: Path = Path("out/bench/linear.json")


class CountingStore(Store):
    """A store that counts its requests and the bytes that they move."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.moved: Counter[str] = Counter()

    def create(self, name: str, data: bytes) -> bool:
        """Count and create."""
        self.moved += Counter({"requests": 1, "bytes": len(data)})
        return super().create(name, data)

    def read(self, name: str) -> bytes:
        """Count and read."""
        data = super().read(name)
        self.moved += Counter({"requests": 1, "bytes": len(data)})
        return data

    def exists(self, name: str) -> bool:
        """Count and ask."""
        self.moved["requests"] += 1
        return super().exists(name)

    def listing(self, folder: str) -> dict[str, float]:
        """Count a request for each page of a thousand names, and list."""
        found = super().listing(folder)
        self.moved += Counter({"requests": 1 + len(found) // 1000, "bytes": sum(map(len, found))})
        return found


class Metrics(dict[str, float]):
    """Metrics of one run, by name; a name ends in its unit."""

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Keep the CPU seconds of the block, in all threads of this process, as figure `name`.

        Python's garbage collector is off meanwhile. From some thousand commits on it goes over all of them now and
        then, and about doubles the time, at 16,000 as at 32,000: a step, which would look like growth.
        """
        gc.disable()
        begun = time.process_time()
        try:
            yield
        finally:
            self[f"{name} CPU s"] = time.process_time() - begun
            gc.enable()

    @contextmanager
    def counted(self, name: str, store: CountingStore) -> Iterator[None]:
        """Keep CPU seconds, requests and bytes of the block as metrics `name`."""
        store.moved.clear()
        with self.timed(name):
            yield
        self |= {f"{name} {unit}": float(store.moved[unit]) for unit in ("requests", "bytes")}


def drive(folder: Path, segments: int, frames: int) -> Metrics:
    """Build a lake of `segments` segments over Ray, which must be initialized; raises RuntimeError unless all is there.

    A second build, which has nothing to do but to find that out, is measured as well.
    """
    folder.mkdir(exist_ok=True)
    sources = folder / "sources.txt"
    sources.write_text("\n".join(source_url(number, frames) for number in range(segments)))
    metrics = Metrics()

    def build(name: str) -> tuple[int, int, int]:
        begun = time.perf_counter()
        with metrics.timed(name):
            report = build_lake(
                [str(sources)], str(folder / "lake"), _CONFIG, lambda _: None, index=index_tiny, build=build_tiny
            )
        metrics[f"{name} wall s"] = time.perf_counter() - begun
        return len(report.segments), len(report.skipped), len(report.failures)

    found = [build("build"), build("second build")]
    kept = len(open_lake(str(folder / "lake")).commits)
    if found != [(segments, 0, 0), (0, segments, 0)] or kept != segments:
        raise RuntimeError(f"of {segments} segments built, skipped and failed: {found}, in the snapshot: {kept}")
    return metrics


def commit_together(url: str, commits: Sequence[Commit], writers: int) -> list[bool]:
    """Write the commits by `writers` threads, each with a store of its own, that start at the same moment."""
    barrier = threading.Barrier(writers)

    def write(number: int) -> list[bool]:
        store = Store(url)
        barrier.wait()
        return [write_commit(store, commit) for commit in commits[number::writers]]

    with ThreadPoolExecutor(writers) as pool:
        return [won for found in pool.map(write, range(writers)) for won in found]


def snapshot(folder: Path, commits: int, writers: int, frames: int) -> Metrics:
    """Commit by many writers at once, publish, open and sweep; raises RuntimeError unless all is in the snapshot."""
    store = CountingStore(str(folder / "lake"))
    prepare_lake(store, _CONFIG.points)
    made = [tiny_commit(segment_name(number), (_source(number),), frames, _CONFIG) for number in range(commits)]
    metrics = Metrics()
    with metrics.timed("commit"):
        won = commit_together(store.url, made, writers)
    with metrics.counted("publish", store):
        number = publish_snapshot(store)
    with metrics.counted("publish again", store):
        publish_snapshot(store)
    with metrics.counted("read all commits", store):
        read_commits(store, list_commits(store, _CONFIG.split))
    with metrics.counted("vacuum", store):
        unreferenced(store, _CONFIG.split)
    with metrics.timed("open"):
        opened = open_lake(store.url)
    if not all(won) or number != 1 or {commit.segment for commit in opened.commits} != {one.segment for one in made}:
        raise RuntimeError(f"of {commits} commits {sum(won)} won and {len(opened.commits)} are in snapshot {number}")
    metrics["snapshot bytes"] = float(len(store.read("_snapshots/1.json")))
    return metrics


def _source(number: int) -> SourceFile:
    return SourceFile(source_url(number, 1), 10**9, "1.0", 1)


def worst(runs: dict[int, Metrics]) -> dict[str, float]:
    """Return by figure the largest growth between runs, per doubling of their size.

    CPU times too short to be told are left out, and so are wall time, which others share, and `_UNJUDGED`.
    """
    found: dict[str, float] = {}
    sizes = sorted(runs)
    for before, after in itertools.pairwise(sizes):
        for name, value in runs[after].items():
            least = _LEAST_S if name.endswith(" s") else 1.0
            if runs[before][name] >= least and not name.endswith(("wall s", _UNJUDGED)):
                # 4 x the size at 9 x the cost is 3 x per doubling.
                doublings = math.log2(after / before)
                found[name] = max(found.get(name, 0.0), (value / runs[before][name]) ** (1 / doublings))
    return found


def show(title: str, runs: dict[int, Metrics], growth: dict[str, float], limit: float, console: Console) -> None:
    """Print a column for each size."""
    table = Table("", *(f"{size:,}" for size in runs), "per doubling", title=title, title_justify="left")
    for name in next(iter(runs.values())):
        values = [f"{run[name]:,.2f}" if name.endswith(" s") else f"{run[name]:,.0f}" for run in runs.values()]
        ratio = growth.get(name)
        told = "" if ratio is None else f"{'[red]' if ratio > limit else ''}{ratio:.2f}"
        table.add_row(name, *values, told)
    console.print(table)


def run(options: Linear, console: Console) -> int:
    """Measure, print, and return exit status 0 only if nothing grows faster than `limit` per doubling."""
    results: dict[str, dict[int, Metrics]] = {"driver": {}, "snapshot": {}}
    with cluster():
        with tempfile.TemporaryDirectory() as folder:
            # Workers start, and import, before anything is measured.
            drive(Path(folder), 50, options.frames)
        for segments in options.segments:
            with tempfile.TemporaryDirectory() as folder:
                results["driver"][segments] = drive(Path(folder), segments, options.frames)
    for commits in options.commits:
        found = []
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory() as folder:
                found.append(snapshot(Path(folder), commits, options.writers, options.frames))
        results["snapshot"][commits] = Metrics({name: min(one[name] for one in found) for name in found[0]})
    status = 0
    for title, runs in results.items():
        growth = worst(runs)
        show(title, runs, growth, options.limit, console)
        if slow := [name for name, ratio in growth.items() if ratio > options.limit]:
            console.print(f"{title}: not linear: {', '.join(slow)}", soft_wrap=True)
            status = 1
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(run(tyro.cli(Linear, description=__doc__), Console()))
