"""Commands of a user whose home folder cannot be written."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from datalake.lake import Lake, open_lake
from pipelines.cluster import _have_token
from tests.support.data import ROOT
from tests.support.programs import environment


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home folder in which even root can make no folder: it is a file."""
    (tmp_path / "home").touch()
    return tmp_path / "home"


def _run(words: Sequence[str], home: Path) -> subprocess.CompletedProcess[str]:
    unset = {"MPLCONFIGDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}
    kept = {name: value for name, value in environment({"HOME": str(home)}).items() if name not in unset}
    return subprocess.run([sys.executable, *words], cwd=ROOT, env=kept, capture_output=True, text=True, timeout=300)


@pytest.mark.integration
def test_a_build_on_ray_needs_no_home(drive_sources: list[str], home: Path, tmp_path: Path) -> None:
    words = ["--source", drive_sources[0], "--lake", str(tmp_path / "lake")]
    ended = _run([str(ROOT / "pipelines/build_lake.py"), *words], home)
    assert ended.returncode == 0, ended.stderr
    assert len(open_lake(str(tmp_path / "lake")).commits) == 1


@pytest.mark.integration
def test_a_frame_is_shown_without_a_home(drive_lake: Lake, home: Path, tmp_path: Path) -> None:
    words = ["--lake", drive_lake.store.url, "--out", str(tmp_path / "frame.png")]
    ended = _run(["-m", "datalake", "show", *words], home)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "frame.png").exists()


@pytest.mark.parametrize("writable", [True, False])
def test_ray_gets_a_token_of_its_own_where_it_can_keep_none(
    writable: bool, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path if writable else home))
    # So that it is as before also after what is set in the test.
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    _have_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == (0 if writable else 64)


def test_a_token_that_is_there_is_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    _have_token()
    assert os.environ["RAY_AUTH_TOKEN"] == "mine"
