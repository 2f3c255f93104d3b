"""One local Ray cluster for many tests, which join it as a job's driver joins its cluster.

To start a cluster takes as long as a dozen small tests. Only what is killed with its cluster needs one of its own.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from ray._raylet import Config  # type: ignore[attr-defined]

from tests.support.data import ROOT
from tests.support.programs import environment

# It ends with the process that holds the other end of its input, however that process ends.
_HOST = """
import sys
import ray
from pipelines.cluster import cluster

with cluster():
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
"""


@contextmanager
def ray_cluster() -> Iterator[str]:
    """Run a local cluster in a process of its own; yield its address, for RAY_ADDRESS."""
    host = subprocess.Popen(
        [sys.executable, "-c", _HOST],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert host.stdout is not None
        address = host.stdout.readline().strip()
        assert address, "the cluster of the tests did not start"
        yield address
    finally:
        host.communicate(timeout=60)


def join(address: str, patch: pytest.MonkeyPatch) -> None:
    """Have `pipelines.cluster.cluster`, here and in programs that are started, join the cluster at this address."""
    patch.setenv("RAY_ADDRESS", address)
    # A local cluster is joined with the token of its user, for which a driver has to ask. Ray looks at this when it is
    # imported, and never again.
    patch.setenv("RAY_AUTH_MODE", "token")
    Config.initialize("")
