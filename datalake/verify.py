"""Check of every byte that a snapshot promises."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pyarrow.parquet as pq

from datalake.commit import Commit, LakeError, commit_name
from datalake.lake import Lake, read_commits
from datalake.schema import TABLES


def verify(lake: Lake) -> Iterator[tuple[Commit, list[str]]]:
    """Yield each commit of the snapshot with what is wrong with it: nothing, or one line a problem.

    Every file is read once, whole: size, SHA-256, schema, rows, and the row groups that the tables share. The
    commit object must say what the snapshot says.
    """
    for commit in lake.commits:
        yield commit, list(_problems(lake, commit))


def _problems(lake: Lake, commit: Commit) -> Iterator[str]:
    store = lake.store
    name = commit_name(commit.split, commit.segment)
    try:
        if read_commits(store, [name])[0] != commit:
            yield f"{store.url}/{name}: differs from snapshot {lake.snapshot}"
    except (FileNotFoundError, LakeError) as error:
        yield f"{store.url}/{name}: cannot be read: {error}"
    for table, file in commit.files.items():
        path = commit.file_name(table)
        where = f"{store.url}/{path}"
        try:
            digest, size = hashlib.sha256(), 0
            for block in store.blocks(path):
                digest.update(block)
                size += len(block)
        except FileNotFoundError:
            yield f"{where}: missing"
            continue
        if size != file.bytes:
            yield f"{where}: {size} bytes, {file.bytes} committed"
        elif digest.hexdigest() != file.sha256:
            yield f"{where}: SHA-256 differs from the committed one"
        else:
            yield from _structure(lake, commit, table)


def _structure(lake: Lake, commit: Commit, table: str) -> Iterator[str]:
    path = commit.file_name(table)
    where = f"{lake.store.url}/{path}"
    with lake.store.fs.open(lake.store.path(path), "rb") as stream, pq.ParquetFile(stream) as parquet:
        if parquet.schema_arrow != TABLES[table]:
            yield f"{where}: its schema is not that of table {table}"
        if parquet.metadata.num_rows != commit.files[table].rows:
            yield f"{where}: {parquet.metadata.num_rows} rows, {commit.files[table].rows} committed"
        if table != "quarantine" and parquet.num_row_groups != len(commit.chunks):
            yield f"{where}: {parquet.num_row_groups} row groups, {len(commit.chunks)} committed"
        elif table in ("image", "depth"):
            rows = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
            if rows != [len(chunk) for chunk in commit.chunks]:
                yield f"{where}: its row groups do not hold the images that the commit lists"
