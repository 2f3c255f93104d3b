"""How much memory a student's training took."""

from __future__ import annotations

import torch

from pipelines.peak_memory import PeakMemory


def test_the_peak_is_that_since_it_was_made_and_counts_what_is_freed_again() -> None:
    before = torch.ones(60 << 20, dtype=torch.uint8)
    del before
    memory = PeakMemory(torch.device("cpu"))
    started = memory.bytes
    assert started is not None
    during = torch.ones(100 << 20, dtype=torch.uint8)
    del during
    assert memory.bytes is not None
    # What was freed before does not count; the allocation does, but for pages that were there already.
    assert 80 << 20 < memory.bytes - started < 120 << 20
