"""Tests of `datalake.synthetic`."""
