"""Tasks in processes: what they answer, what of them dies, and that nothing is left of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from datalake.build import BuildConfig
from datalake.commit import LakeError
from datalake.fanout import build_lake
from datalake.lake import Lake, open_lake
from datalake.process_tasks import WorkerDiedError, run_in_processes
from tests.drives import DRIVE_CAMERAS, DRIVE_SEGMENTS

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]


def double(number: int) -> int:
    if number < 0:
        raise LakeError(f"{number} is bad input")
    return 2 * number // (number != 13)


def die(folder: str, deaths: int) -> int:
    """Die so many times, then return the number of the process that did not."""
    for number in range(deaths):
        try:
            (Path(folder) / str(number)).touch(exist_ok=False)
        except FileExistsError:
            continue
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def test_each_item_comes_with_its_own_result_and_bad_input_with_what_is_wrong() -> None:
    results = dict(run_in_processes(double, [(n, (n,)) for n in (*range(20), -1) if n != 13], processes=2))
    assert isinstance(results.pop(-1), LakeError)
    assert results == {n: 2 * n for n in range(20) if n != 13}


def test_a_bug_is_raised_with_the_place_where_it_was_met() -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        list(run_in_processes(double, [(n, (n,)) for n in range(12, 16)], processes=2))
    assert "in double" in raised.value.__notes__[0]


@pytest.mark.parametrize("deaths", [1, 3])
def test_a_task_whose_process_is_killed_is_run_again(deaths: int, tmp_path: Path) -> None:
    ((_, process),) = run_in_processes(die, [("it", (str(tmp_path), deaths))], processes=1)
    assert process != os.getpid()
    assert len(list(tmp_path.iterdir())) == deaths


def test_a_task_that_kills_each_of_its_processes_fails_alone(tmp_path: Path) -> None:
    calls = [("bad", (str(tmp_path), 9)), *((n, (str(tmp_path), 0)) for n in range(3))]
    results = dict(run_in_processes(die, calls, processes=2))
    assert isinstance(results["bad"], WorkerDiedError)
    assert str(results["bad"]) == "its process was killed by signal 9, 4 times"
    assert all(isinstance(results[n], int) for n in range(3))


def test_a_local_build_commits_what_any_build_commits_and_reports_what_fails(
    drive_sources: list[str], drive_lake: Lake, tmp_path: Path
) -> None:
    missing = (tmp_path / "missing.tfrecord").as_uri()
    config = BuildConfig(cameras=DRIVE_CAMERAS)
    report = build_lake([*drive_sources, missing], str(tmp_path / "lake"), config, lambda _: None, run=run_in_processes)
    assert list(report.failures) == [missing]
    assert "FileNotFoundError" in report.failures[missing]
    assert sorted(one.outcome for one in report.segments) == ["committed"] * DRIVE_SEGMENTS
    built = open_lake(str(tmp_path / "lake"))
    assert [one.files for one in built.commits] == [one.files for one in drive_lake.commits]


_DRIVER = """
import sys, time
from datalake.process_tasks import run_in_processes
if __name__ == "__main__":
    for item, _ in run_in_processes(time.sleep, [(n, (n,)) for n in (0, 0, 1, 1)], processes=2):
        print(item, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_the_one_that_hands_out_tasks(number: int, tmp_path: Path) -> None:
    script = tmp_path / "driver.py"
    script.write_text(_DRIVER)
    driver = subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert driver.stdout is not None
    driver.stdout.readline()
    driver.send_signal(number)
    driver.wait(timeout=30)
    give_up = time.monotonic() + 30
    while _group(driver.pid):
        assert time.monotonic() < give_up
        time.sleep(0.05)


def _group(leader: int) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.getpgid(int(entry.name)) == leader:
                    found.append(entry.name)
            except ProcessLookupError:
                continue
    return found
