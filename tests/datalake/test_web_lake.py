"""A lake on a plain web server: read by ranges, never listed, never written."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from datalake.__main__ import main
from datalake.cache import RangeCache
from datalake.lake import Lake, open_lake
from datalake.loader import LoaderConfig, SampleStream
from datalake.retry import UnavailableError
from datalake.store import Store, StoreError
from datalake.verify import verify
from tests.drives import DRIVE_CAMERAS
from tests.support.programs import Call
from tests.support.sample_values import equal
from tests.support.web_server import WebServer, web_server


@pytest.fixture
def web(drive_lake: Lake) -> Iterator[WebServer]:
    """A server of the drives' lake that knows ranges."""
    with web_server(Path(drive_lake.store.root).parent) as server:
        server.url += f"/{Path(drive_lake.store.root).name}"
        yield server


def test_samples_of_a_web_server_are_those_of_the_disk(drive_lake: Lake, web: WebServer) -> None:
    config = LoaderConfig(global_batch=4, cameras=DRIVE_CAMERAS, boxes_3d=True, sweeps=1)
    found, expected = (list(SampleStream(lake, config)) for lake in (open_lake(web.url), drive_lake))
    assert all(equal(*pair) for pair in zip(found, expected, strict=True))
    read = [asked for _, path, asked in web.requests if path.endswith(".parquet")]
    assert read
    assert all(read)


def test_tables_of_a_web_server_are_those_of_the_disk(drive_lake: Lake, web: WebServer) -> None:
    lake, wanted = open_lake(web.url), ds.field("type") == "VEHICLE"
    found, expected = (each.scan("label", filter=wanted).to_table() for each in (lake, drive_lake))
    assert len(found) > 0
    assert found.equals(expected)
    assert [problems for _, problems in verify(lake)] == [[]] * len(lake.commits)


@pytest.mark.parametrize("absent", [404, 403])
def test_the_newest_snapshot_is_found_without_a_listing(own_lake: Lake, absent: int) -> None:
    root = Path(own_lake.store.root)
    first = json.loads((root / "_snapshots/1.json").read_text())
    for number in range(2, 8):
        (root / f"_snapshots/{number}.json").write_text(json.dumps({**first, "number": number}))
    with web_server(root) as server:
        server.absent = absent
        assert open_lake(server.url).snapshot == 7
        assert open_lake(server.url, snapshot=3).snapshot == 3
        asked = [path for _, path, _ in server.requests if path.startswith("_snapshots/")]
        assert set(asked) <= {f"_snapshots/{number}.json" for number in range(1, 9)}


def test_a_server_without_ranges_is_refused_in_one_line(drive_lake: Lake) -> None:
    with web_server(Path(drive_lake.store.root), ranges=False) as server:
        for snapshot in (None, 1):
            with pytest.raises(StoreError, match="answers with the whole file where a range of it was asked") as caught:
                open_lake(server.url, snapshot)
            assert "\n" not in str(caught.value)
        assert not any(path.endswith(".parquet") for _, path, _ in server.requests)


def test_a_command_ends_with_that_line(drive_lake: Lake, call: Call) -> None:
    with web_server(Path(drive_lake.store.root), ranges=False) as server:
        assert "that knows ranges" in call.refused(main, ["info", "--lake", server.url])


def test_a_server_that_fails_for_a_moment_is_asked_again(drive_lake: Lake) -> None:
    with web_server(Path(drive_lake.store.root)) as server:
        server.failures = {"_lake.json": [503, 502], "_snapshots/1.json": [500]}
        assert open_lake(server.url).snapshot == 1


def test_a_refusal_is_told_in_one_line(drive_lake: Lake) -> None:
    with web_server(Path(drive_lake.store.root)) as server:
        server.failures = {"_lake.json": [401]}
        with pytest.raises(StoreError, match=r"cannot read http://\S+/_lake.json: ClientResponseError: 401") as caught:
            open_lake(server.url)
    assert "\n" not in str(caught.value)


def test_nothing_is_written_to_a_web_server_and_nothing_listed(web: WebServer) -> None:
    store = pickle.loads(pickle.dumps(open_lake(web.url).store))
    for act in (store.create, store.write):
        with pytest.raises(StoreError, match="a lake on a web server cannot be written to"):
            act("a.json", b"{}")
    with pytest.raises(StoreError, match="cannot be written to"):
        store.sink("a.parquet")
    with pytest.raises(StoreError, match="cannot be written to"):
        store.delete("_lake.json")
    with pytest.raises(StoreError, match="cannot be listed"):
        store.listing("train")
    assert {method for method, _, _ in web.requests} <= {"GET", "HEAD"}
    with pytest.raises(StoreError, match="create-if-absent"):
        Store(web.url)


def test_a_cache_spares_the_web_server_a_second_epoch(web: WebServer, tmp_path: Path) -> None:
    lake = open_lake(web.url, cache=RangeCache(str(tmp_path)))
    config = LoaderConfig(global_batch=4)
    first = list(SampleStream(lake, config))
    before = len(web.requests)
    again = list(SampleStream(lake, config))
    assert all(equal(*pair) for pair in zip(first, again, strict=True))
    assert len(web.requests) == before


def test_a_sample_is_asked_for_anew_after_an_outage(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(*_: object) -> list[bytes]:
        raise UnavailableError("the server does not answer")

    samples = open_lake(web.url).dataset_of_samples()
    with monkeypatch.context() as patch:
        patch.setattr(Store, "read_ranges", unavailable)
        with pytest.raises(UnavailableError):
            samples[0]
    assert samples[0].key.camera == "FRONT"
