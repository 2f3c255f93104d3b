"""Tests of the container files; none needs an engine."""
