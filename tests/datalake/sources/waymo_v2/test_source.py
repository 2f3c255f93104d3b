"""Components of Waymo 2.x as they may be: some missing, out of order, in pieces, damaged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from datalake.build import BuildConfig, build_segment
from datalake.commit import LakeError
from datalake.source_list import list_sources
from datalake.sources.formats import index_source
from datalake.sources.waymo_v2 import component_file
from datalake.sources.waymo_v2.component import COMPONENTS
from tests.datalake.sources.waymo_v2.conftest import STEP_US, TIME, write_frames
from tests.lakes import Built, build_files, plan_files

Build = Callable[[Path], Built]


def only_file(folder: Path, component: str) -> Path:
    (path,) = (folder / component).iterdir()
    return path


def set_first(folder: Path, component: str, column: str, value: Any) -> None:
    """Change a column in the first row of a component's file."""
    path = only_file(folder, component)
    table = pq.read_table(path)
    place = next(place for place, name in enumerate(table.column_names) if name.endswith(f".{column}"))
    field = table.schema.field(place)
    values = pa.array([value, *table[place].to_pylist()[1:]], field.type)
    pq.write_table(table.set_column(place, field, values), path)


def test_a_folder_stands_for_the_files_of_its_components(components: Path) -> None:
    found = list_sources([str(components)])
    assert {uri.rsplit("/", 2)[1] for uri in found} >= {"camera_image", "lidar", "lidar_box", "stats", "vehicle_pose"}
    assert all(uri.endswith(".parquet") for uri in found)


def test_frames_are_built_in_order_of_time_from_rows_in_any_order(small: Path, build: Build, tmp_path: Path) -> None:
    built = build(small)
    for path in small.glob("*/*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.take(pa.array(reversed(range(len(table))), pa.int64())), path)
    shuffled = build_files(str(tmp_path / "other"), list_sources([str(small)]))
    assert len(shuffled.timestamps) == 3
    for table in ("image", "point", "depth"):
        assert shuffled.rows(table) == built.rows(table)


@pytest.mark.parametrize(
    ("component", "line", "empty"),
    [
        ("camera_image", "no images", "image"),
        ("camera_box", "no 2D labels", "label"),
        ("lidar_box", "no 3D labels", "label_3d"),
    ],
)
def test_a_missing_component_costs_its_rows_and_a_line(
    small: Path, build: Build, component: str, line: str, empty: str
) -> None:
    shutil.rmtree(small / component)
    built = build(small)
    assert built.report.missing == [f"{component}: {line}"]
    assert (built.report.outcome, built.report.frames, built.faults) == ("committed", 3, [])
    assert built.rows(empty) == []


@pytest.mark.parametrize(
    ("component", "table", "column"),
    [
        ("camera_calibration", "image", "camera_to_vehicle"),
        ("camera_segmentation", "image", "panoptic"),
        ("stats", "image", "location"),
    ],
)
def test_a_missing_component_gives_nulls_without_a_fault(
    small: Path, build: Build, component: str, table: str, column: str
) -> None:
    shutil.rmtree(small / component)
    built = build(small)
    assert {row[column] for row in built.rows(table)} == {None}
    assert built.faults == []


def test_without_pixel_poses_the_other_lasers_are_kept(without: Callable[[str], Path], build: Build) -> None:
    built = build(without("lidar_pose"))
    (row,) = built.rows("point")
    assert set(row["laser"]) == {2, 3, 4, 5}
    assert built.faults == []
    assert "no points of TOP" in built.report.missing[0]


def test_a_damaged_page_costs_the_frames_of_its_row_group(small: Path, build: Build) -> None:
    path = only_file(small, "lidar")
    column = pq.ParquetFile(path).metadata.row_group(1).column(4)
    start = column.dictionary_page_offset or column.data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(data)
    built = build(small)
    assert [len(row["laser"]) > 0 for row in built.rows("point")] == [True, False, True]
    ((scope, stage, message),) = built.faults
    assert (scope, stage) == ("part", "record")
    assert "row group 1 cannot be read" in message
    assert built.rows("quarantine")[0]["source"] == path.as_uri()


def test_a_cut_off_file_is_refused_with_a_remedy(small: Path) -> None:
    path = only_file(small, "camera_box")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(LakeError, match=r"camera_box/.*cannot be read as a Parquet file.*fetch it again"):
        index_source(path.as_uri())


def test_a_file_without_the_columns_of_its_component_is_refused(small: Path) -> None:
    path = only_file(small, "camera_box")
    shutil.copy(path, only_file(small, "lidar_box"))
    with pytest.raises(LakeError, match=r"has no column key\.laser_object_id, as files of lidar_box have"):
        index_source(only_file(small, "lidar_box").as_uri())


def test_a_parquet_file_of_no_component_is_refused_with_the_components(small: Path, tmp_path: Path) -> None:
    path = shutil.copy(only_file(small, "camera_box"), tmp_path / "a.parquet")
    with pytest.raises(LakeError, match=r"in the folder of its component \(camera_image, "):
        index_source(Path(path).as_uri())


def test_the_index_column_is_not_needed(small: Path, build: Build) -> None:
    before = build(small).rows("label_3d")
    for path in small.glob("*/*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns(["index"]), path)
    assert build_files(str(small.parent / "other"), list_sources([str(small)])).rows("label_3d") == before


def test_rows_of_a_time_without_a_frame_are_told(small: Path, build: Build) -> None:
    path = only_file(small, "camera_box")
    write_frames(path, pq.read_table(path).slice(0, 7), range(9, 10))
    built = build(small)
    assert [message.split(" (")[0] for _, _, message in built.faults] == [
        "7 rows are of a time at which there is no frame"
    ]


@pytest.mark.parametrize(
    ("component", "row", "message"),
    [
        ("camera_calibration", "camera_name", "camera FRONT appears twice; kept the first calibration"),
        ("lidar_calibration", "laser_name", "laser FRONT appears twice; kept the first"),
    ],
)
def test_a_calibration_that_is_there_twice_is_told_once(
    small: Path, build: Build, component: str, row: str, message: str
) -> None:
    path = only_file(small, component)
    table = pq.read_table(path).sort_by(f"key.{row}")
    pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), path)
    built = build(small)
    assert [(fault["message"], fault["source"]) for fault in built.rows("quarantine")] == [(message, path.as_uri())]


_SHAPE = "range_image_return1.shape"


@pytest.mark.parametrize(
    ("component", "column", "value", "message"),
    [
        ("camera_image", "image", b"", "image of "),
        ("camera_image", "pose.transform", None, "has no finite pose"),
        ("camera_segmentation", "panoptic_label", b"no PNG", "panoptic label of "),
        ("camera_box", "type", 9, "2D label "),
        ("lidar", _SHAPE, [1, 1, 1], "is left out"),
        ("lidar_camera_projection", _SHAPE, [1, 1, 1], "is kept without camera projections"),
        ("lidar_box", "type", 9, "3D label "),
        ("projected_lidar_box", "type", 9, "projected label "),
        ("vehicle_pose", "world_from_vehicle.transform", None, "the frame's pose is missing"),
    ],
)
def test_quarantine_names_the_file_of_the_part_that_is_bad(
    small: Path, build: Build, component: str, column: str, value: Any, message: str
) -> None:
    set_first(small, component, column, value)
    (fault,) = build(small).rows("quarantine")
    assert fault["source"] == only_file(small, component).as_uri()
    assert message in fault["message"]


@pytest.mark.parametrize(
    ("component", "column"),
    [("camera_calibration", "intrinsic.f_u"), ("lidar_calibration", "extrinsic.transform")],
)
def test_quarantine_names_the_file_of_a_calibration_that_is_bad(
    small: Path, build: Build, component: str, column: str
) -> None:
    set_first(small, component, column, None)
    built = build(small)
    assert {fault["source"] for fault in built.rows("quarantine")} == {only_file(small, component).as_uri()}


@pytest.mark.parametrize("component", ["lidar_pose", "lidar_segmentation"])
def test_quarantine_names_the_file_of_what_only_the_laser_on_top_has(
    without: Callable[[str], Path], build: Build, component: str
) -> None:
    folder = without("stats")
    set_first(folder, component, _SHAPE, [1, 1, 1])
    built = build(folder)
    assert {fault["source"] for fault in built.rows("quarantine")} == {only_file(folder, component).as_uri()}


@pytest.mark.parametrize("error", [pa.ArrowMemoryError, pa.ArrowCancelled])
def test_a_file_is_not_called_damaged_where_memory_ran_out(
    small: Path, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error("malloc of size 1000 failed")

    monkeypatch.setattr(pq.ParquetFile, "read", fail)
    with pytest.raises(error):
        index_source(only_file(small, "camera_box").as_uri())


def test_a_row_without_a_time_is_quarantined(small: Path, build: Build) -> None:
    path = only_file(small, "lidar_box")
    table = pq.read_table(path)
    place = table.column_names.index(TIME)
    times = pc.if_else(pc.equal(table["key.laser_object_id"], table["key.laser_object_id"][0]), None, table[TIME])
    pq.write_table(table.set_column(place, table.schema.field(TIME), times), path)
    built = build(small)
    assert len(built.faults) == 3
    assert len(built.rows("label_3d")) == len(table) - 3


def test_a_segment_is_built_anew_when_a_component_comes_to_it(small: Path, tmp_path: Path) -> None:
    aside = tmp_path / "stats"
    shutil.move(small / "stats", aside)
    url = str(tmp_path / "lake")
    build_files(url, list_sources([str(small)]))
    shutil.move(aside, small / "stats")
    (plan,) = plan_files(list_sources([str(small)]))
    assert len(plan.records) == 3
    assert len(plan.sources) == len(COMPONENTS)


def test_a_file_that_grew_since_it_was_indexed_fails_the_segment(small: Path, tmp_path: Path) -> None:
    (plan,) = plan_files(list_sources([str(small)]))
    path = only_file(small, "lidar_box")
    write_frames(path, pq.read_table(path).slice(0, 5), range(5))
    report = build_segment(plan, str(tmp_path / "lake"), BuildConfig())
    assert (report.outcome, "somebody is writing it" in report.reason) == ("failed", True)


def test_two_files_of_a_component_fail_their_segment_alone(small: Path, build: Build) -> None:
    for path in small.glob("*/*.parquet"):
        table = pq.read_table(path)
        place = table.column_names.index("key.segment_context_name")
        other = pa.array(["another"] * len(table), table.schema.field(place).type)
        pq.write_table(table.set_column(place, table.schema.field(place), other), path.with_name("another.parquet"))
    shutil.copy(only := small / "camera_box/another.parquet", only.with_name("again.parquet"))
    failed, committed = sorted(build(small).reports, key=lambda report: report.segment != "another")
    assert (failed.segment, failed.outcome, committed.outcome) == ("another", "failed", "committed")
    assert "both are its camera_box; name one of them" in failed.reason


def test_few_rows_are_in_memory_at_a_time(small: Path, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    size = pq.read_table(only_file(small, "lidar")).nbytes
    # Two of the three frames would be too much to keep.
    monkeypatch.setattr(component_file, "_MOST_WAITING_BYTES", size // 2)
    assert build(small).report.outcome == "committed"


def test_rows_far_out_of_order_fail_the_segment_with_a_remedy(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = only_file(small, "lidar")
    table = pq.read_table(path)
    pq.write_table(table.sort_by([(TIME, "descending")]), path)
    monkeypatch.setattr(component_file, "_MOST_WAITING_BYTES", table.nbytes // 2)
    (plan,) = plan_files(list_sources([str(small)]))
    report = build_segment(plan, str(small.parent / "lake"), BuildConfig())
    assert (report.outcome, "sort them by key.frame_timestamp_micros" in report.reason) == ("failed", True)


def test_times_of_frames_are_those_of_the_rows(small: Path, build: Build) -> None:
    first = pq.read_table(only_file(small, "vehicle_pose"))[TIME][0].as_py()
    assert build(small).timestamps == [first, first + STEP_US, first + 2 * STEP_US]


def test_components_in_an_object_store_give_the_same_rows(small: Path, s3_lake: str, build: Build) -> None:
    fs, path = fsspec.core.url_to_fs(f"{s3_lake}-source")
    fs.put(f"{small}/", f"{path}/", recursive=True)
    remote = build_files(s3_lake, list_sources([f"{s3_lake}-source"]))
    assert remote.rows("point") == build(small).rows("point")
    assert remote.rows("image") == build(small).rows("image")
