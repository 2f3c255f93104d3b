"""Which of pytest-xdist's workers runs a test: a file's tests stay together, and all that need the Ray cluster do."""

from __future__ import annotations

from xdist.scheduler.loadscope import LoadScopeScheduling

# Below tests/. A file that asks for the cluster and is not named here fails at collection.
ON_RAY = (
    "datalake/test_fanout.py",
    "pipelines/test_build_lake.py",
    "pipelines/test_full_disk.py",
    "pipelines/test_orphans.py",
    "teachers/test_ray_pool.py",
)


class FileScheduling(LoadScopeScheduling):  # type: ignore[misc, unused-ignore]
    """One worker a file, and one for all files of `ON_RAY`."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "ray" if file.endswith(ON_RAY) else file
