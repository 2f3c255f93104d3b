"""Conditions on images: that they mean what SQL means, and what a lake is like of which images are left out."""

from __future__ import annotations

import io
import re
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from datalake.commit import LakeError
from datalake.info import print_info
from datalake.lake import Lake
from datalake.loader import LoaderConfig, SampleStream
from datalake.where import parse_where

TIMES, PLACES = ["Day", "Night", "Dawn/Dusk", None], ["location_sf", "it's", "", None]
IMAGES = pa.table(
    {
        "time_of_day": pa.array([time for time in TIMES for _ in range(8)]),
        "location": pa.array([PLACES[number // 2 % 4] for number in range(32)]),
        "width": pa.array([(number * 7) % 5 for number in range(32)], pa.int32()),
        "panoptic_divisor": pa.array([None if number % 3 == 0 else number % 4 for number in range(32)], pa.int32()),
    }
)

text = st.sampled_from(["'Day'", "'Night'", "'it''s'", "''", "'location_sf'"])
number = st.sampled_from(["0", "1", "2", "-1", "2.5", "1e0"])
column = {
    "text": st.sampled_from(["time_of_day", "location"]),
    "number": st.sampled_from(["width", "panoptic_divisor"]),
}
sign = st.sampled_from(["=", "<>", "!=", "<", "<=", ">", ">="])
negation = st.sampled_from(["", "NOT "])


def predicates(kind: str, literal: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    name = column[kind]
    several = st.lists(literal, min_size=1, max_size=3).map(", ".join)
    return st.one_of(
        st.builds("{} {} {}".format, name, sign, st.one_of(literal, name)),
        st.builds("{} {}IN ({})".format, name, negation, several),
        st.builds("{} {}BETWEEN {} AND {}".format, name, negation, literal, literal),
        st.builds("{} IS {}NULL".format, name, negation),
    )


patterns = st.sampled_from(["'%ay'", "'N_ght'", "'Dawn/%'", "'%'", "'day'", "'_'"])
likes = st.builds("{} {}like {}".format, column["text"], negation, patterns)
conditions = st.recursive(
    st.one_of(predicates("text", text), predicates("number", number), likes),
    lambda inner: st.one_of(
        st.builds("{} AND {}".format, inner, inner),
        st.builds("{} OR {}".format, inner, inner),
        st.builds("({})".format, inner),
        st.builds("NOT {}".format, inner),
    ),
    max_leaves=6,
)


@given(conditions)
@settings(deadline=None, max_examples=150)
def test_a_condition_keeps_the_rows_that_sql_keeps(condition: str) -> None:
    numbered = IMAGES.append_column("row", pa.array(range(len(IMAGES))))
    expected = duckdb.from_arrow(numbered).filter(condition).order("row").fetchall()
    kept = ds.dataset(numbered).to_table(filter=parse_where(condition).expression)
    assert kept.column("row").to_pylist() == [row[-1] for row in expected]


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("night = 1", "there is no column night, only segment, timestamp_us, camera, width, height, location"),
        ("jpeg = 'a'", "there is no column jpeg"),
        ('time_of_day = "Night"', "expected a column, an operator, a number or 'text', at '\"Night\"'"),
        ("time_of_day = 3", "time_of_day is text, unlike this, at '3'"),
        ("3 = time_of_day", "3 is a number, unlike this"),
        ("time_of_day =", "expected a column, a number or 'text', at its end"),
        ("", "expected a column, a number or 'text', at its end"),
        ("width IN (1, 2", "expected ), at its end"),
        ("width = 1 height = 2", "expected AND, OR or the end, at 'height = 2'"),
        ("width = 1; DROP TABLE image", "at '; DROP TABLE image'"),
        ("width LIKE '%'", "expected text on both sides of LIKE"),
        ("width = 99999999999999999999", "expected a number of 64 bits"),
        ("(" * 200 + "width = 1" + ")" * 200, "expected at most 50 conditions in each other"),
        ("__import__('os').system('true') = 1", "at \".system('true') = 1\""),
    ],
)
def test_what_is_no_condition_is_told_in_one_line(condition: str, message: str) -> None:
    with pytest.raises(LakeError) as raised:
        parse_where(condition)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def keys(lake: Lake, **more: object) -> list[tuple[str, int, str]]:
    """Return the keys of the images that a loader gives, in its order."""
    config = LoaderConfig(**{"global_batch": 1, "points": False, "cameras": ("FRONT", "FRONT_LEFT"), **more})  # type: ignore[arg-type]
    return [(one.key.segment, one.key.timestamp_us, one.key.camera) for one in SampleStream(lake, config)]


def split_times(lake: Lake) -> list[int]:
    return sorted(lake.images(["timestamp_us"]).column(0).to_pylist())


@pytest.fixture(scope="module")
def middle(drive_lake: Lake) -> int:
    """A time that half of the images lie behind."""
    times = split_times(drive_lake)
    return times[len(times) // 2]


def test_a_loader_gives_the_images_that_a_filtered_scan_gives(drive_lake: Lake, middle: int) -> None:
    condition = f"timestamp_us >= {middle} AND camera = 'FRONT'"
    expected = (ds.field("timestamp_us") >= middle) & (ds.field("camera") == "FRONT")
    names = ["segment", "timestamp_us", "camera"]
    rows = [tuple(row.values()) for row in drive_lake.scan("image", names, expected).to_table().to_pylist()]
    lake = drive_lake.where(condition, "train")
    assert keys(lake, shuffle=False) == rows
    assert [tuple(row.values()) for row in lake.images(names, "train").to_pylist()] == rows
    assert sorted(keys(lake)) == sorted(rows)
    assert 0 < len(rows) < len(keys(drive_lake))


def test_segment_and_camera_are_decided_without_a_file(own_lake: Lake) -> None:
    segment = own_lake.commits[1].segment
    expected = [key for key in keys(own_lake, shuffle=False) if key[0] == segment and key[2] == "FRONT_LEFT"]
    image, away = Path(own_lake.store.path("train/image")), Path(own_lake.store.path("train/away"))
    image.rename(away)
    lake = own_lake.where(f"segment = '{segment}' AND camera LIKE '%LEFT'", "train")
    away.rename(image)
    assert [commit.segment for commit in lake.commits] == [segment]
    assert keys(lake, shuffle=False) == expected


def test_the_order_is_resumed_and_cut_among_ranks_as_without_a_condition(drive_lake: Lake, middle: int) -> None:
    lake = drive_lake.where(f"timestamp_us >= {middle} OR camera = 'FRONT'", "train")
    config = LoaderConfig(global_batch=4, points=False, cameras=("FRONT", "FRONT_LEFT"), streams=8)
    whole = [sample.key for sample in SampleStream(lake, config)]
    assert [sample.key for sample in SampleStream(lake, config, start=8)] == whole[8:]
    halves = [[sample.key for sample in SampleStream(lake, config, rank=rank, world_size=2)] for rank in (0, 1)]
    together = [key for place in range(0, len(halves[0]), 2) for half in halves for key in half[place : place + 2]]
    assert together == whole


def test_conditions_add_up_and_leave_other_splits_alone(drive_lake: Lake, middle: int) -> None:
    both = drive_lake.where(f"timestamp_us >= {middle}", "train").where("camera = 'FRONT'", "train")
    assert keys(both) == keys(drive_lake.where(f"timestamp_us >= {middle} AND camera = 'FRONT'", "train"))
    assert drive_lake.where(None, "train") is drive_lake


def test_no_image_left_is_told_with_the_values_that_there_are(drive_lake: Lake) -> None:
    with pytest.raises(LakeError) as raised:
        drive_lake.where("camera = 'REAR'", "train")
    images = len(drive_lake.images(["camera"], "train").filter(pc.field("camera") == "FRONT"))
    told = f"for no image of split 'train' holds \"camera = 'REAR'\"; there are camera 'FRONT' ({images})"
    assert told in str(raised.value)
    with pytest.raises(LakeError, match="no split 'dev'"):
        drive_lake.where("camera = 'FRONT'", "dev")


def test_info_counts_the_labels_of_the_images_for_which_the_condition_holds(drive_lake: Lake) -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    print_info(drive_lake, console, "camera = 'FRONT'")
    printed = console.export_text()
    front = drive_lake.scan("label", ["camera"], ds.field("camera") == "FRONT").to_table()
    assert "images of 33 frames where camera = 'FRONT'" in printed
    assert re.findall(r"^ (FRONT\w*) +([\d,]+)", printed, re.MULTILINE) == [("FRONT", f"{len(front):,}")]
