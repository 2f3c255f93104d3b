"""A disk that is full in the middle: one line that says what and where, nothing half-committed, and the way on."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import pipelines.build_lake
import pipelines.train
from datalake.build import BuildConfig, build_segment
from datalake.derived_table import read_derived_commits
from datalake.disk import NoSpaceError, room_in
from datalake.lake import Lake, list_commits, open_lake, prepare_lake, publish_snapshot
from datalake.plan import plan_segments
from datalake.schema import TABLES
from datalake.sources.formats import index_source
from datalake.sources.source import SegmentPlan
from datalake.store import Store
from datalake.task import attempt
from datalake.verify import verify
from teachers.cached import cache_segment, origin_of
from tests.drives import DRIVE_CAMERAS, DRIVE_SEGMENTS
from tests.student.students import ColorTeacher
from tests.support.programs import Call
from training.checkpoint import CHECKPOINT_FILE, load_checkpoint
from training.metrics_log import HISTORY_FILE
from training.run_dir import RunDir

pytestmark = pytest.mark.integration

STEPS = 6
CLOCK = {"images_per_second", "wait/data", "wait/teachers"}
CONFIG = BuildConfig(cameras=DRIVE_CAMERAS)
PAGE = 4096


class Disk:
    """A file system in memory, of which a hog leaves only so much."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self._size = folder, size

    def leave(self, room: int) -> None:
        """Fill the disk up to `room` bytes."""
        with (self.folder / "hog").open("wb") as hog:
            hog.write(bytes(self._size - room))

    def free(self) -> None:
        """Make all the room there was."""
        (self.folder / "hog").unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Disk]]:
    """Makes a disk of so many bytes; tests that need one are skipped, by name, where nobody may mount it."""
    mounted: list[Path] = []

    def make(size: int) -> Disk:
        folder = tmp_path / f"disk-{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return Disk(folder, size)

    yield make
    for folder in mounted:
        # Lazily: a test that failed may still hold a file open.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def plans(sources: list[str]) -> list[SegmentPlan]:
    return plan_segments(index_source(source) for source in sources)


def tables(lake: Lake) -> dict[tuple[str, str], str]:
    return {(commit.segment, table): file.sha256 for commit in lake.commits for table, file in commit.files.items()}


def files(lake: Path) -> list[Path]:
    return [path for path in lake.rglob("*") if path.is_file() and path.name != "_lake.json"]


@pytest.mark.parametrize("room", [0, PAGE, 3 * PAGE, 12 * PAGE, 40 * PAGE])
def test_a_segment_without_room_leaves_nothing_and_says_where(
    drive_sources: list[str], drive_lake: Lake, disk: Callable[[int], Disk], room: int
) -> None:
    small = disk(16 << 20)
    lake, url = small.folder / "lake", (small.folder / "lake").as_uri()
    prepare_lake(Store(url), CONFIG.points)
    small.leave(PAGE + room)
    (plan, *_) = plans(drive_sources)
    error = attempt(build_segment, plan, url, CONFIG)
    assert isinstance(error, NoSpaceError)
    assert str(error) == f"{url}: no space left there; make room, then run the same command again"
    assert files(lake) == []
    small.free()
    assert build_segment(plan, url, CONFIG).outcome == "committed"
    publish_snapshot(Store(url))
    opened = open_lake(url)
    expected = tables(drive_lake)
    assert tables(opened) == {name: digest for name, digest in expected.items() if name[0] == plan.segment}


def test_a_disk_that_fills_at_any_page_leaves_all_of_a_segment_or_nothing(
    drive_sources: list[str], disk: Callable[[int], Disk]
) -> None:
    (plan, *_) = plans(drive_sources)
    small = disk(2 << 20)
    outcomes = set()
    for number, pages in enumerate(range(0, 320, 23)):
        lake = small.folder / f"lake-{number}"
        prepare_lake(Store(str(lake)), CONFIG.points)
        small.leave((1 + pages) * PAGE)
        report = attempt(build_segment, plan, str(lake), CONFIG)
        small.free()
        if isinstance(report, OSError):
            outcomes.add("none")
            assert files(lake) == []
        else:
            outcomes.add("all")
            publish_snapshot(Store(str(lake)))
            ((_, problems),) = verify(open_lake(str(lake)))
            assert problems == []
        for path in lake.rglob("*"):
            if path.is_file():
                path.unlink()
        (small.folder / f"lake-{number}").rename(small.folder / f"gone-{number}")
    assert outcomes == {"none", "all"}


@pytest.mark.parametrize("local", [["--local"], pytest.param([], marks=pytest.mark.slow)], ids=["processes", "ray"])
def test_a_build_on_a_full_disk_ends_in_one_line_and_goes_on_when_there_is_room(
    drive_sources: list[str], drive_lake: Lake, disk: Callable[[int], Disk], call: Call, local: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    small = disk(16 << 20)
    lake = small.folder / "lake"
    sizes = [sum(file.bytes for file in commit.files.values()) for commit in drive_lake.commits]
    small.leave(int(1.7 * max(sizes)))
    # One segment after the other: of two at once, each may take the room that the other needs, and neither fits.
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 1}')
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    words = ["--source", *drive_sources, "--lake", str(lake), "--cameras", *DRIVE_CAMERAS, *local]
    status, output, errors = call(pipelines.build_lake.main, words)
    assert status == 1
    committed = list_commits(Store(str(lake)))
    assert 0 < len(committed) < DRIVE_SEGMENTS
    assert f"{len(committed)} committed, 0 there before, {DRIVE_SEGMENTS - len(committed)} failed" in output
    (line,) = [line for line in output.splitlines() if line.startswith("failed")]
    assert line == output.splitlines()[-1]
    assert line.endswith(
        f"NoSpaceError: {lake.as_uri()}: no space left there; make room, then run the same command again"
    )
    assert "Traceback" not in output + errors
    assert [problems for _, problems in verify(open_lake(str(lake)))] == [[]] * len(committed)
    assert len(list(lake.glob("train/*/*.parquet"))) == len(TABLES) * len(committed)
    small.free()
    status, output, _ = call(pipelines.build_lake.main, words)
    assert status == 0
    assert f"{len(committed)} there before, 0 failed" in output
    assert tables(open_lake(str(lake))) == tables(drive_lake)


@pytest.mark.usefixtures("ray_cluster")
def test_a_build_that_cannot_even_begin_ends_in_one_line(
    drive_sources: list[str], disk: Callable[[int], Disk], call: Call
) -> None:
    small = disk(1 << 20)
    small.leave(0)
    lake = small.folder / "lake"
    status, output, errors = call(pipelines.build_lake.main, ["--source", *drive_sources, "--lake", str(lake)])
    assert (status, output) == (2, "")
    assert errors == (f"build_lake: {lake.as_uri()}: no space left there; make room, then run the same command again\n")
    assert files(lake) == []


def arguments(lake: Lake, out: Path) -> list[str]:
    return [
        "--lake", lake.store.root, "--out", str(out), "--image-size", "96", "64", "--batch", "2", "--unlabelled", "0",
        "--min-anchor-recall", "0", "--device", "cpu", "--loop.steps", str(STEPS), "--loop.checkpoint-every", "2",
        "--loop.precision", "float32",
    ]  # fmt: skip


def log(out: Path) -> list[dict[str, float]]:
    """Return the history without what the clock says."""
    lines = [json.loads(line) for line in (out / HISTORY_FILE).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in CLOCK} for line in lines]


@pytest.fixture(scope="module")
def whole(drive_lake: Lake, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a training leaves that has all the room it needs."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train", *arguments(drive_lake, out)])
        with pytest.raises(SystemExit) as ended:
            pipelines.train.main()
    assert ended.value.code == 0
    return out


@pytest.mark.parametrize(
    ("pages", "checkpoints", "done"),
    [(0, 0, 0), (1, 0, 0), (2, 0.5, 0), (4, 1.5, 2)],
    ids=["the log cannot begin", "first step", "first checkpoint", "second checkpoint"],
)
def test_a_training_on_a_full_disk_ends_in_one_line_and_goes_on_as_if_nothing_had_happened(
    drive_lake: Lake, whole: Path, disk: Callable[[int], Disk], pages: int, checkpoints: float, done: int,
    call: Call,
) -> None:  # fmt: skip
    size = (whole / CHECKPOINT_FILE).stat().st_size
    small = disk(3 * size // PAGE * PAGE)
    out = small.folder / "run"
    small.leave(pages * PAGE + -(-int(checkpoints * size) // PAGE) * PAGE)
    status, _, errors = call(pipelines.train.main, arguments(drive_lake, out))
    assert (status, errors) == (2, f"train: {out}: no space left there; make room, then run the same command again\n")
    checkpoint = load_checkpoint(RunDir(str(out)))
    assert (checkpoint.step if checkpoint else 0) == done
    assert not list(out.glob("checkpoint*unfinished"))
    small.free()
    status, output, errors = call(pipelines.train.main, arguments(drive_lake, out))
    assert (status, errors) == (0, "")
    assert f"trained {STEPS} steps" in output
    assert log(out) == log(whole)
    expected, found = (load_checkpoint(RunDir(str(folder))) for folder in (whole, out))
    assert expected is not None
    assert found is not None
    assert all(torch.equal(value, found.objective[name]) for name, value in expected.objective.items())


def test_a_teacher_whose_answers_cannot_be_kept_says_where(drive_lake: Lake, disk: Callable[[int], Disk]) -> None:
    small = disk(16 << 20)
    lake = open_lake(str(shutil.copytree(drive_lake.store.root, small.folder / "lake")))
    room = os.statvfs(small.folder)
    small.leave((room.f_blocks - room.f_bfree) * room.f_bsize)
    teacher, base = ColorTeacher(), lake.commits[0]
    origin = origin_of(teacher.card, "colors", (16, 24), (96, 64))
    with pytest.raises(NoSpaceError, match=r"/lake.*: no space left there; make room"):
        cache_segment(lake, base, teacher, origin)
    assert read_derived_commits(lake.store, origin.table, [base]) == [None]
    small.free()
    assert cache_segment(lake, base, teacher, origin) is not None


@pytest.mark.parametrize(("number", "full"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EIO, False)])
def test_only_a_lack_of_room_is_told_as_such(number: int, full: bool) -> None:
    with pytest.raises(OSError) as raised, room_in("/place"):
        raise OSError(number, "said the system")
    assert isinstance(raised.value, NoSpaceError) == full
    assert raised.value.errno == number or full


def test_a_lack_of_room_survives_the_way_between_processes() -> None:
    import pickle

    with pytest.raises(NoSpaceError) as raised, room_in("/outer"), room_in("/inner"):
        raise OSError(errno.ENOSPC, "full")
    copy = pickle.loads(pickle.dumps(raised.value))
    assert (str(copy), copy.errno) == (
        "/inner: no space left there; make room, then run the same command again",
        errno.ENOSPC,
    )
