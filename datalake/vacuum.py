"""Removal of what no commit refers to: the remains of killed attempts."""

from __future__ import annotations

from datalake.commit import data_file_name
from datalake.lake import check_listing, commits_of_newest_snapshot, list_commits, read_commits
from datalake.schema import TABLES
from datalake.side_table import list_side_tables, read_side_commits, side_commits_folder
from datalake.store import Store

# Longer than any one segment takes to build: files of a running attempt are never older than this.
GRACE_S = 24 * 3600.0


def unreferenced(store: Store, split: str, grace_s: float = GRACE_S) -> list[str]:
    """Return the names of the objects of `split` that can be deleted, sorted.

    A file is kept while it is younger than `grace_s`: its attempt may still be running. An attempt at a segment
    that another one has committed can only lose, so its files need no grace. Commits are read before files are
    listed, so that an attempt committing in between is seen as young, not as dead. Raises LakeError where commits of
    the newest snapshot are not listed.
    """
    # First, since a snapshot published meanwhile has commits that were not there to be listed.
    snapshot, known = commits_of_newest_snapshot(store, split)
    listed = list_commits(store, split)
    check_listing(store, snapshot, known, listed)
    commits = read_commits(store, listed)
    attempts = {commit.segment: commit.attempt for commit in commits}
    kept = {data_file_name(split, table, commit.segment, commit.attempt) for commit in commits for table in TABLES}
    finished = dict.fromkeys(TABLES, attempts.keys())
    commit_folders = [f"_commits/{split}"]
    for table in list_side_tables(store, split):
        parts = [part for part in read_side_commits(store, table, commits) if part is not None]
        kept |= {part.file_name for part in parts}
        finished[table] = {part.segment: part.attempt for part in parts}.keys()
        commit_folders.append(side_commits_folder(table, split))
    doomed = []
    for table, segments in finished.items():
        for name, age_s in store.listing(f"{split}/{table}").items():
            segment = name.rsplit("/", 1)[-1].rsplit("-", 1)[0]
            if name not in kept and (segment in segments or age_s > grace_s):
                doomed.append(name)
    for folder in commit_folders:
        doomed += [name for name, age_s in store.listing(folder).items() if name.endswith(".tmp") and age_s > grace_s]
    for name in store.listing(f"_failed/{split}"):
        if name.rsplit("/", 1)[-1].removesuffix(".json") in attempts:
            doomed.append(name)
    return sorted(doomed)


def vacuum(store: Store, split: str, grace_s: float = GRACE_S) -> list[str]:
    """Delete what `unreferenced` names, and return it."""
    names = unreferenced(store, split, grace_s)
    for name in names:
        store.delete(name)
    return names
