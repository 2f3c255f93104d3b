"""Fixtures that every package's tests share."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import hypothesis
import pytest
import torch
from torch import Tensor

from datalake.lake import Lake, open_lake
from datalake.synthetic import DriveConfig, write_drives
from pipelines.cluster import cluster
from tests.drives import DRIVE_CAMERAS, DRIVE_FRAMES, DRIVE_SEGMENTS, build_drives
from tests.support.programs import Call

# On a developer's machine properties look for new counter-examples in every run; a gate has to give the same answer
# for the same code.
hypothesis.settings.register_profile("gate", derandomize=True)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("gate")


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """The address of the tests' only Ray cluster; `ray_cluster` and `ray_driver` join it."""
    assert "RAY_ADDRESS" not in os.environ
    # Unit tests do without the second that Ray takes to be imported.
    from tests.support.ray_cluster import ray_cluster

    with ray_cluster() as address:
        yield address


@pytest.fixture
def ray_cluster(ray_address: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have whatever connects to Ray in this test, or in programs that it starts, join the tests' cluster."""
    from tests.support.ray_cluster import join

    join(ray_address, monkeypatch)
    return ray_address


@pytest.fixture(scope="module")
def ray_driver(ray_address: str) -> Iterator[None]:
    """A connection to the tests' cluster, for all tests of a module."""
    from tests.support.ray_cluster import join

    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            join(ray_address, patch)
            stack.enter_context(cluster())
        yield


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Calls a command in this process: `call(main, words)` returns its status and what it said."""
    return Call(monkeypatch, capfd)


_REAL_DATA = Path(__file__).parents[2] / "shared/data"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real inputs beside the checkout; tests that need it are skipped, by name, where it is missing."""
    if not _REAL_DATA.is_dir():
        pytest.skip(f"real inputs are missing: no folder {_REAL_DATA}")
    return _REAL_DATA


@pytest.fixture(scope="session")
def public_state(real_data: Path) -> dict[str, Tensor]:
    """A state dict as the authors publish it, with seeded weights."""
    path = real_data.parent / "tools/seeded_weights.py"
    if not path.is_file():
        pytest.skip(f"the seeded weights are missing: no file {path}")
    spec = importlib.util.spec_from_file_location("seeded_weights", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shapes = json.loads((real_data / "spvnas_65gmacs_state_dict_shapes.json").read_text())
    return {key: torch.from_numpy(value) for key, value in module.seeded_weights(shapes).items()}


@pytest.fixture(scope="session")
def s3_bucket() -> Iterator[str]:
    """The URL of a bucket on an S3 server of our own, which answers one request after the other.

    Or on that at `TEST_S3_ENDPOINT`, any real store, with credentials from the environment.
    """
    import s3fs

    if endpoint := os.environ.get("TEST_S3_ENDPOINT"):
        os.environ["AWS_ENDPOINT_URL"] = endpoint
        bucket = f"test-{uuid.uuid4().hex}"
        s3fs.S3FileSystem().mkdir(bucket)
        yield f"s3://{bucket}"
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().rm(bucket, recursive=True)
        return
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    # Not threaded: moto's own test-and-write is no more atomic than a dictionary, the real store's is.
    server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        s3fs.S3FileSystem().mkdir("lakes")
        yield "s3://lakes"
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.shutdown()
        thread.join()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


@pytest.fixture
def s3_lake(s3_bucket: str) -> str:
    """The URL of a place on S3 where nothing is yet."""
    return f"{s3_bucket}/{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def drive_sources(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The TFRecords of three tiny simulated drives."""
    config = DriveConfig(image_width=96, image_height=64, beams=16, columns=80, cameras=DRIVE_CAMERAS)
    folder = tmp_path_factory.mktemp("drives")
    return write_drives(str(folder), config, segments=DRIVE_SEGMENTS, frames=DRIVE_FRAMES, seed=3)


@pytest.fixture(scope="session")
def drive_lake(drive_sources: list[str], tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """The lake of the drives: 3 segments of 11 frames, two cameras, chunks of 8 images. Read only."""
    return build_drives(drive_sources, str(tmp_path_factory.mktemp("lake")))


@pytest.fixture
def own_lake(drive_lake: Lake, tmp_path: Path) -> Lake:
    """The same lake, for one test to damage."""
    shutil.copytree(drive_lake.store.root, tmp_path / "lake")
    return open_lake(str(tmp_path / "lake"))
