"""The project's own commands, as users start them, with a bound on their time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from tests.support.data import ROOT


def run_command(module: str, words: Sequence[str], most_s: float) -> tuple[int, str]:
    """Run `python -m MODULE WORDS`, and end it with all that it started when its time is up.

    Returns its status and the end of its output.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", module, *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=max(1.0, most_s))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        output += f"\nended: its {most_s:.0f} s were up"
    return process.returncode, output[-4000:]
