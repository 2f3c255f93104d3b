"""What a unit test may not do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest


@pytest.mark.parametrize("start", [lambda: subprocess.run([sys.executable, "-c", ""], check=True), os.fork])
def test_a_unit_test_that_starts_a_process_fails(start: Callable[[], object]) -> None:
    with pytest.raises(AssertionError, match=r"test_tiers\.py.* starts a process .*: mark it integration"):
        start()
