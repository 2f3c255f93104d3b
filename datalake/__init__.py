"""The data lake: Waymo perception TFRecords as Parquet tables that anyone can query."""
