"""The fuzz targets of `benchmarks.fuzz`: each finds a fault that is planted, and nothing without one."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.fuzz import search
from benchmarks.fuzz_targets import TARGETS
from datalake.commit import Commit, LakeError
from datalake.sources.waymo_v1.tfrecord import RecordFile


def _skips_a_byte(patch: pytest.MonkeyPatch) -> None:
    original = RecordFile._next_header
    patch.setattr(RecordFile, "_next_header", lambda self, offset: min(original(self, offset) + 1, self.size + 1))


def _takes_comments_for_names(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("datalake.source_list._named_in", lambda line: line)


def _trusts_names(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("datalake.commit.check_segment_name", lambda _: None)


def _trusts_counts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("datalake.commit.is_count", lambda _: True)


def _takes_any_json(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("teachers.card._check_fields", lambda *_: None)


_FAULTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "records": _skips_a_byte,
    "source_list": _takes_comments_for_names,
    "commit": _trusts_names,
    "lake": _trusts_counts,
    "card": _takes_any_json,
}


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_planted_fault_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _FAULTS[name](monkeypatch)
    target = TARGETS[name]
    _, finding = search(target.check, target.seeds(), seconds=120, seed=0, count=5000)
    assert finding is not None


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_nothing_is_found_without_a_fault(name: str) -> None:
    target = TARGETS[name]
    tried, finding = search(target.check, target.seeds(), seconds=60, seed=1, count=60)
    assert finding is None, finding
    assert tried > len(target.seeds())


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"a":' * 100_000], ids=["lists", "objects"])
@pytest.mark.parametrize("name", ["commit", "lake", "card"])
def test_json_that_is_nested_too_deeply_is_refused_in_one_line(name: str, data: bytes) -> None:
    TARGETS[name].check(data)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("frames", "2"),
        ("points", -1),
        ("quarantined", 1.5),
        ("points_mode", "exact"),
        ("created_at", None),
        ("chunks", ["9"]),
        ("chunks", [1]),
        ("cameras", [1]),
        ("files", {"image": {"rows": "2", "bytes": 1, "sha256": ""}}),
        ("sources", [{"uri": None, "bytes": 1, "version": "", "records": 1}]),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_commit_with_a_value_of_another_kind_is_refused(field: str, value: Any) -> None:

    values = json.loads(TARGETS["commit"].seeds()[0])
    if field == "files":
        value = {table: {**file, "rows": "2"} for table, file in values["files"].items()}
    with pytest.raises(LakeError, match=r"^here: not a commit of this lake: "):
        Commit.from_json({**values, field: value}, "here")


def test_a_commit_with_a_field_of_two_lines_is_refused_in_one() -> None:
    values = json.loads(TARGETS["commit"].seeds()[0])
    TARGETS["commit"].check(json.dumps({**values, "two\nlines": 1}).encode())
