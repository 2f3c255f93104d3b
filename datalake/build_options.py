"""What the commands that build a lake are given."""

from __future__ import annotations

from dataclasses import dataclass

from datalake.schema import PointMode
from datalake.sources.frame import ALL_CAMERAS


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Build a lake of Parquet tables from Waymo perception 1.x (TFRecords) or 2.x (Parquet components)."""

    # TFRecord files, or folders with components of 2.x: URLs, quoted globs, or .txt files with one of these a line.
    source: tuple[str, ...]
    # Where the lake is, or is to be: a local path, s3:// or gs://.
    lake: str
    # The split that the segments become part of.
    split: str = "train"
    # The cameras whose images, labels and depths are kept.
    cameras: tuple[str, ...] = ALL_CAMERAS
    # `quantised` rounds positions to 1/256 m (error at most 2 mm); `lossless` keeps every bit.
    points: PointMode = "quantised"
    # A segment fails when a larger share of its records is quarantined, whole or in part.
    max_quarantined: float = 0.1
    # Build segments also of files that end inside a record, such as downloads that broke off.
    allow_truncated: bool = False
    # Unreferenced files younger than this many hours may belong to a running build, and are kept.
    grace_hours: float = 24.0
