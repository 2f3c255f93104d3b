"""A whole build over Ray: what is built, what is skipped, and what is said of the rest."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.linear import drive, worst
from datalake.build import BuildConfig, SegmentReport, build_segment
from datalake.commit import LakeError
from datalake.fanout import BuildReport, Progress, build_lake
from datalake.lake import open_lake
from datalake.sources.source import SegmentPlan
from datalake.sources.waymo_v1.protos import dataset_pb2
from datalake.sources.waymo_v1.tfrecord import RecordFile, Slot, write_records
from datalake.task import attempt
from datalake.vacuum import vacuum
from datalake.verify import verify
from tests.drives import DRIVE_CAMERAS, DRIVE_FRAMES, DRIVE_SEGMENTS

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_driver")]

CONFIG = BuildConfig(cameras=DRIVE_CAMERAS)


def tf_payloads(path: Path) -> list[bytes]:
    with RecordFile(str(path)) as file:
        return [file.read(slot) for slot in file.slots() if isinstance(slot, Slot)]


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
        assert report.failures[segment].startswith(f"is held back: {missing} cannot be read to its end and may")
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


def parts(drive: str, folder: Path) -> tuple[Path, Path]:
    """Cut a drive into two files of whole records, of which the first has the most."""
    data, offset = Path(drive).read_bytes(), 0
    for _ in range(2 * DRIVE_FRAMES // 3):
        offset += 16 + int.from_bytes(data[offset : offset + 8], "little")
    folder.mkdir()
    (folder / "part-0").write_bytes(data[:offset])
    (folder / "part-1").write_bytes(data[offset:])
    return folder / "part-0", folder / "part-1"


def cut(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size - 1000)


def frames_by_snapshot(lake: Path, count: int) -> list[int]:
    return [open_lake(str(lake), number).scan("point").count_rows() for number in range(1, count + 1)]


def test_a_part_of_its_files_never_takes_the_place_of_a_segment(drive_sources: list[str], tmp_path: Path) -> None:
    first, second = parts(drive_sources[0], tmp_path / "drive")
    build([str(first), str(second)], tmp_path / "lake")
    report = build([str(first)], tmp_path / "lake")
    (reason,) = report.failures.values()
    assert "in the lake already, built from other files (11 records in 2 files, here 7 in 1)" in reason
    assert second.as_uri() in reason


def test_files_that_were_missing_at_first_make_the_segment_whole(drive_sources: list[str], tmp_path: Path) -> None:
    first, second = parts(drive_sources[0], tmp_path / "drive")
    build([str(first)], tmp_path / "lake")
    report = build([str(first), str(second)], tmp_path / "lake")
    assert (report.failures, report.snapshot) == ({}, 2)
    assert frames_by_snapshot(tmp_path / "lake", 2) == [7, DRIVE_FRAMES]


def test_a_file_that_broke_off_is_not_committed_and_its_whole_is(drive_sources: list[str], tmp_path: Path) -> None:
    source = tmp_path / Path(drive_sources[0]).name
    shutil.copy(drive_sources[0], source)
    cut(source)
    report = build([str(source), drive_sources[1]], tmp_path / "lake")
    (reason,) = report.failures.values()
    assert reason.startswith(f"{source.as_uri()} ends inside the record that begins at byte")
    assert "--allow-truncated" in reason
    assert len(open_lake(str(tmp_path / "lake")).commits) == 1
    shutil.copy(drive_sources[0], source)
    assert build([str(source)], tmp_path / "lake").failures == {}
    assert frames_by_snapshot(tmp_path / "lake", 2) == [DRIVE_FRAMES, 2 * DRIVE_FRAMES]


def test_a_segment_beside_a_file_that_broke_off_is_held_back(drive_sources: list[str], tmp_path: Path) -> None:
    # Nothing in the names says that the cut file has no more of the other's segment.
    whole, broken = tmp_path / "whole.tfrecord", tmp_path / "broken.tfrecord"
    shutil.copy(drive_sources[0], whole)
    shutil.copy(drive_sources[1], broken)
    cut(broken)
    report = build([str(whole), str(broken)], tmp_path / "lake")
    assert [one.outcome for one in report.segments] == ["failed"]
    assert sum(reason.startswith(f"is held back: {broken.as_uri()}") for reason in report.failures.values()) == 1


@pytest.mark.parametrize("elsewhere", [False, True], ids=["same place", "another place"])
def test_the_whole_file_supersedes_what_was_built_of_a_part_of_it(
    drive_sources: list[str], tmp_path: Path, elsewhere: bool
) -> None:
    source = tmp_path / "a.tfrecord"
    shutil.copy(drive_sources[0], source)
    cut(source)
    lenient = replace(CONFIG, allow_truncated=True)
    assert build([str(source)], tmp_path / "lake", lenient).failures == {}
    part = open_lake(str(tmp_path / "lake"))
    assert not part.commits[0].is_complete
    # The part is there and will do, for those who allow it.
    assert len(build([str(source)], tmp_path / "lake", lenient).skipped) == 1
    whole = tmp_path / "b.tfrecord" if elsewhere else source
    shutil.copy(drive_sources[0], whole)
    report = build([str(whole)], tmp_path / "lake")
    assert ([one.superseding for one in report.segments], report.failures, report.snapshot) == ([True], {}, 2)
    (commit,) = open_lake(str(tmp_path / "lake")).commits
    names = sorted(path.name for path in (tmp_path / "lake/_commits/train").iterdir())
    assert names == [f"{commit.segment}.1.json", f"{commit.segment}.json"]
    assert commit.supersedes == (f"_commits/train/{commit.segment}.json",)
    assert commit.is_complete
    # Readers of the old snapshot keep all that they have.
    assert vacuum(part.store, "train", grace_s=0) == []
    assert frames_by_snapshot(tmp_path / "lake", 2) == [DRIVE_FRAMES - 1, DRIVE_FRAMES]
    assert [problems for number in (1, 2) for _, problems in verify(open_lake(str(tmp_path / "lake"), number))] == [
        [],
        [],
    ]
    assert len(build([str(whole)], tmp_path / "lake").skipped) == 1


def test_a_part_that_was_built_before_commits_told_so_is_superseded(drive_sources: list[str], tmp_path: Path) -> None:
    source = tmp_path / "a.tfrecord"
    shutil.copy(drive_sources[0], source)
    cut(source)
    build([str(source)], tmp_path / "lake", replace(CONFIG, allow_truncated=True))
    # As 09e13cd left it.
    (path,) = (tmp_path / "lake/_commits/train").iterdir()
    commit = json.loads(path.read_bytes())
    for key in ("checksum", "cut_off_at"):
        del commit["sources"][0][key]
    path.write_text(json.dumps(commit))
    snapshot = tmp_path / "lake/_snapshots/1.json"
    snapshot.write_text(json.dumps({**json.loads(snapshot.read_bytes()), "commits": [commit]}))
    shutil.copy(drive_sources[0], source)
    report = build([str(source)], tmp_path / "lake")
    assert (report.failures, report.snapshot) == ({}, 2)
    assert frames_by_snapshot(tmp_path / "lake", 2) == [DRIVE_FRAMES - 1, DRIVE_FRAMES]


def test_a_part_of_a_file_never_takes_the_place_of_the_whole(drive_sources: list[str], tmp_path: Path) -> None:
    source = tmp_path / "a.tfrecord"
    shutil.copy(drive_sources[0], source)
    build([str(source)], tmp_path / "lake")
    cut(source)
    report = build([str(source)], tmp_path / "lake", replace(CONFIG, allow_truncated=True))
    (reason,) = report.failures.values()
    assert reason == (
        f"is in the lake already with 11 records, and {source.as_uri()} is cut off behind 10; fetch it again"
    )


def test_a_changed_source_of_the_same_size_supersedes(drive_sources: list[str], tmp_path: Path) -> None:
    source = tmp_path / "a.tfrecord"
    shutil.copy(drive_sources[0], source)
    build([str(source)], tmp_path / "lake")
    payloads = tf_payloads(source)
    frame = dataset_pb2.Frame.FromString(payloads[3])
    frame.context.stats.weather = frame.context.stats.weather[::-1]
    payloads[3] = frame.SerializeToString()
    size = source.stat().st_size
    write_records(str(source), payloads)
    assert source.stat().st_size == size
    assert build([str(source)], tmp_path / "lake").snapshot == 2


def test_a_mended_record_supersedes_the_quarantined_one(drive_sources: list[str], tmp_path: Path) -> None:
    # Its header and footer, all that an index reads of it, are the same.
    source = tmp_path / "a.tfrecord"
    data = bytearray(Path(drive_sources[0]).read_bytes())
    data[len(data) // 2] ^= 1
    source.write_bytes(data)
    os.utime(source, (0, 0))
    build([str(source)], tmp_path / "lake")
    shutil.copy(drive_sources[0], source)
    assert build([str(source)], tmp_path / "lake").snapshot == 2
    assert frames_by_snapshot(tmp_path / "lake", 2) == [DRIVE_FRAMES - 1, DRIVE_FRAMES]


def test_a_source_that_was_only_touched_is_done(drive_sources: list[str], tmp_path: Path) -> None:
    source = tmp_path / "a.tfrecord"
    shutil.copy(drive_sources[0], source)
    build([str(source)], tmp_path / "lake")
    os.utime(source, (0, 0))
    report = build([str(source)], tmp_path / "lake")
    assert (report.segments, len(report.skipped), report.failures) == ([], 1, {})


def test_the_same_file_from_another_place_is_done(drive_sources: list[str], tmp_path: Path) -> None:
    build(drive_sources[:1], tmp_path / "lake")
    moved = shutil.copy(drive_sources[0], tmp_path / "moved.tfrecord")
    report = build([str(moved)], tmp_path / "lake")
    assert (report.segments, len(report.skipped), report.failures) == ([], 1, {})


def test_a_folder_that_holds_a_data_set_is_refused_and_left_as_it_is(drive_sources: list[str], tmp_path: Path) -> None:
    image = tmp_path / "train/image/000001.jpg"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"somebody's")
    os.utime(image, (0, 0))
    with pytest.raises(LakeError, match=r"holds train but no lake \(no _lake.json\); give an empty or a new folder"):
        build(drive_sources, tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [image]


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
