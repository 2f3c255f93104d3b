"""Which files the arguments of a build name, however odd their names and the lists of them are."""

from __future__ import annotations

import http.server
import os
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import botocore.exceptions  # type: ignore[import-untyped]
import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from datalake.build import BuildConfig
from datalake.commit import LakeError
from datalake.fanout import build_lake
from datalake.process_tasks import run_in_processes
from datalake.retry import Retry
from datalake.source_list import list_sources
from datalake.sources.formats import index_source
from tests.frames import make_frames, write_frames
from tests.lakes import write_bytes


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file of two records."""
    write_frames(tmp_path / "a.tfrecord", make_frames(2))
    return tmp_path / "a.tfrecord"


def test_one_file_by_several_names_is_one_source(source: Path, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    link = tmp_path / "links/z.tfrecord"
    link.symlink_to(source)
    names = [str(link), str(tmp_path / "links/../a.tfrecord"), str(source), f"file://{source}"]
    assert list_sources(names) == [f"file://{source}"]


def test_dots_behind_a_link_lead_where_the_disk_has_them(source: Path, tmp_path: Path) -> None:
    (tmp_path / "deep/er").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep/er")
    write_frames(tmp_path / "deep/a.tfrecord", make_frames(1))
    (found,) = list_sources([f"{tmp_path}/link/../a.tfrecord"])
    assert os.path.realpath(found.removeprefix("file://")) == str(tmp_path / "deep/a.tfrecord")
    assert found != f"file://{source}"


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        ("gs", r"pip install 'classroomnet\[gcs\]'"),
        ("abfs", "Install adlfs"),
        ("foo", "Protocol not known: foo"),
    ],
)
def test_protocol_without_its_client_is_one_line(protocol: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if protocol == "gs":
        monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(LakeError, match=message) as caught:
        list_sources([f"{protocol}://bucket/*.tfrecord"])
    assert "\n" not in str(caught.value)


class Moody(MemoryFileSystem):
    """A store that answers a listing with the errors that it is given, then as it should."""

    protocol = "moody"
    store: dict[str, object] = {}  # noqa: RUF012 - fsspec's own way
    errors: list[Exception] = []  # noqa: RUF012

    def glob(self, path: str, **_: object) -> list[str]:
        if self.errors:
            raise self.errors.pop()
        return [path.replace("*", "a")]


@pytest.fixture
def moody(monkeypatch: pytest.MonkeyPatch) -> type[Moody]:
    """The store, as moody://."""
    fsspec.register_implementation("moody", Moody, clobber=True)
    monkeypatch.setattr("datalake.source_list._LISTING", Retry(attempts=3, first_pause_s=0.01))
    return Moody


def test_listing_that_fails_for_a_moment_is_asked_for_again(moody: type[Moody]) -> None:
    moody.errors[:] = [ConnectionResetError("gone"), ConnectionResetError("gone")]
    assert list_sources(["moody://bucket/*.tfrecord"]) == ["moody://bucket/a.tfrecord"]


@pytest.mark.parametrize(
    "error",
    [PermissionError("Access Denied"), botocore.exceptions.NoCredentialsError(), TimeoutError("no answer")],
    ids=lambda error: type(error).__name__,
)
def test_listing_that_is_refused_is_a_line_of_the_report_and_the_rest_goes_on(
    moody: type[Moody], source: Path, error: Exception
) -> None:
    moody.errors[:] = [error] * 3
    refused: dict[str, str] = {}
    assert list_sources(["moody://bucket/*.tfrecord", str(source)], refused) == [f"file://{source}"]
    (reason,) = refused.values()
    assert "cannot list moody://bucket/*.tfrecord" in reason
    moody.errors.clear()


@pytest.mark.parametrize("name", ["a[1].tfrecord", "run[1]/*.tfrecord", "run[1]/b*[2].tfrecord"])
def test_brackets_of_a_path_that_exists_are_meant_literally(source: Path, tmp_path: Path, name: str) -> None:
    for path in ("a[1].tfrecord", "a1.tfrecord", "run[1]/b2.tfrecord", "run1/c.tfrecord"):
        write_bytes(tmp_path / path, source.read_bytes())
    expected = "a[1].tfrecord" if name.startswith("a") else "run[1]/b2.tfrecord"
    (found,) = list_sources([f"{tmp_path}/{name}"])
    assert found == f"file://{tmp_path}/{expected}"
    assert list(index_source(found).records) == ["segment_a"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("line", ["{}", '"{}"', "'{}'", "  {}  ", "{} # the first", '"{}"  # in quotes', "{}\r"])
def test_list_is_read_however_it_was_written(source: Path, tmp_path: Path, encoding: str, line: str) -> None:
    listing = tmp_path / "list.txt"
    listing.write_bytes(f"# all of them\n\n{line.format(source)}\n".encode(encoding))
    assert list_sources([str(listing)]) == [f"file://{source}"]


@pytest.mark.parametrize("data", [b"\xff\xfea", b"/a\xe9.tfrecord\n", "/a\n".encode("utf-16-le")])
def test_list_that_is_no_text_is_refused_in_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "list.txt").write_bytes(data)
    with pytest.raises(LakeError, match=r"list\.txt: the list of sources is .*save it as UTF-8"):
        list_sources([str(tmp_path / "list.txt")])


def test_file_whose_name_is_not_utf_8_is_a_line_of_the_report(source: Path, tmp_path: Path) -> None:
    # Of a segment whose files are called after it, others need not be read.
    source.rename(tmp_path / "segment_a.tfrecord")
    odd = os.fsencode(tmp_path) + b"/\xe9.tfrecord"
    Path(os.fsdecode(odd)).write_bytes(b"")
    report = build_lake(
        [f"{tmp_path}/*.tfrecord"], str(tmp_path / "lake"), BuildConfig(), lambda _: None, run=run_in_processes
    )
    assert [segment.outcome for segment in report.segments] == ["committed"]
    assert report.failures == {f"file://{tmp_path}/\\udce9.tfrecord": "its name is not UTF-8; rename it"}


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize("inner", ["*.tfrecord", "in/a.tfrecord"])
def test_records_in_an_archive_are_read_by_a_chained_url(source: Path, tmp_path: Path, kind: str, inner: str) -> None:
    archive = tmp_path / f"all.{kind}"
    if kind == "tar":
        with tarfile.open(archive, "w") as tar:
            tar.add(source, "in/a.tfrecord")
    else:
        with zipfile.ZipFile(archive, "w") as packed:
            packed.write(source, "in/a.tfrecord")
    pattern = f"{kind}://{inner.replace('*', 'in/*')}::{archive}"
    (found,) = list_sources([pattern])
    assert found == f"{kind}://in/a.tfrecord::{archive}"
    assert len(index_source(found).records["segment_a"]) == 2


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """The URL of a server of the folder that knows no ranges."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(tmp_path))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


def test_web_server_without_ranges_is_read_all_the_same(source: Path, web: str) -> None:
    (found,) = list_sources([f"{web}/a.tfrecord"])
    index = index_source(found)
    assert index.bytes == source.stat().st_size
    assert len(index.records["segment_a"]) == 2


def test_a_line_of_brackets_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("[" * 100_000 + "\n")
    with pytest.raises(LakeError, match=r"100,000 characters are no path"):
        list_sources([str(tmp_path / "list.txt")])


def test_a_line_of_nothing_in_quotes_names_nothing(tmp_path: Path) -> None:
    file = tmp_path / "one.tfrecord"
    file.write_bytes(b"")
    (tmp_path / "list.txt").write_text(f"' '\n{file}\n")
    assert list_sources([str(tmp_path / "list.txt")]) == [f"file://{file}"]
