"""Paths and clusters, inside a job and outside."""

from __future__ import annotations

from pathlib import Path

import pytest

from datalake.commit import LakeError
from pipelines.paths import absolute, cluster_address


@pytest.mark.parametrize("outside", [{}, {"RAY_ADDRESS": "http://head:8265"}], ids=["no address", "where jobs go"])
def test_outside_a_job_a_relative_path_is_of_this_folder(
    outside: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name, value in outside.items():
        monkeypatch.setenv(name, value)
    assert absolute("lake") == str(tmp_path / "lake")
    assert cluster_address() is None


def test_a_home_folder_that_the_shell_has_left_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    # As bash leaves it in --lake=~/lake.
    monkeypatch.setenv("HOME", "/home/me")
    assert absolute("~/lake") == "/home/me/lake"
    assert absolute("s3://bucket/~/lake") == "s3://bucket/~/lake"


@pytest.mark.parametrize("inside", [{"RAY_ADDRESS": "10.0.0.1:6379"}, {"RAY_JOB_ID": "01000000"}], ids=str)
def test_inside_a_job_a_relative_path_is_refused(inside: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in inside.items():
        monkeypatch.setenv(name, value)
    assert cluster_address() == inside.get("RAY_ADDRESS")
    assert absolute("/lake") == "/lake"
    assert absolute("s3://lake") == "s3://lake"
    with pytest.raises(LakeError, match="lake: a relative path would lie in the job's throw-away folder"):
        absolute("lake")
