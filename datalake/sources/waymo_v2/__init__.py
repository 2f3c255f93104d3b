"""Waymo perception 2.x: a folder for each component, a Parquet file in it for each segment."""
