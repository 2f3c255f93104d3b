"""Measurements: each module is a command that prints a table, writes JSON, and fails where it must hold and does not."""
