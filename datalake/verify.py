"""Check of every byte that a snapshot promises."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from datalake.commit import Commit, DataFile, LakeError
from datalake.derived_table import DerivedCommit, list_derived_tables, read_derived_commits
from datalake.lake import Lake, read_commits
from datalake.ranges import RangeReader, open_parquet
from datalake.schema import SEGMENT_TABLES, TABLES
from datalake.sources.panoptic import PanopticError, check_panoptic, decode_panoptic
from datalake.store import Store


def verify(lake: Lake, *, decode: bool = False) -> Iterator[tuple[Commit, list[str]]]:
    """Yield each commit of the snapshot with what is wrong with it: nothing, or one line a problem.

    decode: also decode every image and every panoptic label

    Every file is read once, whole: size, SHA-256, schema, rows, and the row groups that the tables share. The
    commit object must say what the snapshot says. Derived tables are checked for the segments that they have, but on a
    web server, which does not list them.
    """
    derived_tables = [] if lake.store.is_web else list_derived_tables(lake.store)
    for commit in lake.commits:
        problems = list(_problems(lake, commit))
        if decode and not problems:
            problems += _undecodable(lake, commit)
        for table in derived_tables:
            problems += _derived_problems(lake, commit, table)
        yield commit, problems


def _problems(lake: Lake, commit: Commit) -> Iterator[str]:
    store = lake.store
    name = commit.name
    try:
        if read_commits(store, [name])[0] != commit:
            yield f"{store.url}/{name}: differs from snapshot {lake.snapshot}"
    except (FileNotFoundError, LakeError) as error:
        yield f"{store.url}/{name}: cannot be read: {error}"
    for table, file in commit.files.items():
        if damage := _damage(store, commit.file_name(table), file):
            yield damage
        else:
            yield from _structure(lake, commit, table)


def _derived_problems(lake: Lake, commit: Commit, table: str) -> Iterator[str]:
    try:
        (part,) = read_derived_commits(lake.store, table, [commit])
    except LakeError as error:
        yield str(error)
        return
    if part is None:
        return
    if part.base_attempt != commit.attempt:
        yield f"{lake.store.url}/{part.file_name}: made from another build of the segment ({part.base_attempt})"
    elif damage := _damage(lake.store, part.file_name, part.file):
        yield damage
    else:
        yield from _derived_structure(lake, commit, part)


def _damage(store: Store, path: str, file: DataFile) -> str:
    """Return how the bytes of a file differ from the committed ones, or nothing."""
    where = f"{store.url}/{path}"
    try:
        digest, size = hashlib.sha256(), 0
        for block in store.blocks(path):
            digest.update(block)
            size += len(block)
    except FileNotFoundError:
        return f"{where}: missing"
    if size != file.bytes:
        return f"{where}: {size} bytes, {file.bytes} committed"
    return "" if digest.hexdigest() == file.sha256 else f"{where}: SHA-256 differs from the committed one"


def _structure(lake: Lake, commit: Commit, table: str) -> Iterator[str]:
    path = commit.file_name(table)
    where = f"{lake.store.url}/{path}"
    with open_parquet(RangeReader(lake.store, None), path, commit.files[table].bytes) as parquet:
        if problem := _schema_problem(parquet.schema_arrow, TABLES[table]):
            yield f"{where}: its schema is not that of table {table}: {problem}"
        if parquet.metadata.num_rows != commit.files[table].rows:
            yield f"{where}: {parquet.metadata.num_rows} rows, {commit.files[table].rows} committed"
        if table not in SEGMENT_TABLES and parquet.num_row_groups != len(commit.chunks):
            yield f"{where}: {parquet.num_row_groups} row groups, {len(commit.chunks)} committed"
        elif table in ("image", "depth") and _group_rows(parquet) != [len(chunk) for chunk in commit.chunks]:
            yield f"{where}: its row groups do not hold the images that the commit lists"


def _schema_problem(found: pa.Schema, expected: pa.Schema) -> str:
    """Return how a schema differs; columns that may be null came and will come by and by, and need not be there."""
    names = set(found.names)
    for field in expected:
        if field.name not in names and not field.nullable:
            return f"column {field.name} is missing"
        if field.name in names and found.field(field.name) != field:
            other, null = found.field(field.name), ("not null", "nullable")
            return (
                f"column {field.name} is {other.type} {null[other.nullable]}, not {field.type} {null[field.nullable]}"
            )
    known = set(expected.names)
    for field in found:
        if field.name not in known and not field.nullable:
            return f"column {field.name} is not known"
    return ""


def _undecodable(lake: Lake, commit: Commit) -> Iterator[str]:
    path = commit.file_name("image")
    columns = ["timestamp_us", "camera", "jpeg", "width", "height", "panoptic", "panoptic_divisor"]
    with open_parquet(RangeReader(lake.store, None), path, commit.files["image"].bytes) as parquet:
        for group in range(parquet.num_row_groups):
            for row in parquet.read_row_group(group, columns=columns).to_pylist():
                where = f"{lake.store.url}/{path}: {{}} of {row['camera']} at {row['timestamp_us']}"
                size = row["width"], row["height"]
                if problem := _image_damage(row["jpeg"], size):
                    yield f"{where.format('the JPEG')} {problem}"
                if row["panoptic"] is None:
                    continue
                try:
                    check_panoptic(row["panoptic"], size)
                    decode_panoptic(row["panoptic"], row["panoptic_divisor"])
                except PanopticError as error:
                    yield f"{where.format('the panoptic label')} cannot be used: {error}"


def _image_damage(jpeg: bytes, size: tuple[int, int]) -> str:
    try:
        with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
            image.load()
            found = image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return f"does not decode: {error}"
    return "" if found == size else f"is {found[0]}x{found[1]}, {size[0]}x{size[1]} committed"


def _derived_structure(lake: Lake, commit: Commit, part: DerivedCommit) -> Iterator[str]:
    path = part.file_name
    with open_parquet(RangeReader(lake.store, None), path, part.file.bytes) as parquet:
        if _group_rows(parquet) != [len(chunk) for chunk in commit.chunks]:
            yield f"{lake.store.url}/{path}: its row groups do not hold the images that the commit lists"


def _group_rows(parquet: pq.ParquetFile) -> list[int]:
    return [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
