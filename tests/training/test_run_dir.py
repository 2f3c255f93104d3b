"""Files appear whole, on a disk and in a store."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest

from training.run_dir import RunDir


@pytest.fixture(params=["disk", "file://", "memory://", "s3://"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a folder that is not there yet, with a slash too many."""
    if request.param == "s3://":
        return str(request.getfixturevalue("s3_lake")) + "/"
    if request.param == "memory://":
        return f"memory://runs/{uuid.uuid4().hex}/"
    return f"{'file://' if request.param == 'file://' else ''}{tmp_path}/runs/new/"


def test_what_is_written_is_read_and_replaced(url: str) -> None:
    folder = RunDir(url)
    assert folder.read("checkpoint.pt") is None
    folder.write("checkpoint.pt", b"first")
    assert folder.read("checkpoint.pt") == b"first"
    folder.write("checkpoint.pt", b"and second")
    assert RunDir(url).read("checkpoint.pt") == b"and second"
    assert folder.read("history.jsonl") is None
    assert folder.place("checkpoint.pt") == f"{url.rstrip('/')}/checkpoint.pt"


def test_only_a_folder_of_this_machine_is_local(url: str) -> None:
    local = RunDir(url).local
    if "memory" in url or "s3" in url:
        assert local is None
    else:
        assert local is not None
        assert str(local) == url.removeprefix("file://").rstrip("/")


def test_dying_while_writing_leaves_the_file_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunDir(str(tmp_path))
    folder.write("checkpoint.pt", b"whole")

    def dies(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", dies)
    with pytest.raises(KeyboardInterrupt):
        folder.write("checkpoint.pt", b"half")
    monkeypatch.undo()
    assert folder.read("checkpoint.pt") == b"whole"
    folder.write("checkpoint.pt", b"next")
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]
