"""What the teachers' tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from datalake.build import BuildConfig, build_segment
from datalake.lake import open_lake, prepare_lake, publish_snapshot
from datalake.loader import LoaderConfig, SampleStream
from datalake.plan import plan_segments
from datalake.sample import Sample
from datalake.sources.formats import index_source
from datalake.store import Store
from datalake.synthetic import DriveConfig, write_drives

DRIVE = DriveConfig(image_width=96, image_height=64, beams=32, columns=160, cameras=("FRONT", "FRONT_LEFT"))


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other on a busy machine take ten times as long as one that waits for nobody."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def drive_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a lake of one simulated segment: three frames, two cameras, points and pixels labelled. Read only."""
    folder = tmp_path_factory.mktemp("teachers")
    url = str(folder / "lake")
    store = Store(url)
    prepare_lake(store, "quantised")
    sources = write_drives(str(folder / "drives"), DRIVE, segments=1, frames=3, seed=3)
    for plan in plan_segments(index_source(source) for source in sources):
        report = build_segment(plan, url, BuildConfig(cameras=DRIVE.cameras))
        assert report.outcome == "committed", report.reason
    publish_snapshot(store)
    return url


@pytest.fixture(scope="session")
def drive_samples(drive_url: str) -> list[Sample]:
    """Its six samples, the two cameras of a frame beside each other. Read only."""
    config = LoaderConfig(cameras=DRIVE.cameras, panoptic=True, shuffle=False, global_batch=2)
    return list(SampleStream(open_lake(drive_url), config))
