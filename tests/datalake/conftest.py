"""A small lake of simulated drives that the readers' tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from datalake.build import BuildConfig, build_segment
from datalake.lake import Lake, open_lake, prepare_lake, publish_snapshot
from datalake.plan import index_source, plan_segments
from datalake.store import Store
from datalake.synthetic import DriveConfig, write_drives

DRIVE_CAMERAS = ("FRONT", "FRONT_LEFT")
DRIVE_SEGMENTS, DRIVE_FRAMES = 3, 11


@pytest.fixture(scope="session")
def drive_sources(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The TFRecords of three tiny simulated drives."""
    config = DriveConfig(image_width=96, image_height=64, beams=16, columns=80, cameras=DRIVE_CAMERAS)
    folder = tmp_path_factory.mktemp("drives")
    return write_drives(str(folder), config, segments=DRIVE_SEGMENTS, frames=DRIVE_FRAMES, seed=3)


def build_drives(sources: list[str], url: str) -> Lake:
    """Build the drives into a lake at `url` and open it."""
    store = Store(url)
    prepare_lake(store, "quantised")
    for plan in plan_segments(index_source(source) for source in sources):
        report = build_segment(plan, url, BuildConfig(cameras=DRIVE_CAMERAS))
        assert report.outcome == "committed", report.reason
    publish_snapshot(store)
    return open_lake(url)


@pytest.fixture(scope="session")
def drive_lake(drive_sources: list[str], tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """The lake of the drives: 3 segments of 11 frames, two cameras, chunks of 8 images. Read only."""
    return build_drives(drive_sources, str(tmp_path_factory.mktemp("lake")))


@pytest.fixture
def own_lake(drive_sources: list[str], tmp_path: Path) -> Lake:
    """The same lake, for one test to damage."""
    return build_drives(drive_sources, str(tmp_path / "lake"))
