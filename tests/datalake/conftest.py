"""Fixtures that only the lake's own tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import s3fs

from benchmarks.faulty_store import Faults, FaultyStore


@pytest.fixture
def faulty_store(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyStore]:
    """A store before the S3 server that fails as it is told, where every client of the test goes."""
    assert s3_bucket
    with FaultyStore(os.environ["AWS_ENDPOINT_URL"], Faults()) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
        # A file system that is open already would go on asking the server itself.
        s3fs.S3FileSystem.clear_instance_cache()
        yield store
        s3fs.S3FileSystem.clear_instance_cache()
