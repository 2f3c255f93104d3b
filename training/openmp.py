"""How long torch's threads spin at OpenMP's barriers. Import it before torch: libgomp reads this as it is loaded.

By default libgomp's threads spin for some milliseconds before they sleep. Where another process holds a core, the
thread that all wait for may be the one that does not run, and those that spin keep it from running. A shorter time
costs 3 to 4 % on quiet cores and gains a student 5 % on busy ones (benchmarks/busy_cores.md). Processes that are
started inherit it.
"""

from __future__ import annotations

import os

import training.installed  # noqa: F401 - commands import this module first: their next import would be a traceback

if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "10000"
