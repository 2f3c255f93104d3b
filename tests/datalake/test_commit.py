"""The commit's JSON: it comes back as it was, and nothing else does."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from datalake.commit import Commit, DataFile, LakeError, SourceFile, check_split_name, load_json
from datalake.schema import SCHEMA_VERSION, TABLES

COMMIT = Commit(
    split="train",
    segment="segment_a",
    attempt="0123456789abcdef",
    created_at="2026-01-01T00:00:00+00:00",
    points_mode="quantised",
    cameras=("FRONT", "SIDE_LEFT"),
    sources=(SourceFile("file:///a.tfrecord", 10, "1.5", 3),),
    frames=3,
    points=200,
    quarantined=1,
    chunks=("1414", "14"),
    files={table: DataFile(1, 2, "ab") for table in TABLES},
)


def _json() -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps(COMMIT.to_json()))
    return values


def test_commit_comes_back_from_its_json() -> None:
    assert Commit.from_json(_json(), "here") == COMMIT


# As 09e13cd wrote it.
OLD: dict[str, Any] = {
    "split": "train",
    "segment": "segment_a",
    "attempt": "0123456789abcdef",
    "created_at": "2026-01-01T00:00:00+00:00",
    "points_mode": "quantised",
    "cameras": ["FRONT", "SIDE_LEFT"],
    "sources": [{"uri": "file:///a.tfrecord", "bytes": 10, "version": "1.5", "records": 3}],
    "frames": 3,
    "points": 200,
    "quarantined": 1,
    "chunks": ["1414", "14"],
    "files": {table: {"rows": 1, "bytes": 2, "sha256": "ab"} for table in TABLES},
    "schema_version": 1,
}


def test_commit_of_before_there_were_later_ones_is_read() -> None:
    assert Commit.from_json(OLD, "here") == COMMIT


def test_commit_that_supersedes_nothing_is_one_that_the_code_before_reads() -> None:
    assert _json() == OLD


def test_superseding_commit_comes_back_from_its_json() -> None:
    source = SourceFile("file:///a.tfrecord", 10, "1.5", 3, "00c0ffee", 7)
    commit = replace(COMMIT, sources=(source,), number=2, supersedes=("_commits/train/segment_a.json",))
    assert Commit.from_json(json.loads(json.dumps(commit.to_json())), "here") == commit
    assert (commit.name, commit.is_complete) == ("_commits/train/segment_a.2.json", False)


def test_file_name_has_split_table_segment_and_attempt() -> None:
    assert COMMIT.file_name("image") == "train/image/segment_a-0123456789abcdef.parquet"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("split", "../elsewhere"),
        ("split", ""),
        ("split", "_commits"),
        ("split", "a/b"),
        ("split", 5),
        ("split", None),
        ("segment", "../../etc/passwd"),
        ("segment", ""),
        ("segment", ".hidden"),
        ("segment", None),
        ("attempt", "../../../0123456"),
        ("attempt", "0123456789ABCDEF"),
        ("attempt", ""),
        ("attempt", 5),
        ("attempt", None),
        ("files", {}),
        ("files", {"image": {"rows": 1, "bytes": 1, "sha256": "a"}}),
        ("files", None),
        ("files", {table: {"rows": 1} for table in TABLES}),
        ("sources", None),
        ("sources", [{"uri": "a"}]),
        ("chunks", None),
        ("number", -1),
        ("number", "1"),
        ("supersedes", ["_commits/train/segment_b.json"]),
        ("supersedes", ["_commits/train/../x.json"]),
        ("supersedes", 1),
    ],
    ids=str,
)
def test_commit_that_could_point_elsewhere_is_refused(field: str, value: Any) -> None:
    with pytest.raises(LakeError, match="here: "):
        Commit.from_json({**_json(), field: value}, "here")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", 5),
        ("format", None),
        ("cameras", "FRONT"),
        ("chunks", "14"),
        ("supersedes", ""),
        ("camera_names", "12345"),
        ("camera_names", {"1": 1, "4": 4}),
        ("camera_names", [1, 2, 3, 4, 5]),
        ("camera_names", ["A", "B", "C", "D", "D"]),
        ("camera_names", [f"camera {number}" for number in range(36)]),
    ],
    ids=str,
)
def test_commit_whose_format_or_lists_are_of_another_kind_is_refused(field: str, value: Any) -> None:
    with pytest.raises(LakeError, match=f"here: not a commit of this lake: .*{field}.*: expected"):
        Commit.from_json({**_json(), field: value}, "here")


def test_commit_of_another_source_comes_back_from_its_json() -> None:
    commit = replace(COMMIT, format="other", camera_names=("LEFT", "MIDDLE", "RIGHT", "BACK"))
    assert Commit.from_json(json.loads(json.dumps(commit.to_json())), "here") == commit


def test_what_a_later_version_has_added_is_left_out() -> None:
    later = {**OLD, "later": 1, "sources": [{**OLD["sources"][0], "later": 1}]}
    later["files"] = {**OLD["files"], "later": {"rows": 1, "bytes": 2, "sha256": "ab", "later": 1}}
    assert Commit.from_json(later, "here") == COMMIT


@pytest.mark.parametrize("field", [name for name in COMMIT.to_json() if name != "schema_version"])
def test_commit_with_a_missing_field_is_refused(field: str) -> None:
    values = _json()
    del values[field]
    with pytest.raises(LakeError, match="here: "):
        Commit.from_json(values, "here")


@pytest.mark.parametrize("version", [None, 0, SCHEMA_VERSION + 1, "1"], ids=repr)
def test_commit_of_another_schema_version_is_refused_with_a_remedy(version: Any) -> None:
    with pytest.raises(LakeError, match="build a new lake"):
        Commit.from_json({**_json(), "schema_version": version}, "here")


@pytest.mark.parametrize("split", ["train", "0", "a" * 64, "val_2"])
def test_honest_split_name_is_accepted(split: str) -> None:
    check_split_name(split)


@pytest.mark.parametrize("split", ["", "_failed", "Train", "a-b", "a/b", "..", "a" * 65, "train\n"], ids=repr)
def test_split_name_that_is_no_folder_is_refused(split: str) -> None:
    with pytest.raises(LakeError):
        check_split_name(split)


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"null", b"\xff\xfe"], ids=repr)
def test_bytes_that_are_no_object_are_refused(data: bytes) -> None:
    with pytest.raises(LakeError, match="here: "):
        load_json(data, "here")
