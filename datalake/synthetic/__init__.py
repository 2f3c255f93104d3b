"""Procedural drives, ray-cast for cameras and lidar alike, as official Waymo TFRecords."""

from datalake.synthetic.drive import DriveConfig, segment_name, simulate_segment
from datalake.synthetic.writer import write_drives

__all__ = ["DriveConfig", "segment_name", "simulate_segment", "write_drives"]
