"""Driver, commits and snapshot at the size of a test: what grows, grows in proportion."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.linear import Metrics, commit_together, snapshot, worst
from benchmarks.tiny_segments import index_tiny, segment_name, source_url, tiny_commit
from datalake.build import BuildConfig
from datalake.lake import list_commits, open_lake, prepare_lake, publish_snapshot
from datalake.plan import plan_segments
from datalake.store import Store

CONFIG = BuildConfig()
LIMIT = 2.1


def test_requests_and_bytes_double_with_the_commits(tmp_path: Path) -> None:
    runs = {count: snapshot(tmp_path / str(count), count, writers=40, frames=20) for count in (200, 400, 800)}
    growth = {name: ratio for name, ratio in worst(runs).items() if not name.endswith(" s")}
    assert set(growth) >= {"publish requests", "publish bytes", "vacuum requests", "snapshot bytes"}
    assert max(growth.values()) <= LIMIT


def test_a_thousand_writers_commit_at_once_and_one_snapshot_has_all(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "lake"))
    prepare_lake(store, CONFIG.points)
    commits = [tiny_commit(segment_name(number), (), 2, CONFIG) for number in range(1000)]
    assert all(commit_together(store.url, commits, writers=1000))
    assert publish_snapshot(store) == 1
    assert sorted(commit.segment for commit in open_lake(store.url).commits) == [one.segment for one in commits]


def test_of_a_thousand_attempts_at_few_segments_one_each_wins(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "lake"))
    prepare_lake(store, CONFIG.points)
    attempts = [tiny_commit(segment_name(n % 10), (), 2, CONFIG, writer=str(n)) for n in range(1000)]
    # A thread has every hundredth attempt, all at one segment.
    won = commit_together(store.url, attempts, writers=100)
    assert sum(won) == len(list_commits(store)) == 10


def test_plan_of_ten_thousand_segments_has_each_once() -> None:
    plans = plan_segments(index_tiny(source_url(number, 2)) for number in reversed(range(10_000)))
    assert [plan.segment for plan in plans] == [segment_name(number) for number in range(10_000)]


@pytest.mark.parametrize(("power", "ratio"), [(1.0, 2.0), (2.0, 4.0)])
def test_growth_is_told_per_doubling(power: float, ratio: float) -> None:
    runs = {size: Metrics({"requests": float(size**power)}) for size in (10, 20, 80)}
    assert worst(runs)["requests"] == pytest.approx(ratio)
