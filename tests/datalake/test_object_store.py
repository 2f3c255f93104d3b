"""A lake on an object store that is slow and fails: the same lake, in few requests."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.faulty_store import Faults, FaultyStore, Request
from datalake.cache import RangeCache
from datalake.lake import Lake, open_lake
from datalake.loader import LoaderConfig, SampleStream
from datalake.retry import UnavailableError
from datalake.sample import Sample
from datalake.store import Store
from datalake.vacuum import unreferenced
from datalake.verify import verify
from tests.datalake.test_loader import equal
from tests.drives import DRIVE_SEGMENTS, build_drives

CONFIG = LoaderConfig(global_batch=4, streams=8, panoptic=True)
TABLES_READ = 4


def samples(lake: Lake, config: LoaderConfig = CONFIG) -> list[Sample]:
    return [sample for batch in SampleStream(lake, config).loader() for sample in batch]


def upload(lake: Lake, url: str) -> Lake:
    """Copy a lake to a store and open it there."""
    store = Store(url)
    for name in lake.store.listing(""):
        store.write(name, lake.store.read(name))
    return open_lake(url)


def of_tables(log: list[Request]) -> list[Request]:
    return [request for request in log if ".parquet" in request.path]


@pytest.mark.parametrize("faults", [Faults(share=0.01, seed=1), Faults(share=0.1, seed=2)], ids=["1 %", "10 %"])
def test_a_lake_built_and_read_over_a_failing_store_is_the_one_on_a_disk(
    drive_sources: list[str], drive_lake: Lake, s3_lake: str, faulty_store: FaultyStore, faults: Faults
) -> None:
    faulty_store.faults = faults
    remote = build_drives(drive_sources, s3_lake)
    for table in remote.tables:
        assert remote.scan(table).to_table() == drive_lake.scan(table).to_table()
    assert all(problems == [] for _, problems in verify(remote))
    assert unreferenced(remote.store, "train", grace_s=0) == []
    left, right = samples(remote), samples(drive_lake)
    assert [sample.key for sample in left] == [sample.key for sample in right]
    assert all(equal(one, other) for one, other in zip(left, right, strict=True))
    kinds = {request.fault for request in faulty_store.log} - {""}
    assert len(kinds) == 5 or faults.share < 0.1
    assert kinds


def test_a_commit_whose_answers_are_lost_keeps_its_files(
    drive_sources: list[str], s3_lake: str, faulty_store: FaultyStore
) -> None:
    faulty_store.faults = Faults(share=1.0, kinds=("dropped after",), only=("PUT",))
    lake = build_drives(drive_sources[:1], s3_lake)
    assert len(lake.commits) == 1
    assert all(problems == [] for _, problems in verify(lake))


def test_a_store_that_fails_for_ever_ends_in_one_line(
    drive_lake: Lake, s3_lake: str, faulty_store: FaultyStore
) -> None:
    lake = upload(drive_lake, s3_lake)
    faulty_store.faults = Faults(share=1.0, streak=None)
    start = time.monotonic()
    with pytest.raises(UnavailableError, match=rf"cannot read {s3_lake}/train/.*: given up after 6 attempts") as caught:
        samples(lake)
    # The chunks of a segment do not wait one after the other.
    assert time.monotonic() - start < 12
    assert "\n" not in str(caught.value)


def test_a_file_that_is_gone_is_named_at_once(drive_lake: Lake, s3_lake: str, faulty_store: FaultyStore) -> None:
    lake = upload(drive_lake, s3_lake)
    name = lake.commits[0].file_name("depth")
    lake.store.delete(name)
    faulty_store.log.clear()
    with pytest.raises(FileNotFoundError, match=f"{s3_lake}/{name}"):
        samples(lake)
    asked = [request for request in faulty_store.log if request.path.endswith(name)]
    # By each chunk that was being read, once.
    assert 1 <= len(asked) <= len(lake.commits[0].chunks)


def test_an_epoch_reads_each_footer_once_and_each_chunk_once(
    drive_lake: Lake, s3_lake: str, faulty_store: FaultyStore
) -> None:
    lake = upload(drive_lake, s3_lake)
    faulty_store.log.clear()
    assert len(samples(lake)) == len(samples(drive_lake))
    log = of_tables(faulty_store.log)
    # Nothing else is asked: no sizes, no listings.
    assert log == faulty_store.log
    assert {request.method for request in log} == {"GET"}
    assert len({(request.path, request.range) for request in log}) == len(log)
    chunks = sum(len(commit.chunks) for commit in lake.commits)
    assert len(log) <= TABLES_READ * (DRIVE_SEGMENTS + chunks)


def test_opening_a_lake_never_lists(drive_lake: Lake, s3_lake: str, faulty_store: FaultyStore) -> None:
    upload(drive_lake, s3_lake)
    faulty_store.log.clear()
    lake = open_lake(s3_lake)
    assert lake.scan("label").count_rows() == drive_lake.scan("label").count_rows()
    assert {request.method for request in faulty_store.log} == {"GET"}
    assert not any(request.lists for request in faulty_store.log)


def test_many_reads_in_flight_hide_the_latency(drive_lake: Lake, s3_lake: str, faulty_store: FaultyStore) -> None:
    lake = upload(drive_lake, s3_lake)
    faulty_store.faults = Faults(latency_s=0.2)
    faulty_store.most_running = 0
    samples(lake, replace(CONFIG, reads=1))
    assert faulty_store.most_running == TABLES_READ
    samples(lake, replace(CONFIG, reads=4))
    # Two tables are so small that they came with their footers.
    assert TABLES_READ < faulty_store.most_running <= 4 * TABLES_READ


def test_the_number_of_reads_does_not_change_the_samples(drive_lake: Lake, s3_lake: str) -> None:
    lake = upload(drive_lake, s3_lake)
    for reads in (1, 3, 64):
        keys = [sample.key for sample in samples(lake, replace(CONFIG, reads=reads))]
        assert keys == [sample.key for sample in samples(drive_lake)]


def test_the_second_epoch_comes_from_the_cache(
    drive_lake: Lake, s3_lake: str, faulty_store: FaultyStore, tmp_path: Path
) -> None:
    upload(drive_lake, s3_lake)
    lake = open_lake(s3_lake, cache=RangeCache(str(tmp_path / "cache")))
    first = samples(lake)
    faulty_store.log.clear()
    second = samples(lake)
    assert faulty_store.log == []
    assert all(equal(one, other) for one, other in zip(first, second, strict=True))


def test_a_damaged_cache_is_read_again(
    drive_lake: Lake, s3_lake: str, faulty_store: FaultyStore, tmp_path: Path
) -> None:
    upload(drive_lake, s3_lake)
    lake = open_lake(s3_lake, cache=RangeCache(str(tmp_path / "cache")))
    first = samples(lake)
    kept = [path for path in (tmp_path / "cache").iterdir() if not path.name.startswith(".")]
    for number, path in enumerate(sorted(kept)):
        data = bytearray(path.read_bytes())
        if number % 3 == 0:
            data[len(data) // 2] ^= 1
        path.write_bytes(data[: len(data) // 2] if number % 3 == 1 else data)
    faulty_store.log.clear()
    second = samples(lake)
    assert len(faulty_store.log) == -(-len(kept) // 3) + len(kept[1::3])
    assert all(equal(one, other) for one, other in zip(first, second, strict=True))
