"""A table added to a lake after its build: whole or not at all, in step with the images, of one origin."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from datalake.commit import Commit, LakeError
from datalake.derived_table import (
    DerivedCommit,
    Origin,
    list_derived_tables,
    missing_segments,
    open_derived_table,
    read_derived_commits,
    write_derived_segment,
)
from datalake.lake import Lake, open_lake
from datalake.schema import IMAGE, SCHEMA_VERSION
from datalake.segment_files import SegmentFiles
from datalake.store import Store, UnknownOutcomeError
from datalake.vacuum import GRACE_S, unreferenced, vacuum
from datalake.verify import verify
from tests.drives import build_drives

SCHEMA = pa.schema(
    [
        *(IMAGE.field(name) for name in ("segment", "timestamp_us", "camera")),
        pa.field("number", pa.list_(pa.field("element", pa.float32(), nullable=False)), nullable=False),
    ]
)
TABLE = "teacher_test"
ORIGIN = Origin(TABLE, "a" * 64, {"grid": [2, 3]})


@pytest.fixture
def lake(drive_lake: Lake, tmp_path: Path) -> Lake:
    """The drives' lake, for one test to add to."""
    shutil.copytree(drive_lake.store.root, tmp_path / "lake")
    return open_lake(str(tmp_path / "lake"))


def groups(lake: Lake, base: Commit) -> Iterator[pa.RecordBatch]:
    """Yield a number for each image of the segment, chunk by chunk."""
    files = SegmentFiles(lake, base)
    for group in range(len(base.chunks)):
        keys = files.read(group, {"image": ["segment", "timestamp_us", "camera"]})["image"]
        rows = len(keys["camera"])
        columns = {**keys, "number": [[group, row / 8] for row in range(rows)]}
        yield pa.RecordBatch.from_pydict(columns, SCHEMA)
    files.close()


def write(lake: Lake, base: Commit, origin: Origin = ORIGIN) -> DerivedCommit | None:
    return write_derived_segment(lake.store, base, origin, SCHEMA, groups(lake, base))


def write_all(lake: Lake, origin: Origin = ORIGIN) -> list[DerivedCommit]:
    parts = [write(lake, base, origin) for base in lake.commits]
    return [part for part in parts if part is not None]


def files_of(lake: Lake) -> set[str]:
    return set(lake.store.listing(f"train/{TABLE}"))


def problems(lake: Lake) -> list[str]:
    return [problem for _, found in verify(lake) for problem in found]


def test_row_groups_are_in_step_with_the_images(lake: Lake) -> None:
    write_all(lake)
    table = open_derived_table(lake, TABLE, "train", ORIGIN.version)
    for base in lake.commits:
        image = pq.ParquetFile(lake.store.path(base.file_name("image")))
        assert table.group_rows(base.segment) == [len(chunk) for chunk in base.chunks]
        for group in range(image.num_row_groups):
            keys = ["segment", "timestamp_us", "camera"]
            assert table.read(base.segment, group, keys).equals(image.read_row_group(group, keys))


def test_the_dataset_has_every_image_and_prunes_by_segment(lake: Lake) -> None:
    write_all(lake)
    dataset = open_derived_table(lake, TABLE, "train", ORIGIN.version).dataset()
    keys = ["segment", "timestamp_us", "camera"]
    assert dataset.to_table(keys).equals(lake.dataset("image", "train").to_table(keys))
    wanted = ds.field("segment") == lake.commits[1].segment
    assert len(list(dataset.get_fragments(wanted))) == 1
    assert dataset.to_table(filter=wanted)["number"][9].as_py() == [1.0, 1 / 8]


def test_a_part_is_read_back_as_it_was_committed(lake: Lake) -> None:
    part = write(lake, lake.commits[0])
    assert part is not None
    assert read_derived_commits(lake.store, TABLE, lake.commits) == [part, None, None]
    assert lake.store.size(part.file_name) == part.file.bytes
    assert part.base_attempt == lake.commits[0].attempt


def test_missing_segments_are_counted_and_named_with_the_remedy(lake: Lake) -> None:
    write(lake, lake.commits[0])
    with pytest.raises(LakeError) as error:
        open_derived_table(lake, TABLE, "train", ORIGIN.version)
    message = str(error.value)
    assert f"table teacher_test lacks 2 of 3 segments of split 'train' (first: {lake.commits[1].segment})" in message
    assert f"python pipelines/cache_targets.py --lake {lake.store.url} --split train --name test" in message
    assert [base.segment for base in missing_segments(lake, "train", ORIGIN)] == [
        base.segment for base in lake.commits[1:]
    ]


def test_another_version_is_refused_by_readers_and_writers(lake: Lake) -> None:
    write_all(lake)
    other = replace(ORIGIN, version="b" * 64)
    message = "made with weights aaaaaaaaaaaa…, not bbbbbbbbbbbb…; .* another --name"
    with pytest.raises(LakeError, match=message):
        open_derived_table(lake, TABLE, "train", other.version)
    with pytest.raises(LakeError, match=message):
        missing_segments(lake, "train", other)
    with pytest.raises(LakeError, match=message):
        write(lake, lake.commits[0], other)
    assert files_of(lake) == {part.file_name for part in read_derived_commits(lake.store, TABLE, lake.commits) if part}


def test_parts_of_other_settings_do_not_mix(lake: Lake) -> None:
    other = replace(ORIGIN, settings={"grid": [4, 6]})
    write(lake, lake.commits[0])
    write(lake, lake.commits[1])
    write(lake, lake.commits[2], other)
    with pytest.raises(LakeError, match=r"other settings: grid \[4, 6\], not \[2, 3\]; .* another --name"):
        open_derived_table(lake, TABLE, "train", ORIGIN.version)


def test_parts_of_another_build_of_the_segment_are_refused(lake: Lake) -> None:
    write_all(lake)
    first, *others = lake.commits
    rebuilt = replace(lake, commits=(replace(first, attempt="0123456789abcdef"), *others))
    with pytest.raises(LakeError, match="made from another build of the segment"):
        open_derived_table(rebuilt, TABLE, "train", ORIGIN.version)
    assert any("made from another build" in problem for problem in problems(rebuilt))


def test_of_two_attempts_one_wins_and_the_loser_leaves_nothing(lake: Lake) -> None:
    base, winners = lake.commits[0], []

    def overtaken() -> Iterator[pa.RecordBatch]:
        yield from groups(lake, base)
        winners.append(write(lake, base))

    assert write_derived_segment(lake.store, base, ORIGIN, SCHEMA, overtaken()) is None
    assert files_of(lake) == {winner.file_name for winner in winners if winner is not None}
    assert len(files_of(lake)) == 1


def test_an_attempt_that_fails_leaves_nothing(lake: Lake) -> None:
    def failing() -> Iterator[pa.RecordBatch]:
        yield next(groups(lake, lake.commits[0]))
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        write_derived_segment(lake.store, lake.commits[0], ORIGIN, SCHEMA, failing())
    assert files_of(lake) == set()
    assert read_derived_commits(lake.store, TABLE, lake.commits[:1]) == [None]


def test_rows_out_of_step_are_not_committed(lake: Lake) -> None:
    base = lake.commits[0]
    short = list(groups(lake, base))[:-1]
    with pytest.raises(LakeError, match="2 row groups of 16 rows, expected 3 of 22, as in the table image"):
        write_derived_segment(lake.store, base, ORIGIN, SCHEMA, short)
    assert files_of(lake) == set()


def test_a_file_whose_commit_may_exist_is_kept(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    create = Store.create

    def unanswered(store: Store, name: str, data: bytes) -> bool:
        if name.startswith("_derived/"):
            raise UnknownOutcomeError(name)
        return create(store, name, data)

    monkeypatch.setattr(Store, "create", unanswered)
    with pytest.raises(UnknownOutcomeError):
        write(lake, lake.commits[0])
    assert len(files_of(lake)) == 1


def test_a_table_name_cannot_point_out_of_the_lake(lake: Lake) -> None:
    with pytest.raises(LakeError, match="expected 'teacher_' and 1 to 56 of"):
        open_derived_table(lake, "teacher_../..", "train", ORIGIN.version)
    with pytest.raises(LakeError, match="expected 'teacher_'"):
        Origin("image", "a", {})


def test_a_commit_that_is_none_is_named(lake: Lake) -> None:
    write(lake, lake.commits[0])
    name = f"_derived/{TABLE}/train/{lake.commits[0].segment}.json"
    lake.store.write(name, b'{"schema_version":1}')
    with pytest.raises(LakeError, match=f"{name}: not a commit of a derived table"):
        read_derived_commits(lake.store, TABLE, lake.commits)


def test_a_superseding_build_of_a_segment_has_a_part_of_its_own(lake: Lake) -> None:
    old = lake.commits[0]
    new = replace(old, number=1, attempt="f" * 16, supersedes=(old.name,))
    for base in (old, new):
        assert write_derived_segment(lake.store, base, ORIGIN, SCHEMA, groups(lake, old)) is not None
    found = read_derived_commits(lake.store, TABLE, [old, new])
    assert [part and part.base_attempt for part in found] == [old.attempt, new.attempt]


def leave_attempt(lake: Lake, segment: str, age_s: float, table: str = TABLE) -> list[str]:
    """Leave the file and the record of an attempt that was killed; return their names."""
    names = [f"train/{table}/{segment}-0123456789abcdef.parquet", f"_attempts/train/{segment}-0123456789abcdef.json"]
    values = {
        "split": "train",
        "segment": segment,
        "attempt": "0123456789abcdef",
        "tables": [table],
        "commit": f"_derived/{table}/train/{segment}.json",
        "schema_version": SCHEMA_VERSION,
    }
    for name, content in zip(names, (b"left behind", json.dumps(values).encode()), strict=True):
        lake.store.write(name, content)
        os.utime(lake.store.path(name), (time.time() - age_s,) * 2)
    return names


def test_vacuum_keeps_committed_parts_and_what_may_still_be_written(lake: Lake) -> None:
    write_all(lake)
    write(lake, lake.commits[0], replace(ORIGIN, table="teacher_other"))
    leave_attempt(lake, lake.commits[1].segment, GRACE_S / 2, table="teacher_other")
    assert list_derived_tables(lake.store) == ["teacher_other", "teacher_test"]
    assert unreferenced(lake.store, "train") == []


def test_vacuum_removes_what_dead_attempts_left(lake: Lake) -> None:
    write(lake, lake.commits[0])
    # A loser needs no grace: its segment is committed.
    lost, _ = leave_attempt(lake, lake.commits[0].segment, 0)
    dead = leave_attempt(lake, lake.commits[1].segment, 2 * GRACE_S)
    unfinished = f"_derived/{TABLE}/train/.x.json.{'0123456789abcdef' * 2}.tmp"
    lake.store.write(unfinished, b"left behind")
    os.utime(lake.store.path(unfinished), (time.time() - 2 * GRACE_S,) * 2)
    assert sorted(vacuum(lake.store, "train")) == sorted([lost, *dead, unfinished])
    assert len(files_of(lake)) == 1


def test_a_part_that_is_committed_or_given_up_leaves_no_record(lake: Lake) -> None:
    def failing() -> Iterator[pa.RecordBatch]:
        yield next(groups(lake, lake.commits[1]))
        raise RuntimeError("the teacher failed")

    write(lake, lake.commits[0])
    write(lake, lake.commits[0])
    with pytest.raises(RuntimeError):
        write_derived_segment(lake.store, lake.commits[1], ORIGIN, SCHEMA, failing())
    assert lake.store.listing("_attempts") == {}


def test_verify_finds_a_flipped_bit(lake: Lake) -> None:
    part = write_all(lake)[1]
    assert problems(lake) == []
    path = Path(lake.store.path(part.file_name))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    (problem,) = problems(lake)
    assert path.name in problem
    assert "SHA-256" in problem


def test_verify_finds_a_missing_part(lake: Lake) -> None:
    part = write_all(lake)[0]
    lake.store.delete(part.file_name)
    (problem,) = problems(lake)
    assert problem.endswith(f"{part.file_name}: missing")


def test_a_derived_table_lives_on_an_object_store(drive_sources: list[str], s3_lake: str) -> None:
    lake = build_drives(drive_sources[:1], s3_lake)
    write_all(lake)
    assert write(lake, lake.commits[0]) is None
    table = open_derived_table(lake, TABLE, "train", ORIGIN.version)
    (base,) = lake.commits
    expected = pa.Table.from_batches(list(groups(lake, base)), SCHEMA)
    assert table.read(base.segment).equals(expected)
    assert table.read(base.segment, 1).equals(expected.slice(8, 8))
    assert table.dataset().to_table().equals(expected)
    assert problems(lake) == []
    assert unreferenced(lake.store, "train", grace_s=0) == []
    table.close()


def test_a_table_of_version_0_1_is_read_listed_and_kept(lake: Lake) -> None:
    write_all(lake)
    folder = Path(lake.store.root)
    (folder / "_derived").rename(folder / "_side")
    table = open_derived_table(lake, TABLE, "train", ORIGIN.version)
    assert table.dataset().count_rows() > 0
    assert list_derived_tables(lake.store) == [TABLE]
    before = set(folder.rglob("*.parquet"))
    vacuum(lake.store, "train", grace_s=0)
    assert set(folder.rglob("*.parquet")) == before
