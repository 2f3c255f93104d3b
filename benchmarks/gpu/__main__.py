"""One GPU, measured in minutes: is it right, how fast is it, does it learn?

    python -m benchmarks.gpu --budget 480 --out OUT         # on a machine with a CUDA GPU
    python -m benchmarks.gpu --dry                          # every phase at tiny sizes on a CPU

    OUT/gpu.json       everything, rewritten after each phase
    OUT/gpu.txt        the tables, which are also the last lines of the output

Each phase runs in a process of its own, until its time is up: what one breaks or hangs in costs the others nothing. A
failure is a line of the tables and a traceback in the JSON, and the exit status is 1. It needs no Ray, and of the world
only what `benchmarks/gpu/carry.sh` has put into `.dev/`.
"""

from __future__ import annotations

import os
import sys

import tyro

from benchmarks.gpu.phases import Options, run

if __name__ == "__main__":
    # Processes beside each other would otherwise each take all cores.
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    sys.exit(run(tyro.cli(Options, description=__doc__)))
