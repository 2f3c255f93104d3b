"""The record of an attempt at a segment: written before its first file, it says what may be deleted if it dies.

    <lake>/_attempts/<split>/<segment>-<attempt>.json

It goes when the attempt has committed, or has deleted its own files. What no record names is never deleted: it is not
known to be the lake's.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from datalake.commit import ATTEMPT, LakeError, check_schema_version, check_split_name, data_file_name, load_json
from datalake.schema import SCHEMA_VERSION
from datalake.sources.frame import FrameError
from datalake.sources.segment_name import check_segment_name
from datalake.store import Store

_FOLDER = "_attempts"
_TABLE_NAME = re.compile(r"[a-z0-9][a-z0-9_]{0,63}")
_COMMIT_FOLDER = re.compile(r"_commits|(?:_derived|_side)/[a-z0-9_]+")


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try to write a segment's files of some tables.

    commit: the name of the object that makes them part of the lake; it says which attempt created it
    """

    split: str
    segment: str
    attempt: str
    tables: tuple[str, ...]
    commit: str
    schema_version: int = SCHEMA_VERSION

    @property
    def name(self) -> str:
        """The record's own name, relative to the lake."""
        return f"{attempts_folder(self.split)}/{self.segment}-{self.attempt}.json"

    @property
    def file_names(self) -> dict[str, str]:
        """The name of the attempt's file of each table, relative to the lake."""
        return {table: data_file_name(self.split, table, self.segment, self.attempt) for table in self.tables}


def begin_attempt(store: Store, split: str, segment: str, tables: Sequence[str], commit: str) -> Attempt:
    """Return a new attempt, its record written; files under its names may be written from now on."""
    attempt = Attempt(split, segment, uuid.uuid4().hex[:16], tuple(tables), commit)
    store.create(attempt.name, json.dumps(asdict(attempt), separators=(",", ":")).encode() + b"\n")
    return attempt


def end_attempt(store: Store, attempt: Attempt) -> None:
    """Delete the record: the files are committed, or gone."""
    store.delete(attempt.name)


def list_attempts(store: Store, split: str) -> list[tuple[Attempt, float]]:
    """Return the attempts of a split that have a record, each with the record's age in seconds.

    Raises LakeError for a record that names anything but files of its own attempt.
    """
    found = []
    for name, age_s in sorted(store.listing(attempts_folder(split)).items()):
        if not name.endswith(".json"):
            continue
        where = f"{store.url}/{name}"
        try:
            attempt = _from_json(load_json(store.read(name), where), where)
        except FileNotFoundError:
            continue  # it has ended meanwhile
        if attempt.name != name:
            raise LakeError(f"{where}: is the record of attempt {attempt.name!r}, under another name")
        found.append((attempt, age_s))
    return found


def attempts_folder(split: str) -> str:
    """Return the folder of a split's records, relative to the lake."""
    return f"{_FOLDER}/{split}"


def _from_json(values: dict[str, Any], where: str) -> Attempt:
    check_schema_version(values, where)
    try:
        attempt = Attempt(**{**values, "tables": tuple(values["tables"])})
        check_split_name(attempt.split)
        check_segment_name(attempt.segment)
        folder, _, commit = attempt.commit.rpartition("/")
        kind, _, split = folder.rpartition("/")
        sound = (
            ATTEMPT.fullmatch(attempt.attempt)
            and all(_TABLE_NAME.fullmatch(table) for table in attempt.tables)
            and (_COMMIT_FOLDER.fullmatch(kind) and split == attempt.split)
            and re.fullmatch(re.escape(attempt.segment) + r"(\.[0-9]+)?\.json", commit)
        )
    except (KeyError, TypeError, AttributeError, FrameError, LakeError) as error:
        raise LakeError(f"{where}: not the record of an attempt: {' '.join(str(error).split())}") from error
    if not sound:
        raise LakeError(f"{where}: not the record of an attempt: bad attempt, tables or commit")
    return attempt
