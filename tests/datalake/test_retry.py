"""What is tried again, how often, and what is said in the end; the errors are those of a real client."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.faulty_store import FaultKind, Faults, FaultyStore, Request
from datalake.lake import Lake
from datalake.retry import Retry, StoreError, UnavailableError
from datalake.store import Range, Store, UnknownOutcomeError
from tests.drives import DRIVE_FRAMES, DRIVE_SEGMENTS

QUICK = Retry(first_pause_s=0.01)
ALWAYS = Faults(share=1.0, streak=None)


def failing(kind: FaultKind, *methods: str, streak: int | None = 3) -> Faults:
    """Return faults of one kind for every request, or so many times in a row."""
    return Faults(share=1.0, kinds=(kind,), only=methods, streak=streak)


def faults(log: list[Request], method: str) -> list[str]:
    return [request.fault for request in log if request.method == method]


@pytest.fixture
def store(faulty_store: FaultyStore, s3_lake: str) -> Store:
    """A place on a store that works until it is told otherwise, asked again after hardly any pause."""
    assert faulty_store
    return Store(s3_lake, QUICK)


@pytest.mark.parametrize("kind", ["slow down", "internal error", "dropped before", "dropped after", "cut short"])
def test_a_read_is_repeated_until_it_is_answered(store: Store, faulty_store: FaultyStore, kind: FaultKind) -> None:
    store.write("a", b"content")
    faulty_store.log.clear()
    faulty_store.faults = failing(kind)
    assert store.read("a") == b"content"
    # Nobody below repeats as well: three faults, then the answer.
    assert faults(faulty_store.log, "GET") == [kind, kind, kind, ""]


@pytest.mark.parametrize("kind", ["slow down", "internal error", "dropped before", "dropped after"])
def test_a_write_is_repeated_until_it_is_confirmed(store: Store, faulty_store: FaultyStore, kind: FaultKind) -> None:
    faulty_store.faults = failing(kind, "PUT")
    store.write("a", b"content")
    assert faults(faulty_store.log, "PUT") == [kind, kind, kind, ""]
    assert store.read("a") == b"content"


def test_only_the_ranges_that_failed_are_read_again(store: Store, faulty_store: FaultyStore) -> None:
    data = os.urandom(10_000)
    store.write("a", data)
    faulty_store.log.clear()
    faulty_store.faults = Faults(share=0.4, seed=5)
    ranges = [Range("a", start, start + 500) for start in range(0, 10_000, 500)]
    assert store.read_ranges(ranges) == [data[piece.start : piece.stop] for piece in ranges]
    failed = sum(bool(request.fault) for request in faulty_store.log)
    assert 3 < failed == len(faulty_store.log) - len(ranges)


def test_the_last_error_says_what_where_and_how_often(store: Store, faulty_store: FaultyStore) -> None:
    faulty_store.faults = replace(ALWAYS, kinds=("slow down",))
    expected = rf"cannot read {store.url}/a: given up after 6 attempts in \d"
    with pytest.raises(UnavailableError, match=expected) as caught:
        store.read("a")
    assert len(faulty_store.log) == QUICK.attempts
    assert "\n" not in str(caught.value)


def test_the_default_gives_up_within_seconds(faulty_store: FaultyStore, s3_lake: str) -> None:
    faulty_store.faults = ALWAYS
    start = time.monotonic()
    with pytest.raises(UnavailableError):
        Store(s3_lake).read("a")
    assert 2 < time.monotonic() - start < 12


def test_nobody_listening_ends_in_one_line(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        for act in (Store.read, Store.exists, Store.size, Store.delete, Store.listing):
            with pytest.raises(UnavailableError, match=r"2 attempts") as caught:
                act(Store(f"{s3_bucket}/a", Retry(attempts=2)), "a")
            assert "\n" not in str(caught.value)
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


def test_a_missing_object_and_a_missing_bucket_are_not_asked_for_twice(store: Store, faulty_store: FaultyStore) -> None:
    with pytest.raises(FileNotFoundError, match=f"cannot read {store.url}/a"):
        store.read("a")
    assert len(faulty_store.log) == 1
    with pytest.raises(FileNotFoundError, match="cannot write s3://no-such-bucket/a"):
        Store("s3://no-such-bucket", QUICK).write("a", b"content")
    assert len(faulty_store.log) == 2


def test_an_object_that_ends_early_is_named(store: Store) -> None:
    store.write("a", bytes(100))
    with pytest.raises(StoreError, match=f"{store.url}/a: cut off: 60 of the 80 bytes from byte 40"):
        store.read_ranges([Range("a", 0, 50), Range("a", 40, 120)])


@pytest.mark.integration
def test_missing_credentials_end_in_one_line() -> None:
    code = "from datalake.store import Store; Store('s3://lake').read('a')"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= {
        "AWS_EC2_METADATA_DISABLED": "true",
        "HOME": "/nonexistent",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("datalake.retry.StoreError: cannot read s3://lake/a: NoCredentialsError")


@pytest.mark.parametrize("kind", ["dropped before", "dropped after"])
def test_a_created_object_is_ours_however_often_the_answer_was_lost(
    store: Store, faulty_store: FaultyStore, kind: FaultKind
) -> None:
    faulty_store.faults = failing(kind, "PUT")
    assert store.create("a", b"mine")
    faulty_store.faults = failing(kind, "PUT")
    assert not store.create("a", b"theirs")
    assert store.read("a") == b"mine"


def test_a_created_object_is_ours_when_a_kept_connection_loses_one_answer(
    store: Store, faulty_store: FaultyStore
) -> None:
    store.write("b", b"a connection to keep")
    # Below every retry that can be turned off, aiohttp sends the request again: "exists" is all that is ever seen.
    faulty_store.faults = failing("dropped after", "PUT", streak=1)
    assert store.create("a", b"mine")
    assert not store.create("a", b"theirs")


def test_an_object_that_is_there_is_found_out_where_the_store_names_no_condition(
    store: Store, faulty_store: FaultyStore
) -> None:
    faulty_store.terse = True
    assert store.create("a", b"mine")
    assert not store.create("a", b"theirs")
    assert store.read("a") == b"mine"


def test_a_created_object_is_ours_when_the_store_fails_behind_it(store: Store, faulty_store: FaultyStore) -> None:
    faulty_store.faults = failing("dropped after", "PUT", streak=None)
    assert store.create("a", b"mine")
    assert not store.create("a", b"theirs")


@pytest.mark.parametrize("methods", [(), ("PUT",)], ids=["everything fails", "nothing was written"])
def test_a_creation_that_cannot_be_settled_is_unknown(
    store: Store, faulty_store: FaultyStore, methods: tuple[str, ...]
) -> None:
    faulty_store.faults = failing("dropped before", *methods, streak=None)
    with pytest.raises(UnknownOutcomeError, match=f"{store.url}/a: created or not, unknown") as caught:
        store.create("a", b"mine")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["slow down", "internal error", "dropped before", "dropped after"])
def test_an_upload_in_parts_is_whole_whatever_answer_is_lost(
    store: Store, faulty_store: FaultyStore, kind: FaultKind
) -> None:
    data = os.urandom(40 << 20)
    faulty_store.faults = failing(kind, "PUT", "POST", streak=1)
    with store.sink("a") as sink:
        for start in range(0, len(data), 1 << 20):
            sink.write(data[start : start + (1 << 20)])
        assert not store.exists("a")
    assert faults(faulty_store.log, "PUT").count(kind) == 3
    assert b"".join(store.blocks("a")) == data
    assert sink.size == store.size("a") == len(data)


def test_an_upload_that_goes_on_failing_leaves_no_object(store: Store, faulty_store: FaultyStore) -> None:
    sink = Store(store.url, Retry(attempts=3)).sink("a")
    sink.write(bytes(1000))
    faulty_store.faults = failing("slow down", "PUT", streak=None)
    with pytest.raises(UnavailableError, match=rf"cannot write {store.url}/a: given up after 3 attempts"):
        sink.close()
    assert faults(faulty_store.log, "PUT") == ["slow down"] * 3
    faulty_store.faults = Faults()
    assert not store.exists("a")


def test_a_listing_of_several_pages_is_complete(store: Store, faulty_store: FaultyStore) -> None:
    names = [f"folder/{number:04}" for number in range(1100)]
    # Straight to the server: only the listing is to fail.
    store.fs.pipe({store.path(name): b"1" for name in names})
    faulty_store.log.clear()
    faulty_store.faults = failing("dropped after", streak=1)
    assert sorted(store.listing("folder")) == names
    assert faults(faulty_store.log, "GET") == ["dropped after", "", "dropped after", ""]


def test_pauses_grow_and_are_never_twice_the_same() -> None:
    retry = Retry(attempts=7, first_pause_s=1, longest_pause_s=10)
    for pauses_s in (list(retry.pauses_s()) for _ in range(20)):
        for pause_s, longest_s in zip(pauses_s, (1, 2, 4, 8, 10, 10), strict=True):
            assert longest_s / 2 <= pause_s <= longest_s
    assert len({tuple(retry.pauses_s()) for _ in range(20)}) == 20


@pytest.mark.parametrize(
    ("error", "calls"),
    [
        (ConnectionResetError(errno.ECONNRESET, "reset"), 6),
        (TimeoutError("slow"), 6),
        (OSError(errno.EBUSY, "slow down"), 6),
        (OSError(errno.EINVAL, "bad request"), 1),
        (PermissionError("no"), 1),
        (KeyError("a bug"), 1),
    ],
)
def test_only_what_may_pass_is_tried_again(error: Exception, calls: int) -> None:
    counter = itertools.count(1)
    last = 0

    def fail() -> Any:
        nonlocal last
        last = next(counter)
        raise error

    with pytest.raises((StoreError, PermissionError, KeyError)) as caught:
        QUICK.call(fail, lambda: "read a")
    assert last == calls
    assert isinstance(error, KeyError) == (caught.value is error)
    assert "read a" in str(caught.value) or isinstance(error, KeyError)


@pytest.mark.integration
def test_a_local_lake_needs_no_clients_of_object_stores(drive_lake: Lake) -> None:
    code = """
import sys
for name in ("s3fs", "gcsfs", "aiobotocore", "botocore", "aiohttp"):
    sys.modules[name] = None
from datalake.lake import open_lake
from datalake.loader import LoaderConfig, SampleStream
print(len(list(SampleStream(open_lake(sys.argv[1]), LoaderConfig(global_batch=4)))))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, drive_lake.store.root], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == DRIVE_SEGMENTS * DRIVE_FRAMES // 4 * 4
