"""Which records make up which segment, and to whom the unreadable ones belong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datalake.commit import LakeError
from datalake.plan import plan_segments
from datalake.source_list import list_sources
from datalake.sources.formats import index_source
from datalake.sources.waymo_v1.source import slot_of
from datalake.sources.waymo_v1.tfrecord import RecordFile, frame_record, write_records
from tests.frames import START_US, STEP_US, make_frame, make_frames, write_frames
from tests.lakes import plan_files, write_bytes


def _record(frame: Any) -> bytes:
    return frame_record(frame.SerializeToString())


def _flip(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def test_records_of_a_segment_are_sorted_by_time_over_all_files(tmp_path: Path) -> None:
    frames = make_frames(6)
    sources = [
        write_frames(tmp_path / "one", [frames[5], frames[0], frames[3]]),
        write_frames(tmp_path / "two", [frames[4], frames[2], frames[1]]),
    ]
    (plan,) = plan_files(sources)
    assert [ref.timestamp_us for ref in plan.records] == [START_US + index * STEP_US for index in range(6)]
    assert [(source.uri, source.records) for source in plan.sources] == [(sources[0], 3), (sources[1], 3)]


def test_plan_is_the_same_whatever_the_order_of_the_files(tmp_path: Path) -> None:
    sources = [write_frames(tmp_path / name, [make_frame(index)]) for index, name in enumerate("abc")]
    indexes = [index_source(source) for source in sources]
    assert plan_segments(indexes) == plan_segments(reversed(indexes))


def test_segments_of_one_file_are_told_apart(tmp_path: Path) -> None:
    frames = [make_frame(index, f"segment_{index % 2}") for index in range(6)]
    plans = plan_files([write_frames(tmp_path / "mixed", frames)])
    assert [(plan.segment, len(plan.records)) for plan in plans] == [("segment_0", 3), ("segment_1", 3)]


def test_record_reference_points_at_its_record(tmp_path: Path) -> None:
    frames = make_frames(3)
    source = write_frames(tmp_path / "file", frames)
    (plan,) = plan_files([source])
    with RecordFile(source) as file:
        assert [file.read(slot_of(ref)) for ref in plan.records] == [frame.SerializeToString() for frame in frames]


def test_index_knows_size_and_version_of_its_source(tmp_path: Path) -> None:
    path = tmp_path / "file"
    index = index_source(write_frames(path, make_frames(1)))
    assert (index.bytes, index.version) == (path.stat().st_size, str(path.stat().st_mtime))


def test_unreadable_record_belongs_to_the_segment_before_it(tmp_path: Path) -> None:
    records = [_record(make_frame(0, "segment_a")), _record(make_frame(0, "segment_b"))]
    source = write_bytes(tmp_path / "file", records[0] + _flip(records[0], 3) + records[1])
    found = {plan.segment: [bad.offset for bad in plan.bad] for plan in plan_files([source])}
    assert found == {"segment_a": [len(records[0])], "segment_b": []}


def test_unreadable_start_belongs_to_the_segment_behind_it(tmp_path: Path) -> None:
    record = _record(make_frame())
    source = write_bytes(tmp_path / "file", b"noise" + record)
    (plan,) = plan_files([source])
    assert [(bad.index, bad.offset, bad.length, bad.error_type) for bad in plan.bad] == [(0, 0, 5, "RecordError")]
    assert [(ref.index, ref.offset) for ref in plan.records] == [(1, 5)]


def test_flipped_bit_in_a_name_founds_no_segment(tmp_path: Path) -> None:
    frames = make_frames(3, "segment_a")
    records = [_record(frame) for frame in frames]
    broken = _flip(records[1], records[1].index(b"segment_a") + 8)
    source = write_bytes(tmp_path / "file", records[0] + broken + records[2])
    (plan,) = plan_files([source])
    assert (plan.segment, len(plan.records)) == ("segment_a", 2)
    assert [bad.index for bad in plan.bad] == [1]


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "", "a/../../b"], ids=repr)
def test_hostile_name_founds_no_segment(tmp_path: Path, name: str) -> None:
    source = write_frames(tmp_path / "file", [make_frame(0), make_frame(1, name), make_frame(2)])
    (plan,) = plan_files([source])
    assert [bad.error_type for bad in plan.bad] == ["FrameError"]
    assert "segment name" in plan.bad[0].message


def test_name_that_is_not_text_founds_no_segment(tmp_path: Path) -> None:
    payload = make_frame(1, "abc").SerializeToString().replace(b"abc", b"\xff\xfe\xfd")
    source = write_bytes(tmp_path / "file", _record(make_frame(0)) + frame_record(payload))
    (plan,) = plan_files([source])
    assert [bad.index for bad in plan.bad] == [1]


def test_payload_that_is_no_frame_is_reported(tmp_path: Path) -> None:
    source = write_bytes(tmp_path / "file", _record(make_frame(0)) + frame_record(b"\xff" * 30))
    (plan,) = plan_files([source])
    assert [(bad.index, bad.error_type) for bad in plan.bad] == [(1, "FrameError")]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "it is empty", id="empty"),
        pytest.param(b"\0" * 100, "length fails its CRC32C", id="zeros"),
        pytest.param(frame_record(b"\xff" * 30), "not a Waymo Frame", id="another message"),
    ],
)
def test_source_without_a_segment_is_refused_with_the_reason(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(LakeError, match=reason):
        index_source(write_bytes(tmp_path / "file", data))


def test_folder_as_a_source_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(LakeError, match=r"name its files, for example .*/\*\.tfrecord"):
        index_source(str(tmp_path))


def test_missing_source_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        index_source(str(tmp_path / "nothing"))


def test_unreadable_source_is_an_os_error(s3_bucket: str) -> None:
    # A folder of permissions does not stop root, a bucket that is not there stops everybody.
    with pytest.raises(OSError):
        index_source(f"{s3_bucket}-elsewhere/a.tfrecord")


def test_sources_are_found_by_glob_and_by_list_each_once(tmp_path: Path) -> None:
    for name in ("b.tfrecord", "a.tfrecord", "c.other"):
        write_bytes(tmp_path / name, b"")
    listing = tmp_path / "list.txt"
    listing.write_text(f"# a comment\n\n{tmp_path}/a.tfrecord\n{tmp_path}/c.*\n")
    found = list_sources([f"{tmp_path}/*.tfrecord", str(listing)])
    assert found == [f"file://{tmp_path}/{name}" for name in ("a.tfrecord", "b.tfrecord", "c.other")]


def test_glob_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LakeError, match="no file matches"):
        list_sources([f"{tmp_path}/*.tfrecord"])


def test_list_without_a_line_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("# nothing\n")
    with pytest.raises(LakeError, match="the list of sources is empty"):
        list_sources([str(tmp_path / "list.txt")])


def test_sources_are_found_on_s3(s3_lake: str) -> None:
    write_records(f"{s3_lake}/a.tfrecord", [b"A"])
    assert list_sources([f"{s3_lake}/*.tfrecord"]) == [f"{s3_lake}/a.tfrecord"]
