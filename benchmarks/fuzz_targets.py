"""What is fuzzed: the untrusted input of builds and trainings, and what must hold whatever the bytes are.

A target takes bytes. Whatever it raises is a finding: a refusal in one line, by an error that callers expect, is none.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from datalake import source_list
from datalake.attempt import Attempt
from datalake.commit import CAMERA_MARKS, Commit, DataFile, LakeError, SourceFile, load_json
from datalake.errors import UserError
from datalake.lake import open_lake
from datalake.schema import SCHEMA_VERSION, TABLES
from datalake.sources.formats import index_source
from datalake.sources.waymo_v1.tfrecord import Gap, RecordError, RecordFile, frame_record
from datalake.store import Store
from datalake.vacuum import unreferenced
from teachers.card import ChannelStatistics, TeacherCard, TrainingData, read_card, write_card
from tests.frames import SEGMENT, make_frame


@dataclass(frozen=True)
class Target:
    """A function that is to bear any bytes, and the valid inputs that are changed."""

    check: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]


@cache
def _folder() -> Path:
    # Kept until the process ends.
    _folder.holder = tempfile.TemporaryDirectory(prefix="fuzz-")  # type: ignore[attr-defined]
    return Path(_folder.holder.name)  # type: ignore[attr-defined]


# --- Records ---


def check_records(data: bytes) -> None:
    """Every byte of a file is in one slot or gap, what is read is what was framed, and an index is made or refused."""
    path = _folder() / "source.tfrecord"
    path.write_bytes(data)
    position = 0
    try:
        with RecordFile(str(path)) as file:
            for found in file.slots():
                assert found.offset == position, f"bytes {position} to {found.offset} are in no slot and no gap"
                position = found.offset + found.length if isinstance(found, Gap) else found.end
                if isinstance(found, Gap):
                    continue
                try:
                    payload = file.read(found)
                except RecordError:
                    continue
                assert file.read_range(found.offset, found.end - found.offset) == frame_record(payload)
            assert position == file.size, f"the last {file.size - position} bytes are in no slot and no gap"
        index_source(str(path))
    except UserError as error:
        _check_line(error)


def _record_seeds() -> list[bytes]:
    frames = [frame_record(make_frame(index, lidar=False).SerializeToString()) for index in range(3)]
    small = [frame_record(payload) for payload in (b"", b"a", bytes(300))]
    return [b"", b"".join(small), b"".join(frames), gzip.compress(b"".join(small)), b"".join(frames[:2])[:-50]]


# --- Source lists ---


def check_source_list(data: bytes) -> None:
    """A list is text of names, each found as a file or refused in one line."""
    folder = _folder() / "lists"
    if not folder.exists():
        folder.mkdir()
        for name in ("a.tfrecord", "b [1].tfrecord", "c#1.tfrecord"):
            (folder / name).touch()
    path = folder / "list.txt"
    path.write_bytes(data)
    try:
        names = source_list._read_list(str(path))
    except UserError as error:
        _check_line(error)
        return
    assert names
    text = _text(data)
    for name in names:
        assert name.strip(), f"a name of nothing in {data!r}"
        assert not {"\n", "\r", "\0"} & set(name), f"{name!r} is no line"
        # What is quoted in full is named as it is.
        quoted = f'"{name}"' in text or f"'{name}'" in text
        assert quoted or not name.startswith("#"), f"{name!r} is a comment"
        assert quoted or name[0] not in "\"'" or name in text
        if any(mark in name for mark in ("://", "::", "..", "**")) or name.startswith(("/", "~")):
            continue  # not of this folder: the network, or the whole disk
        refused: dict[str, str] = {}
        try:
            found = source_list.list_sources([f"{folder}/{name}"], refused)
        except (UserError, OSError) as error:
            _check_line(error)
            continue
        assert found
        assert all(url.startswith(f"file://{folder}") for url in found), found


def _text(data: bytes) -> str:
    for encoding in ("utf-8-sig", "utf-16"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    return ""


def _list_seeds() -> list[bytes]:
    text = "# drives\n\"b [1].tfrecord\"\n\n*.tfrecord  # all\na.tfrecord\r\n'c#1.tfrecord'\nb [1].tfrecord\n"
    return [text.encode(), text.encode("utf-8-sig"), text.encode("utf-16"), b"a.tfrecord", b""]


# --- JSON of lakes and teachers ---


def check_commit(data: bytes) -> None:
    """A commit is refused in one line, or says the same when written again, and names nothing outside its lake."""
    try:
        commit = Commit.from_json(load_json(data, "here"), "here")
    except LakeError as error:
        _check_line(error)
        return
    again = json.loads(json.dumps(commit.to_json()))
    assert Commit.from_json(again, "here") == commit
    assert commit.frames + commit.points + commit.quarantined >= 0
    assert all(file.bytes + file.rows + len(file.sha256) >= 0 for file in commit.files.values())
    assert all(source.uri + source.version + source.checksum or source.bytes >= 0 for source in commit.sources)
    assert all(set(chunk) <= set(CAMERA_MARKS) for chunk in commit.chunks)
    assert all(isinstance(text, str) for text in (commit.format, *commit.camera_names))
    assert len(set(commit.camera_names)) == len(commit.camera_names)
    for name in (commit.name, *commit.supersedes, *(commit.file_name(table) for table in commit.files)):
        parts = name.split("/")
        assert not {"", ".", ".."} & set(parts), f"{name!r} points elsewhere"
        assert "\0" not in name
        assert 3 <= len(parts) <= 4, f"{name!r} points elsewhere"


def _commit_seeds() -> list[bytes]:
    source = SourceFile("file:///a.tfrecord", 1000, "1.5", 2, "0123abcd", 900)
    file = DataFile(2, 100, "ab" * 32)
    commit = Commit(
        split="train",
        segment=SEGMENT,
        attempt="0123456789abcdef",
        created_at="2026-01-01T00:00:00+00:00",
        points_mode="quantised",
        cameras=("FRONT", "SIDE_LEFT"),
        sources=(source,),
        frames=2,
        points=10,
        quarantined=1,
        chunks=("14", "1"),
        files=dict.fromkeys(TABLES, file),
        number=1,
        supersedes=(f"_commits/train/{SEGMENT}.json",),
    )
    first = replace(commit, number=0, supersedes=())
    other = replace(first, format="other", camera_names=("LEFT", "MIDDLE", "RIGHT", "BACK"))
    return [json.dumps(each.to_json()).encode() for each in (commit, first, other)]


def check_lake_files(data: bytes) -> None:
    """A lake whose small files are of any bytes is opened or refused, and a vacuum of it too, in one line."""
    store = Store(str(_folder() / "lake"))
    store.write("_lake.json", json.dumps({"schema_version": SCHEMA_VERSION, "points_mode": "quantised"}).encode())
    store.write("_snapshots/1.json", data)
    store.write(f"_attempts/train/{SEGMENT}-0123456789abcdef.json", data)
    for action in (lambda: open_lake(store.url), lambda: unreferenced(store, "train", 0)):
        try:
            found: Any = action()
        except LakeError as error:
            _check_line(error)
            continue
        assert not isinstance(found, list) or all(SEGMENT in name for name in found), found
    store.write("_lake.json", data)
    try:
        open_lake(store.url)
    except LakeError as error:
        _check_line(error)


def _lake_seeds() -> list[bytes]:
    commit = json.loads(_commit_seeds()[0])
    attempt = Attempt("train", SEGMENT, "0123456789abcdef", tuple(TABLES), f"_commits/train/{SEGMENT}.json")
    record = {name: getattr(attempt, name) for name in attempt.__dataclass_fields__}
    snapshot = {"schema_version": SCHEMA_VERSION, "number": 1, "created_at": "now", "commits": [commit]}
    lake = {"schema_version": SCHEMA_VERSION, "points_mode": "quantised"}
    return [json.dumps(values).encode() for values in (snapshot, record, lake)]


def check_card(data: bytes) -> None:
    """A card is refused in one line, or says the same when it is written again."""
    folder = _folder() / "teacher"
    folder.mkdir(exist_ok=True)
    (folder / "card.json").write_bytes(data)
    try:
        card = read_card(str(folder))
    except UserError as error:
        _check_line(error)
        return
    write_card(str(folder), card)
    assert read_card(str(folder)) == card
    assert f"{card.name} {card.architecture} {card.weights_sha256[:12]} {', '.join(card.class_names)}"
    assert dict(card.options) is not None
    assert card.data is None or card.data.all_segments is not None


def _card_seeds() -> list[bytes]:
    card = TeacherCard(
        name="spvcnn",
        kind="regression",
        architecture="spvcnn",
        options={"width": 1.0, "layers": [1, 2]},
        channels=2,
        class_names=("car", "road"),
        weights_sha256="ab" * 32,
        statistics=ChannelStatistics(mean=(0.0, 1.0), variance=(1.0, 2.0)),
        metrics={"mIoU": 0.5},
        data=TrainingData(lake="file:///lake", snapshot=1, segments={"teach": (SEGMENT,)}),
        versions={"torch": "2"},
    )
    folder = _folder() / "seed"
    write_card(str(folder), card)
    of_now = (folder / "card.json").read_bytes()
    values = json.loads(of_now)
    values["figures"], values["kind"] = values.pop("metrics"), "continuous"
    return [of_now, json.dumps(values).encode()]


def _check_line(error: BaseException) -> None:
    assert str(error), "an error that says nothing"
    assert "\n" not in str(error), f"more than one line: {error}"


TARGETS = {
    "records": Target(check_records, _record_seeds),
    "source_list": Target(check_source_list, _list_seeds),
    "commit": Target(check_commit, _commit_seeds),
    "lake": Target(check_lake_files, _lake_seeds),
    "card": Target(check_card, _card_seeds),
}
