"""The data lake: Waymo perception TFRecords as Parquet tables that anyone can query."""

from datalake.commit import LakeError
from datalake.lake import Lake, open_lake

__all__ = ["Lake", "LakeError", "open_lake"]
