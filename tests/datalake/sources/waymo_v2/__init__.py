"""Tests of `datalake.sources.waymo_v2`."""
