"""The job as users start it: from the command line, on a cluster, and killed in the middle."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from datalake.build import BuildConfig
from datalake.lake import open_lake
from datalake.synthetic import DriveConfig, write_drives
from pipelines.build_lake import main
from tests.drives import DRIVE_CAMERAS, DRIVE_FRAMES, DRIVE_SEGMENTS
from tests.lakes import build_files
from tests.support.data import ROOT
from tests.support.kills import build_together, contents, kill_once
from tests.support.no_links import without_links
from tests.support.programs import Call

pytestmark = pytest.mark.integration

SEGMENTS, FRAMES = 4, 20


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A glob of drives that take a few seconds to build."""
    folder = tmp_path_factory.mktemp("drives")
    config = DriveConfig(image_width=96, image_height=64, beams=32, columns=160)
    write_drives(str(folder), config, segments=SEGMENTS, frames=FRAMES, seed=4)
    return f"{folder}/*.tfrecord"


@pytest.fixture(scope="module")
def whole(sources: str, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], str]:
    """The checksums of a lake that nothing interrupted, built without Ray."""
    files = sorted(map(str, Path(sources).parent.glob("*.tfrecord")))
    return contents(build_files(str(tmp_path_factory.mktemp("whole") / "lake"), files, BuildConfig()).lake)


@pytest.mark.usefixtures("ray_cluster")
def test_a_build_ends_in_a_table_and_status_0(drive_sources: list[str], tmp_path: Path, call: Call) -> None:
    words = ["--source", *drive_sources, "--lake", str(tmp_path / "lake"), "--cameras", "FRONT", "--split", "val"]
    status, output, errors = call(main, words)
    assert status == 0, errors
    lake = open_lake(str(tmp_path / "lake"))
    assert (lake.splits, len(lake.commits)) == (("val",), DRIVE_SEGMENTS)
    rows = (f"{DRIVE_SEGMENTS} committed, 0 there before, 0 failed", f"{DRIVE_SEGMENTS * DRIVE_FRAMES} in ")
    for row in (*rows, "seconds per stage"):
        assert row in output


@pytest.mark.usefixtures("ray_cluster")
def test_one_failed_source_gives_status_1_and_one_line(drive_sources: list[str], tmp_path: Path, call: Call) -> None:
    missing = tmp_path / "missing.tfrecord"
    words = ["--source", *drive_sources, str(missing), "--lake", str(tmp_path / "lake"), "--cameras", *DRIVE_CAMERAS]
    status, output, _ = call(main, words)
    assert status == 1
    assert [line for line in output.splitlines() if line.startswith("failed")] == [
        f"failed {missing.as_uri()}: FileNotFoundError: [Errno 2] No such file or directory: '{missing}'"
    ]


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "/nowhere/*.tfrecord", "--lake", "{lake}"], "/nowhere/*.tfrecord: no file matches"),
        (["--source", "x", "--lake", "{lake}", "--cameras", "ROOF"], "--cameras: unknown ROOF"),
        (["--source", "x", "--lake", "{lake}", "--split", "../up"], "split '../up': expected"),
        (["--source", "x", "--lake", "{lake}", "--max-quarantined", "20"], "--max-quarantined 20: expected 0 to 1"),
        (["--source", "x", "--lake", "{lake}", "--max-quarantined", "nan"], "--max-quarantined nan: expected 0 to 1"),
        (["--source", "x", "--lake", "{lake}", "--grace-hours", "-1"], "--grace-hours -1: expected at least 0"),
        (["--source", "x", "--lake", "http://127.0.0.1/lake"], "a lake needs create-if-absent"),
    ],
)
def test_bad_arguments_give_status_2_and_one_line(
    tmp_path: Path, arguments: list[str], message: str, call: Call
) -> None:
    assert message in call.refused(main, [part.format(lake=tmp_path / "lake") for part in arguments])


@pytest.mark.parametrize("after_s", [0.3, pytest.param(1.0, marks=pytest.mark.slow)])
def test_a_killed_driver_costs_time_only(
    sources: str, whole: dict[tuple[str, str], str], tmp_path: Path, after_s: float
) -> None:
    outcome = kill_once(sources, tmp_path / "lake", "driver", after_s, whole)
    assert outcome.killed
    assert outcome.problems == []


@pytest.mark.slow
def test_a_killed_worker_costs_time_only(sources: str, whole: dict[tuple[str, str], str], tmp_path: Path) -> None:
    outcome = kill_once(sources, tmp_path / "lake", "worker", 0.0, whole)
    assert outcome.killed
    assert outcome.problems == []


def test_a_stopped_driver_costs_time_only(sources: str, whole: dict[tuple[str, str], str], tmp_path: Path) -> None:
    outcome = kill_once(sources, tmp_path / "lake", "driver", 0.3, whole, number=signal.SIGTERM, local=True)
    assert outcome.killed
    assert outcome.problems == []


@pytest.mark.parametrize("renames", [pytest.param(True, marks=pytest.mark.slow), False], ids=["rename", "lock"])
def test_a_killed_driver_costs_time_only_without_hard_links(
    sources: str, whole: dict[tuple[str, str], str], tmp_path: Path, renames: bool
) -> None:
    more = without_links(tmp_path, renames=renames)
    outcome = kill_once(sources, tmp_path / "lake", "driver", 0.3, whole, local=True, more=more)
    assert outcome.killed
    assert outcome.problems == []


@pytest.mark.parametrize("renames", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["rename", "lock"])
def test_two_builders_commit_each_segment_once_without_hard_links(
    sources: str, whole: dict[tuple[str, str], str], tmp_path: Path, renames: bool
) -> None:
    more = without_links(tmp_path, renames=renames)
    assert build_together(sources, tmp_path / "lake", whole, local=True, more=more) == []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def job_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a user of a real cluster with a job server."""
    port = free_port()
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text("0123456789abcdef0123456789abcdef")
    environment = {
        **os.environ,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = ["ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={free_port()}"]
    command += ["--num-cpus=2", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}"]
    command += [f"--dashboard-agent-listen-port={free_port()}"]
    head = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        assert head.stdout is not None
        for line in head.stdout:
            if "--block" in line:
                break
        yield {**environment, "RAY_ADDRESS": f"http://127.0.0.1:{port}"}
    finally:
        head.terminate()
        head.wait(timeout=30)


def submitted(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Submit the job as soon as the new cluster takes jobs: its agent starts later than the server that answers."""
    give_up = time.monotonic() + 60
    while True:
        done = submit(environment, *arguments)
        if "No available agent" not in done.stderr or time.monotonic() > give_up:
            return done
        time.sleep(1)


def submit(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["ray", "job", "submit", "--working-dir", ".", "--", "python", "pipelines/build_lake.py", *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=180)


def test_the_same_command_runs_as_a_ray_job(
    job_server: dict[str, str], sources: str, whole: dict[tuple[str, str], str], tmp_path: Path
) -> None:
    done = submitted(job_server, "--source", sources, "--lake", str(tmp_path / "lake"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert contents(open_lake(str(tmp_path / "lake"))) == whole


def test_a_relative_lake_in_a_ray_job_is_refused(job_server: dict[str, str], sources: str) -> None:
    done = submitted(job_server, "--source", sources, "--lake", "lake")
    assert done.returncode != 0
    assert "a relative path would lie in the job's throw-away folder" in done.stdout
