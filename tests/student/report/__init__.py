"""Tests of `student.report`."""
