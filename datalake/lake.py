"""A lake: its commits, and the snapshots that readers open.

    <lake>/_lake.json                            how this lake stores points, and its schema version
    <lake>/_commits/<split>/<segment>.json       created only if absent: the commit of one segment
    <lake>/_commits/<split>/<segment>.<n>.json   likewise, n = 1, 2, …: a later one, which supersedes those before
    <lake>/_snapshots/<n>.json                   created only if absent: the frozen list of commits, n = 1, 2, …
    <lake>/<split>/<table>/<segment>-<attempt>.parquet
    <lake>/_attempts/…                           see `datalake.attempt`

A reader opens one snapshot and never lists. Nothing that a snapshot names is ever changed.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from numpy.typing import NDArray

from datalake.cache import RangeCache
from datalake.commit import CAMERA_MARKS, Commit, LakeError, check_schema_version, load_json
from datalake.missing_package import need
from datalake.ranges import RangeReader, file_system
from datalake.schema import POINT_MODES, SCHEMA_VERSION, TABLES, PointMode
from datalake.store import Range, Store, is_temporary
from datalake.where import Where, parse_where

if TYPE_CHECKING:
    from datalake.sample import FrameSample, Sample
    from datalake.sample_dataset import FrameDataset, SampleDataset
    from datalake.sample_options import SampleOptions

_FORMAT = "_lake.json"
# Commits are small objects behind a round trip each; this many are under way at once.
_PARALLEL_READS = 16
# Where nothing is found, so many of the values that there are are named.
_TOLD_VALUES = 5


@dataclass(frozen=True)
class Lake:
    """One snapshot of a lake, open for reading.

    cache: where to keep what is read of a remote lake; a local one needs none
    """

    store: Store
    snapshot: int
    points_mode: PointMode
    commits: tuple[Commit, ...]
    cache: RangeCache | None = None

    @property
    def ranges(self) -> RangeReader:
        """How ranges of a remote lake's files are read."""
        return RangeReader(self.store, self.cache)

    @property
    def tables(self) -> tuple[str, ...]:
        """The names of the lake's tables."""
        return tuple(TABLES)

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits that have a segment."""
        return tuple(sorted({commit.split for commit in self.commits}))

    def in_split(self, split: str | None) -> tuple[Commit, ...]:
        """Return the commits of `split`, or all for None; raises LakeError for a split without segments."""
        if split is None:
            return self.commits
        if split not in self.splits:
            raise LakeError(f"{self.store.url}: no split {split!r}, there are: {', '.join(self.splits) or 'none'}")
        return tuple(commit for commit in self.commits if commit.split == split)

    def where(self, condition: str | None, split: str | None = None) -> Lake:
        """Return the lake with those images of `split` alone for which the condition holds, or of all splits for None.

        Segments without such an image are left out. Loaders leave out the other images; the tables have all their rows,
        and `images` those that are kept. Where the condition is about `segment` and `camera` alone, no file is read,
        otherwise its columns of every segment of the split.

        Raises LakeError where the condition is none (see `datalake.where`), or holds for no image.
        """
        if condition is None:
            return self
        parsed = parse_where(condition)
        commits = self.in_split(split)
        kept = {
            commit.name: _without(commit, mask)
            for commit, mask in zip(commits, _masks(self, commits, split, parsed), strict=True)
            if mask.any()
        }
        if not kept:
            of_split = "" if split is None else f" of split {split!r}"
            raise LakeError(
                f"{self.store.url}: for no image{of_split} holds {condition!r}{_told_values(self, split, parsed)}"
            )
        asked = {commit.name for commit in commits}
        return replace(
            self, commits=tuple(kept.get(c.name, c) for c in self.commits if c.name in kept or c.name not in asked)
        )

    def of_commits(self, *commits: Commit) -> Lake:
        """Return the lake with these of its commits alone."""
        return replace(self, commits=commits)

    def images(self, columns: Sequence[str], split: str | None = None) -> pa.Table:
        """Return columns of the rows of `image` that `where` has kept; all where it was not called."""
        kept = np.concatenate([_kept(commit) for commit in self.in_split(split)])
        return self.dataset("image", split).to_table(columns=list(columns)).filter(pa.array(kept))

    def dataset(self, table: str, split: str | None = None) -> ds.Dataset:
        """Return `table` as a pyarrow dataset, for pyarrow, DuckDB, Polars and whatever else reads one.

        No file is touched yet. A filter on `segment` prunes whole files, also without touching them.
        """
        if table not in TABLES:
            raise LakeError(f"no table {table!r}, there are: {', '.join(TABLES)}")
        file_format = ds.ParquetFileFormat()
        # Of before there was the table, commits have none.
        commits = [commit for commit in self.in_split(split) if table in commit.files]
        sizes = {commit.file_name(table): commit.files[table].bytes for commit in commits}
        filesystem = file_system(self.ranges, sizes)
        fragments = [
            file_format.make_fragment(
                self.store.path(commit.file_name(table)),
                filesystem,
                partition_expression=ds.field("segment") == commit.segment,
            )
            for commit in commits
        ]
        return ds.FileSystemDataset(fragments, TABLES[table], file_format, filesystem)

    def scan(
        self,
        table: str,
        columns: Sequence[str] | None = None,
        filter: ds.Expression | None = None,  # noqa: A002 - the name pyarrow's own scanner has
        split: str | None = None,
    ) -> ds.Scanner:
        """Return a pyarrow scanner over `table`: `.to_table()`, `.to_batches()`, `.count_rows()`."""
        return self.dataset(table, split).scanner(columns=columns and list(columns), filter=filter)

    def dataset_of_samples(
        self,
        split: str | None = None,
        options: SampleOptions | None = None,
        *,
        cameras: tuple[str, ...] = ("FRONT",),
        transform: Callable[[Sample], Any] | None = None,
    ) -> SampleDataset:
        """Return the images of some cameras as a map-style dataset of torch, for a `DataLoader` of your own.

        transform: what becomes of each `Sample`; batches of samples themselves need `collate_fn=list`

        Nothing is read before the first sample. Raises LakeError for a split or a camera that there is not.
        """
        # Tables are read without torch.
        need("train", ("torch", "torchvision"), "a data set of samples")
        from datalake.sample_dataset import SampleDataset
        from datalake.sample_options import SampleOptions

        return SampleDataset(self, split, cameras, options or SampleOptions(), transform)

    def dataset_of_frames(
        self,
        split: str | None = None,
        options: SampleOptions | None = None,
        *,
        cameras: tuple[str, ...] = (),
        transform: Callable[[FrameSample], Any] | None = None,
    ) -> FrameDataset:
        """Return the frames likewise, each with the images of some cameras together, or of none.

        Of a lake that `where` has narrowed, the times of images and frames are read at once: OSError where that fails.
        """
        need("train", ("torch", "torchvision"), "a data set of frames")
        from datalake.sample_dataset import FrameDataset
        from datalake.sample_options import SampleOptions

        return FrameDataset(self, split, cameras, options or SampleOptions(), transform)


def _masks(lake: Lake, commits: Sequence[Commit], split: str | None, where: Where) -> list[NDArray[np.bool_]]:
    """Return for each of the split's commits bool [R]: for which of its rows of `image` the condition holds."""
    sizes = [len(_kept(commit)) for commit in commits]
    if where.columns <= {"segment", "camera"}:
        cameras = pa.array(np.concatenate([_cameras(commit) for commit in commits]), pa.string())
        segments = np.repeat(np.array([commit.segment for commit in commits], object), sizes)
        rows = ds.dataset(pa.table({"segment": pa.array(segments, pa.string()), "camera": cameras}))
    else:
        rows = lake.dataset("image", split)
    found = rows.to_table(columns={"holds": where.expression}).column("holds").fill_null(False).to_numpy()
    # What was left out before stays so.
    return [mask & _kept(commit) for mask, commit in zip(np.split(found, np.cumsum(sizes)[:-1]), commits, strict=True)]


def _cameras(commit: Commit) -> NDArray[np.object_]:
    """Return the camera of each of the commit's rows of `image`, "" for one that is left out."""
    names = np.full(128, "", object)
    for camera, mark in zip(commit.camera_names, CAMERA_MARKS, strict=False):
        names[ord(mark)] = camera
    found: NDArray[np.object_] = names[np.frombuffer("".join(commit.chunks).encode(), np.uint8)]
    return found


def _kept(commit: Commit) -> NDArray[np.bool_]:
    """Return bool [R]: which of the commit's rows of `image` are not left out."""
    return np.frombuffer("".join(commit.chunks).encode(), np.uint8) != ord("0")


def _without(commit: Commit, kept: NDArray[np.bool_]) -> Commit:
    """Return the commit whose readers leave out all other rows of `image`."""
    rows = iter(kept.tolist())
    return replace(
        commit,
        chunks=tuple("".join(number if next(rows) else "0" for number in chunk) for chunk in commit.chunks),
    )


def _told_values(lake: Lake, split: str | None, where: Where) -> str:
    """Return which values there are of the first column that the condition is about."""
    if not where.columns:
        return ""
    name = min(where.columns)
    values = sorted(
        lake.images([name], split).column(name).value_counts().to_pylist(), key=lambda each: -each["counts"]
    )
    told = ", ".join(f"{each['values']!r} ({each['counts']:,})" for each in values[:_TOLD_VALUES])
    return f"; there are {name} {told}{' …' if len(values) > _TOLD_VALUES else ''}"


def open_lake(url: str, snapshot: int | None = None, cache: RangeCache | None = None) -> Lake:
    """Open a lake at its newest snapshot, or at `snapshot`.

    cache: where to keep what is read of a remote lake, for the next epoch or the next run

    Raises LakeError where there is no lake, no such snapshot, or one of another schema version; StoreError where a web
    server gives no ranges.
    """
    store = Store(url, read_only=True)
    points_mode = check_lake(store)
    if store.is_web:
        # Said of a small file, before a whole one of gigabytes comes in place of its end.
        store.read_ranges([Range(_FORMAT, 0, 1)])
    number = newest_snapshot(store) if snapshot is None else snapshot
    if number == 0:
        raise LakeError(f"{store.url}: the lake has no snapshot yet; finish a build with python -m datalake build")
    return Lake(store, number, points_mode, _read_snapshot(store, number), cache)


def prepare_lake(store: Store, points_mode: PointMode) -> None:
    """Make `store` a lake whose points are stored in `points_mode`, or check that it is one already.

    Raises LakeError where it is neither empty nor such a lake: what is there is somebody's, who keeps it to himself.
    """
    found = read_points_mode(store)
    if found is None:
        others = [name for name in store.entries() if not is_temporary(name)]
        # Another builder may have begun meanwhile: it makes this object before any other.
        if others and read_points_mode(store) is None:
            names = ", ".join(others[:3]) + (" …" if len(others) > 3 else "")
            raise LakeError(f"{store.url}: holds {names} but no lake (no {_FORMAT}); give an empty or a new folder")
        values = {"schema_version": SCHEMA_VERSION, "points_mode": points_mode}
        if store.create(_FORMAT, _dump(values)):
            return
        found = read_points_mode(store)
    if found != points_mode:
        raise LakeError(
            f"{store.url}: this lake stores points {found}, not {points_mode}; build into another lake,"
            f" or with --points {found}"
        )


def check_lake(store: Store) -> PointMode:
    """Return how the lake stores points; raises LakeError where there is no lake."""
    points_mode = read_points_mode(store)
    if points_mode is None:
        raise LakeError(f"{store.url}: no lake here (no {_FORMAT}); build one with python -m datalake build")
    return points_mode


def read_points_mode(store: Store) -> PointMode | None:
    """Return how the lake stores points, or None where there is no lake."""
    try:
        values = load_json(store.read(_FORMAT), f"{store.url}/{_FORMAT}")
    except FileNotFoundError:
        return None
    check_schema_version(values, f"{store.url}/{_FORMAT}")
    mode: PointMode | None = values.get("points_mode")
    if mode not in POINT_MODES:
        expected = ", ".join(POINT_MODES)
        raise LakeError(f"{store.url}/{_FORMAT}: expected points_mode to be one of {expected}, got {mode!r}")
    return mode


def newest_snapshot(store: Store) -> int:
    """Return the number of the newest snapshot, 0 where there is none.

    Snapshots are numbered without gaps, so about 2 log2(n) existence checks find the last; nothing is listed.
    """
    high = 1
    while store.exists(_snapshot_name(high)):
        high *= 2
    low = high // 2  # exists, or is 0; `high` does not exist
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if store.exists(_snapshot_name(middle)) else (low, middle)
    return low


def publish_snapshot(store: Store) -> int:
    """Freeze the newest commit of each segment into the next snapshot; return the number of the one that has them.

    With nothing new since the last snapshot, that one is returned. Where another builder publishes first, its
    snapshot is looked at, and the next number tried. Raises LakeError where commits of the last one are not listed.
    """
    while True:
        number = newest_snapshot(store)
        known = _read_snapshot(store, number) if number else ()
        by_name = {commit.name: commit for commit in known}
        listed = list_commits(store)
        check_listing(store, number, by_name, listed)
        # Commits never change, so those of the last snapshot need not be read again, nor those that they supersede.
        old = {*by_name, *(name for commit in known for name in commit.supersedes)}
        fresh = read_commits(store, [name for name in listed if name not in old])
        if not fresh:
            return number
        newest = newest_commits([*known, *fresh])
        values = {
            "schema_version": SCHEMA_VERSION,
            "number": number + 1,
            "created_at": now(),
            "commits": [commit.to_json() for commit in sorted(newest, key=lambda commit: commit.name)],
        }
        if store.create(_snapshot_name(number + 1), _dump(values)):
            return number + 1


def commits_of_newest_snapshot(store: Store, split: str) -> tuple[int, list[str]]:
    """Return the newest snapshot's number, 0 where there is none, and the names of its commits of a split."""
    number = newest_snapshot(store)
    known = _read_snapshot(store, number) if number else ()
    return number, [commit.name for commit in known if commit.split == split]


def check_listing(store: Store, snapshot: int, known: Iterable[str], listed: Iterable[str]) -> None:
    """Raise LakeError unless all commits that a snapshot is known to have are listed.

    Commits are never removed, so the listing is then not all that is there. To publish it would hide data from readers,
    and to sweep by it would delete them.
    """
    if missing := sorted(set(known) - set(listed)):
        raise LakeError(
            f"{store.url}: {len(missing)} commits of snapshot {snapshot} are not listed, e.g. {missing[0]}: the store"
            " does not list all that is there, or somebody has deleted them; nothing was published or swept"
        )


def list_commits(store: Store, split: str | None = None) -> list[str]:
    """Return the names of all commits, or those of one split. Builders list; readers open snapshots."""
    found = store.listing("_commits" if split is None else f"_commits/{split}")
    return sorted(name for name in found if name.endswith(".json"))


def read_commits(store: Store, names: Sequence[str]) -> list[Commit]:
    """Return the commits of those names, in order."""

    def read(name: str) -> Commit:
        where = f"{store.url}/{name}"
        commit = Commit.from_json(load_json(store.read(name), where), where)
        if commit.name != name:
            raise LakeError(f"{where}: is the commit of {commit.split}/{commit.segment}, under another name")
        return commit

    with ThreadPoolExecutor(_PARALLEL_READS) as pool:
        return list(pool.map(read, names))


def newest_commits(commits: Iterable[Commit]) -> list[Commit]:
    """Return of each segment the commit that supersedes the others."""
    newest: dict[tuple[str, str], Commit] = {}
    for commit in sorted(commits, key=lambda commit: commit.number):
        newest[commit.split, commit.segment] = commit
    return list(newest.values())


def write_commit(store: Store, commit: Commit) -> bool:
    """Commit a segment; return False where another attempt already did."""
    return store.create(commit.name, _dump(commit.to_json()))


def now() -> str:
    """Return the time in UTC, to the second, as ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _snapshot_name(number: int) -> str:
    return f"_snapshots/{number}.json"


def _read_snapshot(store: Store, number: int) -> tuple[Commit, ...]:
    where = f"{store.url}/{_snapshot_name(number)}"
    try:
        values = load_json(store.read(_snapshot_name(number)), where)
    except FileNotFoundError:
        raise LakeError(f"{where}: no such snapshot; the newest is {newest_snapshot(store)}") from None
    check_schema_version(values, where)
    commits = values.get("commits")
    if not isinstance(commits, list):
        raise LakeError(f"{where}: not a snapshot of this lake: no list of commits")
    return tuple(Commit.from_json(commit, where) for commit in commits)


def _dump(values: dict[str, Any]) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode() + b"\n"
