"""Tests of `datalake.waymo`."""
