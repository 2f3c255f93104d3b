"""The folder of what was read: what it keeps, what it drops first, and that it stays within its bound."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from datalake.cache import RangeCache
from datalake.retry import StoreError


def content(number: int, size: int = 1000) -> bytes:
    return bytes([number % 256]) * size


def kept_bytes(folder: Path) -> int:
    """Return the size of all kept and half-written files; the account's own is of constant size."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.name != ".total")


def fill(folder: str, max_bytes: int, first: int) -> int:
    """Keep and look up many pieces; return how many were wrong."""
    cache, wrong = RangeCache(folder, max_bytes), 0
    for number in range(first, first + 300):
        cache.put(f"piece {number % 100}", content(number % 100))
        found = cache.get(f"piece {number * 7 % 100}", 1000)
        wrong += found not in (None, content(number * 7 % 100))
        if number % 20 == 0:
            wrong += kept_bytes_or_less(folder) > max_bytes
    return wrong


def kept_bytes_or_less(folder: str) -> int:
    """Return what `kept_bytes` does while others delete files."""
    total = 0
    for path in Path(folder).iterdir():
        try:
            total += path.stat().st_size if path.name != ".total" else 0
        except FileNotFoundError:
            continue
    return total


def test_what_is_kept_is_found_under_its_key_alone(tmp_path: Path) -> None:
    cache = RangeCache(str(tmp_path / "new" / "folder"))
    assert cache.get("a", 3) is None
    cache.put("a", b"abc")
    assert cache.get("a", 3) == b"abc"
    assert cache.get("b", 3) is None
    assert RangeCache(str(tmp_path / "new" / "folder")).get("a", 3) == b"abc"


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = RangeCache(str(tmp_path), max_bytes=10 * 1004)
    for number in range(10):
        cache.put(str(number), content(number))
        time.sleep(0.01)
    assert cache.get("0", 1000)
    cache.put("10", content(10))
    held = [number for number in range(11) if cache.get(str(number), 1000)]
    assert {0, 10} < set(held)
    assert 1 not in held
    assert held[-1:0:-1] == list(range(10, 11 - len(held) + 0, -1))


def test_the_bound_holds_at_every_moment(tmp_path: Path) -> None:
    cache = RangeCache(str(tmp_path), max_bytes=20_000)
    for number in range(100):
        cache.put(str(number), content(number, 100 + 37 * number))
        assert kept_bytes(tmp_path) <= 20_000
    assert kept_bytes(tmp_path) > 10_000


def test_what_is_larger_than_the_bound_is_not_kept(tmp_path: Path) -> None:
    cache = RangeCache(str(tmp_path), max_bytes=1000)
    cache.put("a", content(1, 500))
    cache.put("b", content(1, 998))
    assert cache.get("b", 998) is None
    assert cache.get("a", 500)


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "longer"])
def test_a_damaged_file_counts_as_none_and_is_replaced(tmp_path: Path, damage: str) -> None:
    cache = RangeCache(str(tmp_path))
    cache.put("a", content(1))
    (path,) = (path for path in tmp_path.iterdir() if path.name != ".total")
    data = path.read_bytes()
    path.write_bytes({"flipped": b"\xff" + data[1:], "cut": data[:-9], "empty": b"", "longer": data + b"x"}[damage])
    assert cache.get("a", 1000) is None
    cache.put("a", content(1))
    assert cache.get("a", 1000) == content(1)


def test_what_a_killed_process_left_is_swept_when_room_is_made(tmp_path: Path) -> None:
    cache = RangeCache(str(tmp_path), max_bytes=5_000)
    cache.put("a", content(1))
    (tmp_path / f"{'0a' * 20}.tmp").write_bytes(bytes(4_000))
    for number in range(10):
        cache.put(str(number), content(number))
    assert not (tmp_path / f"{'0a' * 20}.tmp").exists()


def test_a_store_as_the_folder_is_refused() -> None:
    with pytest.raises(StoreError, match="cache s3://bucket/cache: a cache is a folder on a local disk"):
        RangeCache("s3://bucket/cache")


def test_files_of_others_in_the_folder_are_never_deleted(tmp_path: Path) -> None:
    others = [tmp_path / name for name in ("notes.tmp", "000001.jpg", f"{'0a' * 20}.jpg", "folder")]
    for path in others[:-1]:
        path.write_bytes(bytes(4_000))
        os.utime(path, (0, 0))
    others[-1].mkdir()
    cache = RangeCache(str(tmp_path), max_bytes=5_000)
    for number in range(10):
        cache.put(str(number), content(number))
    assert all(path.exists() for path in others)


def test_a_lost_account_is_made_again(tmp_path: Path) -> None:
    cache = RangeCache(str(tmp_path), max_bytes=5_000)
    for number in range(4):
        cache.put(str(number), content(number))
    (tmp_path / ".total").write_text("garbage")
    for number in range(4, 8):
        cache.put(str(number), content(number))
        assert kept_bytes(tmp_path) <= 5_000


def test_a_folder_that_is_deleted_is_made_again(tmp_path: Path) -> None:
    cache = RangeCache(str(tmp_path / "cache"), max_bytes=5_000)
    cache.put("a", content(1))
    for path in (tmp_path / "cache").iterdir():
        path.unlink()
    (tmp_path / "cache").rmdir()
    assert cache.get("a", 1000) is None
    cache.put("a", content(1))
    assert cache.get("a", 1000) == content(1)


@pytest.mark.integration
def test_processes_and_threads_share_a_folder(tmp_path: Path) -> None:
    context: Any = multiprocessing.get_context("fork")
    with context.Pool(3) as processes, ThreadPoolExecutor(2) as threads:
        calls = [(str(tmp_path), 40_000, 50 * number) for number in range(5)]
        running = processes.starmap_async(fill, calls[:3], chunksize=1)
        mine = [threads.submit(fill, *call) for call in calls[3:]]
        assert running.get() == [0, 0, 0]
        assert [future.result() for future in mine] == [0, 0]
    assert kept_bytes(tmp_path) <= 40_000
    assert not list(tmp_path.glob("*.tmp"))


def test_a_folder_may_be_deleted_at_any_moment(tmp_path: Path) -> None:
    folder, stop = tmp_path / "cache", threading.Event()

    def delete() -> None:
        while not stop.is_set():
            shutil.rmtree(folder, ignore_errors=True)

    deleting = threading.Thread(target=delete)
    deleting.start()
    try:
        # Some hundred of these meet a deletion on their way.
        for number in range(3000):
            RangeCache(str(folder)).put(f"piece {number}", content(number))
    finally:
        stop.set()
        deleting.join()
    RangeCache(str(folder)).put("last", b"abc")
    assert RangeCache(str(folder)).get("last", 3) == b"abc"


def test_a_folder_that_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(StoreError, match=f"cache {blocked}: cannot keep 3 bytes") as caught:
        RangeCache(os.fspath(blocked)).put("a", b"abc")
    assert "\n" not in str(caught.value)
