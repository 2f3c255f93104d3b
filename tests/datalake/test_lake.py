"""Snapshots: published without a gap, found without a list, read as they were."""

from __future__ import annotations

import json
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.dataset as ds
import pytest

from datalake.build import BuildConfig, build_segment
from datalake.commit import LakeError
from datalake.lake import (
    newest_snapshot,
    open_lake,
    prepare_lake,
    publish_snapshot,
    read_points_mode,
    write_commit,
)
from datalake.schema import SCHEMA_VERSION, TABLES
from datalake.store import Store
from tests.datalake.test_commit import COMMIT
from tests.frames import make_frames, write_frames
from tests.lakes import Built, build_files, plan_files


class CountingStore(Store):
    """A store that counts questions for one object, and refuses to list."""

    asked = 0

    def exists(self, name: str) -> bool:
        self.asked += 1
        return super().exists(name)

    def listing(self, folder: str) -> dict[str, float]:
        raise AssertionError(f"{folder} was listed")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A lake of two segments of 3 and 2 frames."""
    folder = tmp_path_factory.mktemp("two-segments")
    sources = [
        write_frames(folder / f"{segment}.tfrecord", make_frames(count, segment))
        for segment, count in (("segment_a", 3), ("segment_b", 2))
    ]
    return build_files(str(folder / "lake"), sources)


def _empty_lake(folder: Path) -> Store:
    store = Store(str(folder / "lake"))
    prepare_lake(store, "quantised")
    return store


def test_newest_snapshot_is_found_in_a_few_questions(tmp_path: Path) -> None:
    store = CountingStore(str(tmp_path))
    for newest in range(41):
        store.asked = 0
        assert newest_snapshot(store) == newest
        assert store.asked <= 2 * math.log2(newest + 1) + 2
        store.write(f"_snapshots/{newest + 1}.json", b"{}")


def test_reader_never_lists(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    fs_class = type(built.lake.store.fs)
    for name in ("ls", "find", "glob", "walk"):
        monkeypatch.setattr(fs_class, name, lambda *_, **__: pytest.fail("a reader listed the lake"))
    lake = open_lake(built.lake.store.url)
    assert lake.scan("point").count_rows() == 5


def test_publishing_with_nothing_new_returns_the_last_snapshot(built: Built) -> None:
    assert publish_snapshot(built.lake.store) == built.lake.snapshot == 1


def test_commits_that_are_no_longer_listed_are_not_left_out_of_a_snapshot(tmp_path: Path) -> None:
    lake = build_files(str(tmp_path / "lake"), [write_frames(tmp_path / "a.tfrecord", make_frames(2))]).lake
    lake.store.delete("_commits/train/segment_a.json")
    with pytest.raises(LakeError, match=r"1 commits of snapshot 1 are not listed, e.g. _commits/train/segment_a.json"):
        publish_snapshot(lake.store)
    assert newest_snapshot(lake.store) == 1


def test_lake_without_commits_has_no_snapshot(tmp_path: Path) -> None:
    assert publish_snapshot(_empty_lake(tmp_path)) == 0


def test_snapshot_stays_as_it_was_when_segments_are_added(tmp_path: Path) -> None:
    first = build_files(str(tmp_path / "lake"), [write_frames(tmp_path / "a", make_frames(2, "segment_a"))])
    build_files(str(tmp_path / "lake"), [write_frames(tmp_path / "b", make_frames(2, "segment_b"))])
    old = open_lake(first.lake.store.url, snapshot=1)
    assert [commit.segment for commit in old.commits] == ["segment_a"]
    assert old.scan("point").count_rows() == 2
    assert [commit.segment for commit in open_lake(first.lake.store.url).commits] == ["segment_a", "segment_b"]


def test_builders_that_publish_together_leave_no_gap_and_no_commit_out(tmp_path: Path) -> None:
    store = _empty_lake(tmp_path)
    barrier = threading.Barrier(6)

    def publish(number: int) -> int:
        write_commit(store, replace(COMMIT, segment=f"segment_{number}"))
        barrier.wait()
        return publish_snapshot(store)

    with ThreadPoolExecutor(6) as pool:
        numbers = list(pool.map(publish, range(6)))
    names = {path.name for path in (tmp_path / "lake/_snapshots").iterdir()}
    assert names == {f"{number}.json" for number in range(1, max(numbers) + 1)}
    assert len(open_lake(store.url).commits) == 6


def test_commit_is_written_once(tmp_path: Path) -> None:
    store = _empty_lake(tmp_path)
    assert write_commit(store, COMMIT)
    assert not write_commit(store, replace(COMMIT, attempt="f" * 16))


def test_place_without_a_lake_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LakeError, match="no lake here"):
        open_lake(str(tmp_path))


def test_lake_without_a_snapshot_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LakeError, match="no snapshot yet"):
        open_lake(_empty_lake(tmp_path).url)


def test_snapshot_that_is_not_there_is_refused_naming_the_newest(built: Built) -> None:
    with pytest.raises(LakeError, match="the newest is 1"):
        open_lake(built.lake.store.url, snapshot=7)


def test_lake_of_another_schema_version_is_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write("_lake.json", json.dumps({"schema_version": SCHEMA_VERSION + 1, "points_mode": "quantised"}).encode())
    with pytest.raises(LakeError, match=f"schema version {SCHEMA_VERSION + 1} found"):
        open_lake(str(tmp_path))
    with pytest.raises(LakeError, match=f"schema version {SCHEMA_VERSION + 1} found"):
        prepare_lake(store, "quantised")


def test_snapshot_of_another_schema_version_is_refused(tmp_path: Path) -> None:
    store = _empty_lake(tmp_path)
    store.write("_snapshots/1.json", json.dumps({"schema_version": 99, "commits": []}).encode())
    with pytest.raises(LakeError, match="schema version 99 found"):
        open_lake(store.url)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("_lake.json", {"schema_version": SCHEMA_VERSION}),
        ("_lake.json", {"schema_version": SCHEMA_VERSION, "points_mode": "voxels"}),
        ("_snapshots/1.json", {"schema_version": SCHEMA_VERSION}),
        ("_snapshots/1.json", {"schema_version": SCHEMA_VERSION, "commits": None}),
        ("_snapshots/1.json", {"schema_version": SCHEMA_VERSION, "commits": ["a"]}),
    ],
    ids=str,
)
def test_damaged_metadata_is_refused_naming_the_object(tmp_path: Path, name: str, values: dict[str, Any]) -> None:
    store = _empty_lake(tmp_path)
    store.write("_snapshots/1.json", json.dumps({"schema_version": SCHEMA_VERSION, "commits": []}).encode())
    store.write(name, json.dumps(values).encode())
    with pytest.raises(LakeError, match=name):
        open_lake(store.url)


def test_snapshot_that_points_outside_is_refused(tmp_path: Path) -> None:
    store = _empty_lake(tmp_path)
    commit = {**COMMIT.to_json(), "segment": "../../../etc/passwd"}
    values = {"schema_version": SCHEMA_VERSION, "number": 1, "commits": [commit]}
    store.write("_snapshots/1.json", json.dumps(values).encode())
    with pytest.raises(LakeError, match="segment name"):
        open_lake(store.url)


def test_commit_under_the_name_of_another_segment_is_refused(tmp_path: Path) -> None:
    # It would double one segment in every snapshot, and make each publication find something new.
    store = _empty_lake(tmp_path)
    store.write("_commits/train/segment_b.json", json.dumps(COMMIT.to_json()).encode())
    with pytest.raises(LakeError, match="segment_b"):
        publish_snapshot(store)


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A place where nothing is yet, on each kind of store."""
    return Store(str(tmp_path / "place") if request.param == "disk" else request.getfixturevalue("s3_lake"))


def test_a_place_that_holds_anything_else_is_no_target(place: Store) -> None:
    place.write("train/image/000001.jpg", b"somebody's")
    with pytest.raises(LakeError, match="holds train but no lake"):
        prepare_lake(place, "quantised")
    assert list(place.listing("")) == ["train/image/000001.jpg"]


def test_a_place_beside_others_is_a_target(place: Store) -> None:
    place.write("train/a", b"somebody's")
    beside = Store(f"{place.url}/lake")
    prepare_lake(beside, "quantised")
    assert read_points_mode(beside) == "quantised"


def test_an_empty_folder_is_a_target(tmp_path: Path) -> None:
    prepare_lake(Store(str(tmp_path)), "quantised")
    assert [path.name for path in tmp_path.iterdir()] == ["_lake.json"]


def test_what_a_builder_left_that_was_killed_at_its_first_object_is_in_nobody_s_way(tmp_path: Path) -> None:
    (tmp_path / f"._lake.json.{'0123456789abcdef' * 2}.tmp").write_bytes(b"{")
    prepare_lake(Store(str(tmp_path)), "quantised")


def test_a_lake_that_another_builder_begins_meanwhile_is_joined(tmp_path: Path) -> None:
    class Overtaken(Store):
        def entries(self) -> list[str]:
            values = {"schema_version": SCHEMA_VERSION, "points_mode": "quantised"}
            self.write("_lake.json", json.dumps(values).encode())
            self.write("_attempts/train/a.json", b"{}")
            return super().entries()

    prepare_lake(Overtaken(str(tmp_path)), "quantised")


def test_lake_keeps_the_way_it_stores_points(tmp_path: Path) -> None:
    store = _empty_lake(tmp_path)
    prepare_lake(store, "quantised")
    with pytest.raises(LakeError, match="quantised, not lossless"):
        prepare_lake(store, "lossless")
    assert read_points_mode(store) == "quantised"


def test_tables_of_a_lake_are_those_of_the_schema(built: Built) -> None:
    for table, schema in TABLES.items():
        assert built.lake.scan(table).to_table().schema.equals(schema)


def test_scan_selects_columns_and_rows(built: Built) -> None:
    found = built.lake.scan("image", ["camera", "width"], ds.field("camera") == "SIDE_LEFT").to_table()
    assert found.column_names == ["camera", "width"]
    assert set(found["camera"].to_pylist()) == {"SIDE_LEFT"}
    assert found.num_rows == 5


def test_filter_on_segment_touches_no_other_file(tmp_path: Path) -> None:
    sources = [write_frames(tmp_path / name, make_frames(2, name)) for name in ("segment_a", "segment_b")]
    lake = build_files(str(tmp_path / "lake"), sources).lake
    lake.store.delete(lake.commits[1].file_name("image"))
    assert lake.scan("image", filter=ds.field("segment") == "segment_a").count_rows() == 4


def test_scan_of_one_split_has_its_segments_alone(tmp_path: Path) -> None:
    url = str(tmp_path / "lake")
    build_files(url, [write_frames(tmp_path / "a", make_frames(2, "segment_a"))])
    lake = build_files(url, [write_frames(tmp_path / "b", make_frames(1, "segment_b"))], BuildConfig(split="val")).lake
    assert lake.splits == ("train", "val")
    assert lake.scan("point", split="val").to_table()["segment"].to_pylist() == ["segment_b"]


def test_unknown_split_and_table_are_refused_naming_those_there_are(built: Built) -> None:
    with pytest.raises(LakeError, match="there are: train"):
        built.lake.scan("point", split="val")
    with pytest.raises(LakeError, match="there are: image"):
        built.lake.scan("points")


def test_duckdb_reads_a_table(built: Built) -> None:
    with duckdb.connect() as connection:
        connection.register("label", built.lake.dataset("label"))
        found = connection.sql("select type, count(*) from label group by type order by type").fetchall()
    assert found == [("PEDESTRIAN", 5), ("VEHICLE", 5)]


def test_whole_lake_on_s3(s3_lake: str, tmp_path: Path) -> None:
    source = write_frames(tmp_path / "source.tfrecord", make_frames(3))
    on_disk = build_files(str(tmp_path / "lake"), [source])
    on_s3 = build_files(s3_lake, [source])
    for table in TABLES:
        assert on_s3.rows(table) == on_disk.rows(table)


def test_source_on_s3_is_versioned_by_its_etag(s3_lake: str, tmp_path: Path) -> None:
    write_frames(tmp_path / "source.tfrecord", make_frames(1))
    store = Store(s3_lake)
    prepare_lake(store, "quantised")
    store.write("sources/a.tfrecord", (tmp_path / "source.tfrecord").read_bytes())
    (plan,) = plan_files([f"{s3_lake}/sources/a.tfrecord"])
    assert build_segment(plan, s3_lake, BuildConfig()).outcome == "committed"
    assert plan.sources[0].version == store.fs.info(store.path("sources/a.tfrecord"))["ETag"]
