"""What a lake needs of a disk or an object store, asked of both."""

from __future__ import annotations

import errno
import gc
import hashlib
import multiprocessing
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import pytest

from datalake.retry import StoreError
from datalake.store import Store, UnknownOutcomeError


@pytest.fixture(params=["disk", "disk without links", "disk with locks alone", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A place where nothing is yet, on each kind of store."""
    if "links" in request.param or "locks" in request.param:
        monkeypatch.setattr(os, "link", _refuse)
    if "locks" in request.param:
        monkeypatch.setattr("datalake.exclusive._renameat2", lambda: None)
    return Store(request.getfixturevalue("s3_lake") if request.param == "s3" else str(tmp_path / "lake"))


def _refuse(*_: object) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def _race(store: Store, threads: int, name: str) -> list[bytes]:
    """Let many threads create one object at the same moment; return the bytes of those that won."""
    barrier = threading.Barrier(threads)

    def create(number: int) -> bytes | None:
        data = f"author {number}".encode() * 100
        barrier.wait()
        return data if store.create(name, data) else None

    with ThreadPoolExecutor(threads) as pool:
        return [data for data in pool.map(create, range(threads)) if data is not None]


def _create_in_process(url: str, name: str, number: int) -> bytes | None:
    data = f"process {number}".encode() * 100
    return data if Store(url).create(name, data) else None


def test_one_thread_of_many_creates_an_object(store: Store) -> None:
    for attempt in range(5):
        name = f"_commits/train/segment-{attempt}.json"
        (winner,) = _race(store, 12, name)
        assert store.read(name) == winner


@pytest.mark.integration
def test_one_process_of_many_creates_an_object(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    context: Any = multiprocessing.get_context("fork")
    pool: Pool
    with context.Pool(4) as pool:
        for attempt in range(10):
            name = f"race-{attempt}"
            calls = [(str(tmp_path), name, number) for number in range(8)]
            (winner,) = [data for data in pool.starmap(_create_in_process, calls, chunksize=1) if data is not None]
            assert store.read(name) == winner


def test_created_object_is_never_replaced(store: Store) -> None:
    assert store.create("a", b"first")
    assert not store.create("a", b"second")
    assert store.read("a") == b"first"


def test_lost_race_leaves_nothing_beside_the_winner(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    _race(store, 8, "folder/a")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["a"]


def test_write_replaces(store: Store) -> None:
    store.write("folder/a", b"first")
    store.write("folder/a", b"second")
    assert store.read("folder/a") == b"second"


def test_missing_object_is_not_found(store: Store) -> None:
    assert not store.exists("a")
    with pytest.raises(FileNotFoundError):
        store.read("a")
    with pytest.raises(FileNotFoundError):
        store.size("a")


def test_deleting_what_is_gone_is_fine(store: Store) -> None:
    store.write("a", b"1")
    store.delete("a")
    store.delete("a")
    assert not store.exists("a")


def test_listing_names_every_object_below_with_its_age(store: Store) -> None:
    for name in ("x/a", "x/y/b", "z/c"):
        store.write(name, b"1")
    found = store.listing("x")
    assert sorted(found) == ["x/a", "x/y/b"]
    assert all(-60 < age < 60 for age in found.values())


def test_listing_of_nothing_is_empty(store: Store) -> None:
    assert store.listing("x") == {}


def test_a_folder_that_cannot_be_read_is_not_taken_for_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    store.write("a/b/c", b"content")
    real = os.scandir

    def failing(path: Any) -> Any:
        # What a network's file system says now and then.
        if str(path).endswith("/b"):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(OSError, match="Input/output error"):
        store.listing("a")


def test_an_object_that_may_not_survive_a_power_cut_is_there_or_not_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("datalake.store._sync_folder", failing)
    with pytest.raises(UnknownOutcomeError, match=r"created, but perhaps not for good: .*Input/output error"):
        Store(str(tmp_path)).create("a", b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_listing_shows_what_was_written_since_the_last_one(store: Store) -> None:
    store.write("x/a", b"1")
    store.listing("x")
    store.write("x/b", b"1")
    assert sorted(store.listing("x")) == ["x/a", "x/b"]


def test_folders_are_those_directly_below_the_root(store: Store) -> None:
    assert store.folders() == []
    for name in ("train/image/a", "_commits/train/b", "_lake.json"):
        store.write(name, b"1")
    assert store.folders() == ["_commits", "train"]


def test_sink_knows_size_and_checksum_of_what_it_wrote(store: Store) -> None:
    data = os.urandom(100_000)
    with store.sink("folder/a") as sink:
        sink.write(data[:60_000])
        sink.write(memoryview(data)[60_000:])
    assert (sink.size, sink.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert b"".join(store.blocks("folder/a")) == data


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("size", [10, 12 << 20], ids=["small", "beyond one part of an upload"])
def test_discarded_sink_publishes_nothing_once_its_rest_is_deleted(store: Store, size: int) -> None:
    sink = store.sink("folder/a")
    sink.write(bytes(size))
    sink.discard()
    store.delete("folder/a")
    del sink
    gc.collect()
    assert not store.exists("folder/a")


def test_discarded_sink_lets_late_bytes_fall(store: Store) -> None:
    sink = store.sink("a")
    sink.discard()
    assert sink.write(b"late") == 4
    assert sink.size == 0


def test_error_inside_a_sink_discards_it(s3_lake: str) -> None:
    store = Store(s3_lake)

    def fail() -> None:
        with store.sink("a") as sink:
            sink.write(b"half")
            raise RuntimeError("the writer failed")

    with pytest.raises(RuntimeError):
        fail()
    assert not store.exists("a")


def test_store_without_create_if_absent_is_refused() -> None:
    with pytest.raises(StoreError, match="create-if-absent"):
        Store("http://127.0.0.1/lake")


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EACCES])
def test_folders_that_cannot_be_synced_take_objects_all_the_same(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def refusing(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", refusing)
    store = Store(str(tmp_path))
    assert store.create("folder/object.json", b"{}")
    assert not store.create("folder/object.json", b"[]")
    with store.sink("folder/file") as sink:
        sink.write(b"bytes")
    assert (store.read("folder/object.json"), store.read("folder/file")) == (b"{}", b"bytes")
