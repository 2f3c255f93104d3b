"""Tests of `datalake`."""
