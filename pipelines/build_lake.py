"""Build a lake from Waymo 1.x or 2.x: `python pipelines/build_lake.py --source GLOB --lake URL`.

Runs by itself on this machine's cores, or unchanged as `ray job submit --working-dir . -- python
pipelines/build_lake.py …` on a cluster. With `--local` it needs no Ray, and is `python -m datalake build`: tasks run
in processes of this machine. Run it again after any interruption: what is committed is skipped.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from rich.console import Console

from datalake.build_command import build_and_report
from datalake.build_options import BuildOptions
from datalake.cli import run_command
from datalake.ray_tasks import run_on_ray
from pipelines.cluster import cluster
from pipelines.paths import absolute


@dataclass(frozen=True, kw_only=True)
class BuildLakeConfig(BuildOptions):
    """Build a lake of Parquet tables from Waymo perception 1.x (TFRecords) or 2.x (Parquet components)."""

    # Build in processes of this machine, one for each CPU, without Ray.
    local: bool = False


def run(config: BuildLakeConfig, console: Console) -> int:
    """Build, print the closing table, and return the exit status: 0 only if every segment is in the lake."""
    options = replace(config, lake=absolute(config.lake))
    if config.local:
        return build_and_report(options, console)
    return build_and_report(options, console, run=run_on_ray, within=cluster())


def main() -> None:
    """Run from the command line."""
    run_command("build_lake", BuildLakeConfig, run, __doc__)


if __name__ == "__main__":
    main()
