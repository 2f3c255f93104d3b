"""Tests of teachers.training."""
