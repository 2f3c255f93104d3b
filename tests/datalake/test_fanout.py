"""A whole build over Ray: what is built, what is skipped, and what is said of the rest."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.linear import drive, worst
from datalake.attempt import attempt
from datalake.build import BuildConfig, SegmentReport, build_segment
from datalake.commit import LakeError
from datalake.fanout import BuildReport, Progress, build_lake
from datalake.lake import open_lake
from datalake.plan import SegmentPlan
from pipelines.cluster import cluster
from tests.drives import DRIVE_CAMERAS, DRIVE_FRAMES, DRIVE_SEGMENTS

CONFIG = BuildConfig(cameras=DRIVE_CAMERAS)


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    """One local cluster for all tests of this module, the one a job starts for itself."""
    assert "RAY_ADDRESS" not in os.environ
    with cluster():
        yield


def build(sources: list[str], lake: Path, config: BuildConfig = CONFIG) -> BuildReport:
    return build_lake(sources, str(lake), config, lambda _: None)


def test_every_segment_is_committed_and_in_the_snapshot(drive_sources: list[str], tmp_path: Path) -> None:
    report = build(drive_sources, tmp_path)
    assert (len(report.segments), report.failures, report.snapshot) == (DRIVE_SEGMENTS, {}, 1)
    assert sum(commit.frames for commit in open_lake(str(tmp_path)).commits) == DRIVE_SEGMENTS * DRIVE_FRAMES


def test_a_second_build_skips_everything_and_publishes_nothing(drive_sources: list[str], tmp_path: Path) -> None:
    build(drive_sources, tmp_path)
    report = build(drive_sources, tmp_path)
    assert (report.segments, len(report.skipped), report.failures, report.snapshot) == ([], DRIVE_SEGMENTS, {}, 1)


def test_a_later_build_adds_what_is_new(drive_sources: list[str], tmp_path: Path) -> None:
    build(drive_sources[:1], tmp_path)
    report = build(drive_sources, tmp_path)
    assert (len(report.segments), len(report.skipped), report.snapshot) == (2, 1, 2)
    assert len(open_lake(str(tmp_path), snapshot=1).commits) == 1
    assert len(open_lake(str(tmp_path)).commits) == DRIVE_SEGMENTS


def test_an_unreadable_source_fails_alone(drive_sources: list[str], tmp_path: Path) -> None:
    missing = (tmp_path / "missing.tfrecord").as_uri()
    report = build([*drive_sources, missing], tmp_path / "lake")
    assert len(report.segments) == DRIVE_SEGMENTS
    assert list(report.failures) == [missing]
    assert "FileNotFoundError" in report.failures[missing]


@pytest.mark.parametrize(
    ("first", "second", "held"),
    [
        ("part-0.tfrecord", "part-1.tfrecord", True),
        ("{segment}.tfrecord", "{segment}_rest.tfrecord", True),
        ("{segment}.tfrecord", "another.tfrecord", False),
    ],
)
def test_a_segment_that_an_unreadable_source_may_hold_more_of_is_held_back(
    drive_sources: list[str], tmp_path: Path, first: str, second: str, held: bool
) -> None:
    segment = Path(drive_sources[0]).name.removeprefix("segment-").removesuffix(".tfrecord")
    readable = tmp_path / first.format(segment=segment)
    shutil.copy(drive_sources[0], readable)
    missing = (tmp_path / second.format(segment=segment)).as_uri()
    report = build([str(readable), missing], tmp_path / "lake")
    assert [one.segment for one in report.segments] == ([] if held else [segment])
    assert set(report.failures) == ({segment, missing} if held else {missing})
    if held:
        assert report.failures[segment].startswith(f"is held back: {missing} cannot be read and may hold some of its")
        # Mended, or left out on purpose, it is built.
        assert [one.outcome for one in build([str(readable)], tmp_path / "lake").segments] == ["committed"]


def test_a_segment_that_another_builder_committed_meanwhile_from_other_files_is_a_failure(
    drive_sources: list[str], tmp_path: Path
) -> None:
    def build_beside(plan: SegmentPlan, lake: str, config: BuildConfig) -> SegmentReport:
        faster = replace(config, cameras=config.cameras[:1])
        assert build_segment(plan, lake, faster).outcome == "committed"
        return build_segment(plan, lake, config)

    report = build_lake(drive_sources[:1], str(tmp_path), CONFIG, lambda _: None, build=build_beside)
    (reason,) = report.failures.values()
    assert reason == f"is in the lake already with cameras {CONFIG.cameras[0]}; use these, or another split"


def test_a_source_of_something_else_fails_alone(drive_sources: list[str], tmp_path: Path) -> None:
    other = tmp_path / "other.tfrecord"
    other.write_bytes(b"not a TFRecord at all" * 100)
    report = build([*drive_sources, str(other)], tmp_path / "lake")
    assert len(report.segments) == DRIVE_SEGMENTS
    assert "no record of a Waymo segment in 2100 bytes" in report.failures[other.as_uri()]


def test_a_segment_that_is_there_from_other_files_is_not_taken_for_done(
    drive_sources: list[str], tmp_path: Path
) -> None:
    build(drive_sources[:1], tmp_path / "lake")
    shorter = tmp_path / "shorter.tfrecord"
    shutil.copy(drive_sources[0], shorter)
    with shorter.open("r+b") as stream:
        stream.truncate(shorter.stat().st_size * 2 // 3)
    report = build([str(shorter)], tmp_path / "lake")
    (reason,) = report.failures.values()
    assert "in the lake already, built from other files" in reason


def test_the_same_file_from_another_place_is_done(drive_sources: list[str], tmp_path: Path) -> None:
    build(drive_sources[:1], tmp_path / "lake")
    moved = shutil.copy(drive_sources[0], tmp_path / "moved.tfrecord")
    report = build([str(moved)], tmp_path / "lake")
    assert (report.segments, len(report.skipped), report.failures) == ([], 1, {})


def test_a_lake_of_the_other_point_mode_is_refused(drive_sources: list[str], tmp_path: Path) -> None:
    build(drive_sources[:1], tmp_path)
    with pytest.raises(LakeError, match="stores points quantised, not lossless"):
        build(drive_sources, tmp_path, BuildConfig(cameras=DRIVE_CAMERAS, points="lossless"))


def test_progress_ends_with_every_frame(drive_sources: list[str], tmp_path: Path) -> None:
    steps: list[Progress] = []
    build_lake(drive_sources, str(tmp_path), CONFIG, steps.append)
    assert Progress("index", DRIVE_SEGMENTS, DRIVE_SEGMENTS) in steps
    assert steps[-1] == Progress("build", DRIVE_SEGMENTS * DRIVE_FRAMES, DRIVE_SEGMENTS * DRIVE_FRAMES)


def test_driver_takes_twice_as_long_for_twice_the_segments(tmp_path: Path) -> None:
    # The whole driver on the cluster; the tasks only commit. `python -m benchmarks.linear` does 10,000 segments.
    drive(tmp_path / "workers-start", segments=8, frames=8)
    runs = {segments: drive(tmp_path / str(segments), segments, frames=8) for segments in (40, 160)}
    assert max(worst(runs).values()) <= 2.6


def test_a_bug_in_a_task_is_not_taken_for_bad_input() -> None:
    with pytest.raises(ZeroDivisionError):
        attempt(divmod, 1, 0)


def test_a_store_that_fails_once_is_asked_again() -> None:
    answers = iter([OSError("connection reset"), "done"])

    def ask() -> str:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return str(answer)

    assert attempt(ask) == "done"


def test_a_file_that_is_not_there_is_not_asked_for_again(tmp_path: Path) -> None:
    asked = []

    def ask() -> bytes:
        asked.append(1)
        return (tmp_path / "nothing").read_bytes()

    assert isinstance(attempt(ask), FileNotFoundError)
    assert len(asked) == 1
