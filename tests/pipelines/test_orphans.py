"""Commands that are stopped or killed in the middle leave no process behind, and go on when they are run again."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.cluster import cluster
from tests.orphans import ROOT, Program

pytestmark = pytest.mark.integration

CLUSTER = """
import time
import ray
from pipelines.cluster import cluster
from datalake.signals import stoppable

@ray.remote
def work():
    print("at work", flush=True)
    time.sleep(600)

with stoppable("program"), cluster():
    ray.get([work.remote() for _ in range(2)])
"""
DEMO = (
    *("--teach-segments", "2", "--train-segments", "4", "--val-segments", "1", "--frames", "3"),
    *("--lidar-steps", "100000", "--mask-steps", "100000", "--device", "cpu"),
)


@pytest.fixture
def programs() -> Iterator[list[Program]]:
    """Collects programs of which nothing must survive the test."""
    started: list[Program] = []
    yield started
    for program in started:
        program.end()


@pytest.mark.parametrize(
    ("number", "status"), [pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow), (signal.SIGKILL, -9)]
)
def test_a_local_cluster_ends_with_its_driver(
    number: signal.Signals, status: int, tmp_path: Path, programs: list[Program]
) -> None:
    (tmp_path / "program.py").write_text(CLUSTER)
    programs.append(Program([str(tmp_path / "program.py")], tmp_path / "log"))
    programs[0].await_(lambda: "at work" in programs[0].output)
    assert programs[0].stop(number) == status
    programs[0].await_no_descendants()


@pytest.mark.usefixtures("ray_cluster")
def test_a_signal_is_handled_as_before_also_when_the_cluster_is_left() -> None:
    keeps_its_handler()


@pytest.mark.slow
def test_a_signal_is_handled_as_before_also_when_the_cluster_has_ended() -> None:
    keeps_its_handler()


def keeps_its_handler() -> None:
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        mine = signal.getsignal(signal.SIGTERM)
        with cluster():
            assert signal.getsignal(signal.SIGTERM) is mine
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.slow
def test_a_demo_ends_with_its_teachers(tmp_path: Path, programs: list[Program]) -> None:
    histories = [tmp_path / "demo/teachers" / name / "history.jsonl" for name in ("spvcnn", "mask_rcnn")]
    for number, status in ((signal.SIGKILL, -9), (signal.SIGTERM, 143)):
        demo = Program([str(ROOT / "pipelines/demo.py"), "--out", str(tmp_path / "demo"), *DEMO], tmp_path / "log")
        programs.append(demo)
        # The second goes on in the same folders.
        before = [history.stat().st_mtime_ns if history.exists() else 0 for history in histories]
        demo.await_(
            lambda before=before: all(  # type: ignore[misc]
                history.exists() and history.stat().st_mtime_ns > then
                for history, then in zip(histories, before, strict=True)
            )
        )
        assert demo.stop(number) == status
        demo.await_no_descendants()
        sizes = [history.stat().st_size for history in histories]
    assert demo.output.splitlines()[-1] == "demo: stopped by SIGTERM; run the same command again to go on"
    assert [history.stat().st_size for history in histories] == sizes
