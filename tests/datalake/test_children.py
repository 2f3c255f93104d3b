"""Whoever is stopped or killed takes its children along."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from datalake.children import process_pool
from datalake.lake import Lake
from tests.orphans import Program

pytestmark = pytest.mark.integration
BOTH = pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL])

# Whatever the children do: one sleeps, one computes, and each has a child of its own.
POOL = """
import multiprocessing, sys, time
from datalake.children import die_with_parent, process_pool

def work(number):
    fork = multiprocessing.get_context("fork")
    fork.Process(target=idle).start()
    while True:
        time.sleep(600 if number else 0)

def idle():
    die_with_parent()
    time.sleep(600)

if __name__ == "__main__":
    with process_pool(2) as pool:
        list(pool.map(work, range(2)))
"""

# As spawned processes, of a lake that is not local, as forks, or as forks of a server, where CUDA is at work.
LOADER = """
import sys
from datalake.lake import open_lake
from datalake.loader import LoaderConfig, SampleStream

if __name__ == "__main__":
    stream = SampleStream(open_lake(sys.argv[1]), LoaderConfig(global_batch=1), epochs=None)
    loader = stream.loader(workers=2)
    loader.multiprocessing_context = sys.argv[2]
    for batch in loader:
        pass
"""


@pytest.fixture
def programs() -> Iterator[list[Program]]:
    """Collects programs of which nothing must survive the test."""
    started: list[Program] = []
    yield started
    for program in started:
        program.end()


def start(programs: list[Program], folder: Path, code: str, *words: str) -> Program:
    (folder / "program.py").write_text(code)
    programs.append(Program([str(folder / "program.py"), *words], folder / "log"))
    return programs[-1]


@BOTH
def test_a_pool_and_the_children_of_its_children_end_with_their_parent(
    number: signal.Signals, tmp_path: Path, programs: list[Program]
) -> None:
    program = start(programs, tmp_path, POOL)
    # The resource tracker, which ends by itself, two of the pool, and two of theirs.
    program.await_(lambda: len(program.descendants()) >= 5)
    assert program.stop(number) == -number
    program.await_no_descendants()


TASKS = """
import time
from datalake.process_tasks import run_in_processes

def work(number):
    time.sleep(600)

if __name__ == "__main__":
    list(run_in_processes(work, [(number, (number,)) for number in range(2)], processes=2))
"""


@BOTH
def test_a_build_s_processes_end_with_it(number: signal.Signals, tmp_path: Path, programs: list[Program]) -> None:
    program = start(programs, tmp_path, TASKS)
    program.await_(lambda: len(program.descendants()) >= 3)
    assert program.stop(number) == -number
    program.await_no_descendants()


@pytest.mark.parametrize(
    ("method", "number"),
    [
        pytest.param("fork", signal.SIGTERM, marks=pytest.mark.slow),
        ("fork", signal.SIGKILL),
        ("spawn", signal.SIGKILL),
        pytest.param("forkserver", signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_a_loader_s_workers_end_with_their_parent(
    method: str, number: signal.Signals, drive_lake: Lake, tmp_path: Path, programs: list[Program]
) -> None:
    program = start(programs, tmp_path, LOADER, drive_lake.store.root, method)
    program.await_(lambda: len(program.descendants()) >= 2)
    assert program.stop(number) == -number
    program.await_no_descendants()


@BOTH
def test_a_simulation_s_processes_end_with_it(number: signal.Signals, tmp_path: Path, programs: list[Program]) -> None:
    words = ["-m", "datalake.synthetic", "--out", str(tmp_path), "--segments", "4", "--frames", "500", "--workers", "2"]
    programs.append(Program(words, tmp_path / "log"))
    programs[0].await_(lambda: len(programs[0].descendants()) >= 3)
    assert programs[0].stop(number) == -number
    programs[0].await_no_descendants()


def test_an_exception_does_not_wait_for_the_pool() -> None:
    def interrupted() -> None:
        with process_pool(1) as pool:
            pool.submit(signal.pause)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
