"""Tests of student.training."""
