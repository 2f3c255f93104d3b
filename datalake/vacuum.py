"""Removal of what killed attempts left, and of nothing else.

What may be deleted is named by the record that each attempt writes before its first file (`datalake.attempt`). Files
are never searched for: whatever else lies in a lake's folder, by whatever name, is not known to be the lake's.
"""

from __future__ import annotations

import re

from datalake.attempt import Attempt, attempts_folder, list_attempts
from datalake.commit import load_json
from datalake.derived_table import derived_commits_folder, list_derived_tables
from datalake.lake import check_lake, check_listing, commits_of_newest_snapshot
from datalake.store import Store, is_temporary

# Longer than any one segment takes to build: neither record nor files of a running attempt are older than this.
GRACE_S = 24 * 3600.0
_NUMBERED = re.compile(r"\.[0-9]+\.json$")


def unreferenced(store: Store, split: str, grace_s: float = GRACE_S) -> list[str]:
    """Return the names of the objects of `split` that can be deleted, in the order in which they have to be.

    An attempt is kept while its record or one of its files is younger than `grace_s`: it may still be running. One
    whose commit another attempt has made can only lose, and needs no grace. What a symbolic link stands for is kept.

    Raises LakeError where there is no lake, or commits of its newest snapshot are not listed.
    """
    check_lake(store)
    # First, since a snapshot published meanwhile has commits that were not there to be listed.
    snapshot, known = commits_of_newest_snapshot(store, split)
    failed = store.listing(f"_failed/{split}")
    commits = store.listing(f"_commits/{split}")
    check_listing(store, snapshot, known, commits)

    doomed = []
    for attempt, age_s in list_attempts(store, split):
        doomed += _left_by(store, attempt, age_s, grace_s)
    derived_folders = [derived_commits_folder(table, split) for table in list_derived_tables(store)]
    for found in (commits, *(store.listing(folder) for folder in (*derived_folders, attempts_folder(split)))):
        doomed += [name for name, age_s in found.items() if is_temporary(name) and age_s > grace_s]
    # The faults of a segment go when it is committed after all.
    youngest: dict[str, float] = {}
    for name, age_s in commits.items():
        for file in {name.rsplit("/", 1)[-1], _NUMBERED.sub(".json", name.rsplit("/", 1)[-1])}:
            youngest[file] = min(age_s, youngest.get(file, age_s))
    doomed += [name for name, age_s in failed.items() if age_s > youngest.get(name.rsplit("/", 1)[-1], age_s)]
    return [name for name in doomed if not store.is_linked(name)]


def vacuum(store: Store, split: str, grace_s: float = GRACE_S) -> list[str]:
    """Delete what `unreferenced` names, and return it."""
    names = unreferenced(store, split, grace_s)
    for name in names:
        store.delete(name)
    return names


def splits_of(store: Store) -> list[str]:
    """Return the splits that have a commit or an attempt, sorted; raises LakeError where there is no lake."""
    check_lake(store)
    return sorted({*store.folders("_commits"), *store.folders("_attempts")})


def _left_by(store: Store, attempt: Attempt, age_s: float, grace_s: float) -> list[str]:
    """Return what can be deleted of an attempt whose record has that age: files first, then the record."""
    try:
        owner = load_json(store.read(attempt.commit), f"{store.url}/{attempt.commit}").get("attempt")
    except FileNotFoundError:
        owner = None
    if owner == attempt.attempt:
        # Only the record is left to go.
        return [attempt.name]
    ages = {name: store.age(name) for name in attempt.file_names.values()}
    there = {name: age for name, age in ages.items() if age is not None}
    if owner is None and min([age_s, *there.values()]) <= grace_s:
        return []
    # A loser that is still at work may yet write a file: its record stays for that one.
    return [*there, *([attempt.name] if age_s > grace_s else [])]
