"""One segment to the lake: what can be kept is kept, the rest is in quarantine, and it is all there or not at all."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datalake.build import BuildConfig, build_segment
from datalake.commit import LakeError
from datalake.lake import open_lake, prepare_lake, publish_snapshot
from datalake.schema import TABLES
from datalake.sources.waymo_v1.tfrecord import frame_record
from datalake.store import Store
from tests.frames import (
    SEGMENT,
    START_US,
    STEP_US,
    float_matrix,
    make_frame,
    make_frames,
    read_float_matrix,
    write_frames,
)
from tests.lakes import LENIENT, build_files, build_frames, plan_files, write_bytes

_ROOT = Path(__file__).parents[2]


def _times(*indices: int) -> list[int]:
    return [START_US + index * STEP_US for index in indices]


def _records(count: int) -> list[bytes]:
    return [frame_record(frame.SerializeToString()) for frame in make_frames(count)]


def _flip(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def test_frames_of_a_segment_are_in_the_lake_in_the_order_of_time(tmp_path: Path) -> None:
    built = build_frames(tmp_path, [make_frame(index) for index in (2, 0, 1)])
    assert built.timestamps == _times(0, 1, 2)
    assert built.faults == []


def test_report_and_commit_count_what_the_lake_holds(tmp_path: Path) -> None:
    built = build_frames(tmp_path, make_frames(3))
    (commit,) = built.lake.commits
    points = sum(len(row["x_m"]) for row in built.rows("point"))
    assert (built.report.outcome, built.report.frames, built.report.points) == ("committed", 3, points)
    assert (commit.frames, commit.points, commit.quarantined) == (3, points, 0)
    assert built.report.bytes_in == (tmp_path / "source.tfrecord").stat().st_size
    assert built.report.bytes_out == sum(file.bytes for file in commit.files.values())
    assert {table: file.rows for table, file in commit.files.items()} == {
        table: built.lake.scan(table).count_rows() for table in TABLES
    }


def test_commit_names_its_sources(tmp_path: Path) -> None:
    built = build_frames(tmp_path, make_frames(2))
    (source,) = built.lake.commits[0].sources
    path = tmp_path / "source.tfrecord"
    assert (source.uri, source.bytes, source.records) == (path.as_uri(), path.stat().st_size, 2)


@pytest.mark.parametrize("position", [2, 40, -2], ids=["length", "payload", "footer"])
def test_flipped_bit_in_a_record_quarantines_it_alone(tmp_path: Path, position: int) -> None:
    records = _records(3)
    broken = _flip(records[1], position % len(records[1]))
    source = write_bytes(tmp_path / "source", records[0] + broken + records[2])
    built = build_files(str(tmp_path / "lake"), [source])
    assert built.timestamps == _times(0, 2)
    (row,) = built.rows("quarantine")
    assert (row["segment"], row["source"], row["record_index"]) == (SEGMENT, source, 1)
    assert (row["byte_offset"], row["byte_length"]) == (len(records[0]), len(records[1]))
    assert (row["scope"], row["stage"], row["error_type"]) == ("record", "framing", "RecordError")
    assert "CRC32C" in row["message"]


def test_segment_of_a_file_that_ends_inside_a_record_is_not_committed(tmp_path: Path) -> None:
    records = _records(3)
    source = write_bytes(tmp_path / "source", b"".join(records)[:-100])
    (plan,) = plan_files([source])
    report = build_segment(plan, str(tmp_path / "lake"), BuildConfig(max_quarantined=1.0))
    assert report.outcome == "failed"
    at = len(records[0]) + len(records[1])
    assert report.reason.startswith(f"{source} ends inside the record that begins at byte {at}, as a download does")
    assert Store(str(tmp_path / "lake")).listing("_commits") == {}


def test_cut_file_quarantines_its_last_record_where_that_is_allowed(tmp_path: Path) -> None:
    data = b"".join(_records(3))
    built = build_files(str(tmp_path / "lake"), [write_bytes(tmp_path / "source", data[:-100])])
    assert built.timestamps == _times(0, 1)
    (commit,) = built.lake.commits
    assert not commit.is_complete
    assert commit.sources[0].cut_off_at == sum(len(record) for record in _records(2))
    ((scope, stage, message),) = built.faults
    assert (scope, stage) == ("record", "framing")
    assert "cut off" in message


def test_second_frame_of_a_time_is_quarantined(tmp_path: Path) -> None:
    second = make_frame(1)
    second.timestamp_micros = START_US
    built = build_frames(tmp_path, [make_frame(0), second, make_frame(2)])
    assert built.timestamps == _times(0, 2)
    (row,) = built.rows("quarantine")
    assert (row["record_index"], row["timestamp_us"], row["stage"]) == (1, START_US, "frame")
    assert "already" in row["message"]


def test_second_frame_of_a_time_takes_the_place_of_one_that_is_broken(tmp_path: Path) -> None:
    record = _records(1)[0]
    source = write_bytes(tmp_path / "source", record + _flip(record, 400) + record)
    built = build_files(str(tmp_path / "lake"), [source])
    assert built.timestamps == _times(0)
    assert len(built.faults) == 2


@pytest.mark.parametrize("timestamp", [None, 0, -5, -(2**63)], ids=str)
def test_frame_without_a_time_is_quarantined(tmp_path: Path, timestamp: int | None) -> None:
    broken = make_frame(1)
    broken.ClearField("timestamp_micros")
    if timestamp is not None:
        broken.timestamp_micros = timestamp
    built = build_frames(tmp_path, [make_frame(0), broken])
    assert built.timestamps == _times(0)
    (row,) = built.rows("quarantine")
    assert (row["record_index"], row["scope"]) == (1, "record")
    assert "timestamp" in row["message"]


@pytest.mark.parametrize("name", ["../../evil", "/tmp/evil", "", "-rf"], ids=repr)
def test_hostile_segment_name_is_quarantined_and_writes_nowhere(tmp_path: Path, name: str) -> None:
    built = build_frames(tmp_path, [make_frame(0), make_frame(1, name)])
    assert built.timestamps == _times(0)
    ((scope, stage, message),) = built.faults
    assert (scope, stage) == ("record", "frame")
    assert "segment name" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lake", "source.tfrecord"]


def test_split_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (plan,) = plan_files([write_frames(tmp_path / "source", make_frames(1))])
    with pytest.raises((LakeError, ValueError), match="split"):
        build_segment(plan, str(tmp_path / "lake"), BuildConfig(split="../evil"))
    assert not (tmp_path / "evil").exists()


def test_camera_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    (plan,) = plan_files([write_frames(tmp_path / "source", make_frames(1))])
    with pytest.raises((LakeError, ValueError), match="BACK"):
        build_segment(plan, str(tmp_path / "lake"), BuildConfig(cameras=("BACK",)))


def _drop(field: str) -> Callable[[Any], None]:
    return lambda frame: frame.ClearField(field)


def _nan_range(frame: Any) -> None:
    message = frame.lasers[0].ri_return1
    image = read_float_matrix(message.range_image_compressed)
    image[0, 0, 0] = np.nan
    message.range_image_compressed = float_matrix(image)


def _no_laser_calibration(frame: Any) -> None:
    del frame.context.laser_calibrations[1]


def _broken_zlib(frame: Any) -> None:
    frame.lasers[1].ri_return1.range_image_compressed = b"x\x9c" + bytes(30)


def _bomb(frame: Any) -> None:
    frame.lasers[1].ri_return1.range_image_compressed = zlib.compress(b"\x0a\x04" + bytes(50 << 20))


def _broken_jpeg(frame: Any) -> None:
    frame.images[0].image = b"\xff\xd8" + bytes(200)


def _no_pixel_pose(frame: Any) -> None:
    frame.lasers[0].ri_return1.ClearField("range_image_pose_compressed")


def _no_second_return(frame: Any) -> None:
    frame.lasers[0].ClearField("ri_return2")


@pytest.mark.parametrize(
    ("damage", "stages"),
    [
        pytest.param(_drop("pose"), {"frame", "lidar"}, id="no pose"),
        pytest.param(_nan_range, {"lidar"}, id="NaN range"),
        pytest.param(_no_laser_calibration, {"lidar"}, id="laser without calibration"),
        pytest.param(_broken_zlib, {"lidar"}, id="broken zlib"),
        pytest.param(_bomb, {"lidar"}, id="decompression bomb"),
        pytest.param(_no_pixel_pose, {"lidar"}, id="TOP without pixel poses"),
        pytest.param(_no_second_return, {"lidar"}, id="no second return"),
        pytest.param(_broken_jpeg, {"image"}, id="broken JPEG"),
    ],
)
def test_damaged_part_is_quarantined_and_the_frame_kept(
    tmp_path: Path, damage: Callable[[Any], None], stages: set[str]
) -> None:
    frames = make_frames(3)
    damage(frames[1])
    built = build_frames(tmp_path, frames)
    assert built.timestamps == _times(0, 1, 2)
    rows = built.rows("quarantine")
    assert {row["stage"] for row in rows} == stages
    assert {(row["scope"], row["record_index"], row["timestamp_us"]) for row in rows} == {("part", 1, *_times(1))}
    assert all(row["byte_offset"] > 0 and row["byte_length"] > 0 and row["message"] for row in rows)


@pytest.mark.parametrize("field", ["context", "images", "lasers", "laser_labels", "camera_labels"])
def test_frame_without_a_whole_field_never_stops_the_segment(tmp_path: Path, field: str) -> None:
    frames = make_frames(3)
    frames[1].ClearField(field)
    built = build_frames(tmp_path, frames)
    assert set(_times(0, 2)) <= set(built.timestamps)
    assert _times(1)[0] in built.timestamps or len(built.faults) == 1


@pytest.mark.parametrize("place", ["context.stats.weather", "laser_labels.id", "camera_labels.id"])
def test_text_that_is_not_text_never_stops_the_segment(tmp_path: Path, place: str) -> None:
    frames = make_frames(2)
    {
        "context.stats.weather": lambda: setattr(frames[1].context.stats, "weather", "#~#~"),
        "laser_labels.id": lambda: setattr(frames[1].laser_labels[0], "id", "#~#~"),
        "camera_labels.id": lambda: setattr(frames[1].camera_labels[0].labels[0], "id", "#~#~"),
    }[place]()
    broken = frames[1].SerializeToString().replace(b"#~#~", b"\xff\xfe\xfd\xfc")
    data = frame_record(frames[0].SerializeToString()) + frame_record(broken)
    built = build_files(str(tmp_path / "lake"), [write_bytes(tmp_path / "source", data)])
    assert built.timestamps == _times(0, 1)
    assert [scope for scope, _, _ in built.faults] == ["part"]


def test_frame_without_lidar_is_whole(tmp_path: Path) -> None:
    built = build_frames(tmp_path, [make_frame(0, lidar=False)])
    assert [row["x_m"] for row in built.rows("point")] == [[]]
    assert [row["depth_m"] for row in built.rows("label")] == [None, None]
    assert built.faults == []


def test_real_frame_without_lidar_is_whole(tmp_path: Path, real_data: Path) -> None:
    source = str(real_data / "waymo_one_frame_no_lidar.tfrecord")
    built = build_files(str(tmp_path / "lake"), [source])
    assert {table: built.lake.scan(table).count_rows() for table in TABLES} == {
        "image": 5,
        "point": 1,
        "label": 66,
        "label_3d": 75,
        "depth": 5,
        "quarantine": 0,
        "calibration": 10,
        "projected_label": 62,
        "keypoint": 0,
        "map": 0,
    }
    assert all(row["panoptic"] and row["panoptic_divisor"] for row in built.rows("image"))


def test_cameras_that_are_asked_for_are_the_only_ones(tmp_path: Path) -> None:
    built = build_frames(tmp_path, make_frames(2), BuildConfig(cameras=("SIDE_LEFT",)))
    assert {row["camera"] for row in built.rows("image")} == {"SIDE_LEFT"}
    assert built.lake.commits[0].cameras == ("SIDE_LEFT",)
    assert built.rows("label") == []


def test_segment_with_too_many_bad_records_fails_and_leaves_no_table(tmp_path: Path) -> None:
    records = _records(10)
    source = write_bytes(tmp_path / "source", b"".join([_flip(records[0], 400), _flip(records[1], 400), *records[2:]]))
    (plan,) = plan_files([source])
    report = build_segment(plan, str(tmp_path / "lake"), BuildConfig(max_quarantined=0.1))
    assert report.outcome == "failed"
    assert "2 of 10 records" in report.reason
    store = Store(str(tmp_path / "lake"))
    assert (store.listing("train"), store.listing("_commits")) == ({}, {})


def test_failed_segment_lists_every_bad_record(tmp_path: Path) -> None:
    records = _records(3)
    source = write_bytes(tmp_path / "source", records[0] + _flip(records[1], 400) + _flip(records[2], 400))
    (plan,) = plan_files([source])
    report = build_segment(plan, str(tmp_path / "lake"), BuildConfig())
    listed = json.loads((tmp_path / f"lake/_failed/train/{SEGMENT}.json").read_text())
    assert [row["record_index"] for row in listed["quarantine"]] == [1, 2]
    assert listed["reason"] in report.reason


def test_bad_records_up_to_the_bound_are_accepted(tmp_path: Path) -> None:
    records = _records(10)
    source = write_bytes(tmp_path / "source", b"".join([_flip(records[0], 400), *records[1:]]))
    built = build_files(str(tmp_path / "lake"), [source], BuildConfig(max_quarantined=0.1))
    assert built.timestamps == _times(*range(1, 10))


def test_record_with_many_faults_counts_once_against_the_bound(tmp_path: Path) -> None:
    frames = make_frames(10)
    frames[0].ClearField("pose")
    _broken_jpeg(frames[0])
    built = build_frames(tmp_path, frames, BuildConfig(max_quarantined=0.1))
    assert built.report.outcome == "committed"
    assert len(built.faults) == 3


def test_stretch_that_held_most_of_the_records_counts_as_more_than_one(tmp_path: Path) -> None:
    # Nine tenths of the file are zeros: a single gap, but far more than a tenth of the segment.
    records = _records(100)
    zeros = bytes(sum(len(record) for record in records[5:95]))
    source = write_bytes(tmp_path / "source", b"".join(records[:5]) + zeros + b"".join(records[95:]))
    (plan,) = plan_files([source])
    assert build_segment(plan, str(tmp_path / "lake"), BuildConfig(max_quarantined=0.1)).outcome == "failed"


def test_segment_without_a_usable_frame_fails_with_the_reason(tmp_path: Path) -> None:
    frame = make_frame()
    frame.timestamp_micros = 0
    (plan,) = plan_files([write_frames(tmp_path / "source", [frame])])
    report = build_segment(plan, str(tmp_path / "lake"), LENIENT)
    assert report.outcome == "failed"
    assert "no timestamp" in report.reason


def test_source_that_is_gone_is_an_os_error_and_leaves_nothing(tmp_path: Path) -> None:
    (plan,) = plan_files([write_frames(tmp_path / "source", make_frames(2))])
    (tmp_path / "source").unlink()
    with pytest.raises(FileNotFoundError):
        build_segment(plan, str(tmp_path / "lake"), BuildConfig())
    assert Store(str(tmp_path / "lake")).listing("") == {}


@pytest.mark.parametrize("change", ["cut", "grown"])
def test_segment_of_a_source_that_was_written_since_it_was_planned_is_not_committed(
    tmp_path: Path, change: str
) -> None:
    path = tmp_path / "source"
    source = write_frames(path, make_frames(3))
    (plan,) = plan_files([source])
    data = path.read_bytes()
    path.write_bytes(data[:-50] if change == "cut" else data + _records(1)[0])
    report = build_segment(plan, str(tmp_path / "lake"), LENIENT)
    assert report.outcome == "failed"
    assert f"and had {len(data)} when it was indexed: somebody is writing it" in report.reason


@pytest.mark.parametrize("kind", ["disk", "s3"])
def test_second_attempt_finds_the_first_and_deletes_its_own_files(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = str(tmp_path / "lake") if kind == "disk" else request.getfixturevalue("s3_lake")
    (plan,) = plan_files([write_frames(tmp_path / "source", make_frames(2))])
    store = Store(url)
    prepare_lake(store, "quantised")
    outcomes = [build_segment(plan, url, BuildConfig()).outcome for _ in range(2)]
    assert outcomes == ["committed", "present"]
    publish_snapshot(store)
    (commit,) = open_lake(url).commits
    assert sorted(store.listing("train")) == sorted(commit.file_name(table) for table in TABLES)


@pytest.mark.parametrize("error", [OSError("Input/output error"), KeyboardInterrupt()], ids=["disk", "user"])
def test_a_commit_that_was_written_when_something_failed_keeps_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    source = write_frames(tmp_path / "a.tfrecord", make_frames(2))
    create = Store.create

    def create_and_fail(store: Store, name: str, data: bytes) -> bool:
        created = create(store, name, data)
        if name.startswith("_commits/"):
            raise error
        return created

    with monkeypatch.context() as patch:
        patch.setattr(Store, "create", create_and_fail)
        with pytest.raises(type(error)):
            build_files(str(tmp_path / "lake"), [source])
    built = build_files(str(tmp_path / "lake"), [source])
    assert built.report.outcome == "present"
    assert len(built.timestamps) == 2


def test_one_attempt_of_many_at_once_wins(tmp_path: Path) -> None:
    url = str(tmp_path / "lake")
    (plan,) = plan_files([write_frames(tmp_path / "source", make_frames(2))])
    store = Store(url)
    prepare_lake(store, "quantised")
    with ThreadPoolExecutor(6) as pool:
        reports = list(pool.map(lambda _: build_segment(plan, url, BuildConfig()), range(6)))
    assert sorted(report.outcome for report in reports) == ["committed"] + ["present"] * 5
    publish_snapshot(store)
    (commit,) = open_lake(url).commits
    assert sorted(store.listing("train")) == sorted(commit.file_name(table) for table in TABLES)


def test_failed_segment_on_s3_leaves_no_table(s3_lake: str, tmp_path: Path) -> None:
    records = _records(2)
    source = write_bytes(tmp_path / "source", records[0] + _flip(records[1], 400))
    (plan,) = plan_files([source])
    assert build_segment(plan, s3_lake, BuildConfig()).outcome == "failed"
    assert Store(s3_lake).listing("train") == {}


def test_equal_sources_make_equal_files(tmp_path: Path) -> None:
    source = write_frames(tmp_path / "source", make_frames(9))
    first, second = (build_files(str(tmp_path / name), [source]).lake.commits[0] for name in ("one", "two"))
    assert first.attempt != second.attempt
    assert replace(first, attempt="", created_at="") == replace(second, attempt="", created_at="")


_KILLED_BUILD = """
import sys
from datalake.build import BuildConfig, build_segment
from tests.lakes import plan_files
(plan,) = plan_files([sys.argv[1]])
print("ready", flush=True)
print(build_segment(plan, sys.argv[2], BuildConfig()).outcome, flush=True)
"""


@pytest.fixture(scope="module")
def long_segment(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, float, dict[str, Any]]:
    """A source that takes a while, the seconds that it takes, and the files of an undisturbed build."""
    folder = tmp_path_factory.mktemp("long")
    source = write_frames(folder / "source", make_frames(150))
    start = time.perf_counter()
    built = build_files(str(folder / "lake"), [source])
    return source, time.perf_counter() - start, built.lake.commits[0].to_json()["files"]


@pytest.mark.integration
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_killed_attempt_leaves_all_or_nothing_and_the_next_one_the_same_content(
    tmp_path: Path, long_segment: tuple[str, float, dict[str, Any]], seed: int
) -> None:
    source, seconds, expected = long_segment
    store = Store(str(tmp_path / "lake"))
    prepare_lake(store, "quantised")
    process = subprocess.Popen(
        [sys.executable, "-c", _KILLED_BUILD, source, str(tmp_path / "lake")],
        cwd=_ROOT,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(random.Random(seed).uniform(0.2, 0.9) * seconds)
    process.send_signal(signal.SIGKILL)
    killed_after = process.stdout.read().strip()
    process.wait()

    (plan,) = plan_files([source])
    outcome = build_segment(plan, store.url, BuildConfig()).outcome
    assert outcome == "present" or (outcome == "committed" and killed_after != "committed")
    publish_snapshot(store)
    (commit,) = open_lake(store.url).commits
    assert commit.to_json()["files"] == expected
    for table in TABLES:
        assert store.size(commit.file_name(table)) == expected[table]["bytes"]
