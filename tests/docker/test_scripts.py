"""The small programs that run in the containers."""

from __future__ import annotations

import configparser
import functools
import http.server
import json
import os
import re
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import botocore.session  # type: ignore[import-untyped]
import fsspec
import pytest
import torch

from teachers.sparse.torchsparse_backend import TorchsparseBackend
from tests.docker.files import ROOT

pytestmark = pytest.mark.integration

OBSTACLES = [TorchsparseBackend().obstacle(torch.device(name)) for name in ("cpu", "cuda")]


def script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "docker" / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """The URL of a server whose only page is /healthy."""
    (tmp_path / "healthy").write_text("success")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_health_is_good_where_every_url_answers(site: str) -> None:
    done = script("health.py", f"{site}/healthy", f"{site}/healthy")
    assert (done.returncode, done.stderr) == (0, "")


def test_health_is_bad_where_one_url_does_not_answer_well(site: str) -> None:
    done = script("health.py", f"{site}/healthy", f"{site}/missing", "http://127.0.0.1:1/")
    assert done.returncode == 1
    first, second = done.stderr.splitlines()
    assert re.fullmatch(rf"health: {site}/missing: .*404.*", first)
    assert re.fullmatch(r"health: http://127\.0\.0\.1:1/: .*refused.*", second)


def test_health_of_nothing_is_a_mistake() -> None:
    assert script("health.py").returncode == 2


def test_credentials_are_made_once_and_kept(tmp_path: Path) -> None:
    assert script("credentials.py", str(tmp_path)).returncode == 0
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert set(before) == {"ray_token", "aws", "s3.json"}
    assert script("credentials.py", str(tmp_path)).returncode == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before


def test_no_two_places_have_the_same_credentials(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        assert script("credentials.py", str(tmp_path / name)).returncode == 0
    for name in ("ray_token", "aws", "s3.json"):
        assert (tmp_path / "one" / name).read_text() != (tmp_path / "two" / name).read_text()


def test_only_their_owner_can_read_credentials(tmp_path: Path) -> None:
    assert script("credentials.py", str(tmp_path)).returncode == 0
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


def test_clients_and_store_read_the_same_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert script("credentials.py", str(tmp_path)).returncode == 0
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    client = botocore.session.Session().get_credentials()
    (identity,) = json.loads((tmp_path / "s3.json").read_text())["identities"]
    assert identity["credentials"] == [{"accessKey": client.access_key, "secretKey": client.secret_key}]
    assert len(client.secret_key) == len((tmp_path / "ray_token").read_text()) == 64


def test_a_start_that_was_broken_off_is_finished(tmp_path: Path) -> None:
    assert script("credentials.py", str(tmp_path)).returncode == 0
    whole = (tmp_path / "s3.json").read_text()
    (tmp_path / "s3.json").unlink()
    (tmp_path / ".s3.json.part").write_text("{")
    assert script("credentials.py", str(tmp_path)).returncode == 0
    assert (tmp_path / "s3.json").read_text() == whole
    assert not (tmp_path / ".s3.json.part").exists()


def test_credentials_that_cannot_be_read_end_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "aws").write_text("no profile\n")
    done = script("credentials.py", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith("credentials: ")
    assert "Traceback" not in done.stderr
    with pytest.raises(configparser.Error):
        configparser.ConfigParser().read_string((tmp_path / "aws").read_text())


def test_a_report_is_published_into_a_bucket_that_was_not_there(s3_bucket: str, tmp_path: Path) -> None:
    del s3_bucket  # its server is what is wanted
    report = tmp_path / "report.html"
    report.write_bytes(os.urandom(1 << 16))
    url = f"s3://bucket-{os.getpid()}/demo/report.html"
    for _ in range(2):
        done = script("publish.py", str(report), url)
        assert (done.returncode, done.stdout) == (0, f"{url}: 65,536 bytes\n"), done.stderr
    with fsspec.open(url, "rb") as stored:
        assert stored.read() == report.read_bytes()


def test_a_report_that_is_missing_ends_in_one_line(tmp_path: Path) -> None:
    done = script("publish.py", str(tmp_path / "none.html"), f"file://{tmp_path}/copy.html")
    assert done.returncode == 2
    assert re.fullmatch(r"publish: .*none\.html.*\n", done.stderr)


@pytest.mark.skipif(OBSTACLES == [None, None], reason="torchsparse for CUDA is here: the check passes")
def test_the_build_of_a_cuda_image_without_torchsparse_for_cuda_fails() -> None:
    done = script("torchsparse_check.py")
    assert done.returncode != 0
    assert "torchsparse" in done.stderr.splitlines()[-1]
