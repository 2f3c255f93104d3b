"""Small simulated drives, and a lake of them by the same calls that a real build makes."""

from __future__ import annotations

from datalake.build import BuildConfig, build_segment
from datalake.lake import Lake, open_lake, prepare_lake, publish_snapshot
from datalake.plan import plan_segments
from datalake.sources.formats import index_source
from datalake.store import Store

DRIVE_CAMERAS = ("FRONT", "FRONT_LEFT")
DRIVE_SEGMENTS, DRIVE_FRAMES = 3, 11


def build_drives(sources: list[str], url: str) -> Lake:
    """Build the drives into a lake at `url` and open it."""
    store = Store(url)
    prepare_lake(store, "quantised")
    for plan in plan_segments(index_source(source) for source in sources):
        report = build_segment(plan, url, BuildConfig(cameras=DRIVE_CAMERAS))
        assert report.outcome == "committed", report.reason
    publish_snapshot(store)
    return open_lake(url)
