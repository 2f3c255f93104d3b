"""Measurements: each module is a command that prints a table, writes JSON, and fails where a promise is not kept."""
