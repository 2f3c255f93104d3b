"""A small run of the study of mutated records; `python -m benchmarks.mutations` is the whole of it."""

from __future__ import annotations

from benchmarks.mutations import MutationConfig, run_study


def test_no_mutation_crashes_hangs_or_is_lost() -> None:
    report = run_study(MutationConfig(count=82, seed=1, tiny=True, seconds_per_file=20))
    assert report.violations == []
    assert report.records == 82
