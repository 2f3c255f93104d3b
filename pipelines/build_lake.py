"""Build a lake from Waymo 1.x or 2.x: `python pipelines/build_lake.py --source GLOB --lake URL`.

Runs by itself on this machine's cores, or unchanged as `ray job submit --working-dir . -- python
pipelines/build_lake.py …` on a cluster. With `--local` it needs no Ray: its tasks run in processes of this machine. Run
it again after any interruption: what is committed is skipped.
"""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from datalake.build import ALL_CAMERAS, BuildConfig
from datalake.cli import run_command
from datalake.commit import LakeError
from datalake.fanout import BuildReport, build_lake
from datalake.process_tasks import run_in_processes
from datalake.ray_tasks import run_on_ray
from datalake.schema import PointMode
from pipelines.cluster import cluster
from pipelines.option_ranges import check_options
from pipelines.paths import absolute
from pipelines.progress import ProgressBar

# Segments that a line of failures names.
_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class BuildLakeConfig:
    """Build a lake of Parquet tables from Waymo perception 1.x (TFRecords) or 2.x (Parquet components)."""

    # TFRecord files, or folders with components of 2.x: URLs, quoted globs, or .txt files with one of these a line.
    source: tuple[str, ...]
    # Where the lake is, or is to be: a local path, s3:// or gs://.
    lake: str
    # The split that the segments become part of.
    split: str = "train"
    # The cameras whose images, labels and depths are kept.
    cameras: tuple[str, ...] = ALL_CAMERAS
    # `quantised` rounds positions to 1/256 m (error at most 2 mm); `lossless` keeps every bit.
    points: PointMode = "quantised"
    # A segment fails when a larger share of its records is quarantined, whole or in part.
    max_quarantined: float = 0.1
    # Build segments also of files that end inside a record, such as downloads that broke off.
    allow_truncated: bool = False
    # Unreferenced files younger than this many hours may belong to a running build, and are kept.
    grace_hours: float = 24.0
    # Build in processes of this machine, one for each CPU, without Ray.
    local: bool = False


def run(config: BuildLakeConfig, console: Console) -> int:
    """Build, print the closing table, and return the exit status: 0 only if every segment is in the lake."""
    unknown = sorted(set(config.cameras) - set(ALL_CAMERAS))
    if unknown or not config.cameras:
        raise LakeError(
            f"--cameras: unknown {', '.join(unknown) or '(none)'}; expected some of {', '.join(ALL_CAMERAS)}"
        )
    check_options(config)
    started = time.monotonic()
    settings = BuildConfig(
        split=config.split,
        cameras=tuple(camera for camera in ALL_CAMERAS if camera in config.cameras),
        points=config.points,
        max_quarantined=config.max_quarantined,
        allow_truncated=config.allow_truncated,
    )
    with nullcontext() if config.local else cluster(), ProgressBar(console) as bar:
        report = build_lake(
            config.source,
            absolute(config.lake),
            settings,
            lambda step: bar.update(step.stage, step.done, step.total, "files" if step.stage == "index" else "frames"),
            config.grace_hours * 3600,
            run=run_in_processes if config.local else run_on_ray,
        )
    console.print(summary(report, time.monotonic() - started))
    for line in missing(report):
        console.print(f"[yellow]without[/] {escape(line)}", soft_wrap=True, highlight=False)
    for line in failures(report):
        console.print(f"[red]failed[/] {escape(line)}", soft_wrap=True, highlight=False)
    return 1 if report.failures else 0


def missing(report: BuildReport) -> list[str]:
    """Return a line for each thing that the sources of some committed segments lack, with what that means."""
    segments: dict[str, list[str]] = defaultdict(list)
    for built in report.segments:
        if built.outcome == "committed":
            for lack in built.missing:
                segments[lack].append(built.segment)
    return [f"{lack} ({len(names):,} segments, first: {min(names)})" for lack, names in sorted(segments.items())]


def failures(report: BuildReport) -> list[str]:
    """Return a line for each reason why something is not in the lake, with the sources or segments it stopped."""
    names: dict[str, list[str]] = defaultdict(list)
    for name, reason in sorted(report.failures.items()):
        names[reason].append(name)
    lines = []
    # A full disk stops all segments for the same reason, and is one thing to mend.
    for reason, stopped in names.items():
        more = f" and {len(stopped) - _NAMED:,} more" if len(stopped) > _NAMED else ""
        lines.append(f"{', '.join(stopped[:_NAMED])}{more}: {reason}")
    return lines


def summary(report: BuildReport, wall_s: float) -> Table:
    """Return the closing table of a build."""
    built = [segment for segment in report.segments if segment.outcome == "committed"]
    seconds: dict[str, float] = defaultdict(float)
    for segment in report.segments:
        for stage, spent in segment.seconds.items():
            seconds[stage] += spent
    frames, points = sum(s.frames for s in built), sum(s.points for s in built)
    bytes_in, bytes_out = sum(s.bytes_in for s in built), sum(s.bytes_out for s in built)
    present = len(report.skipped) + sum(segment.outcome == "present" for segment in report.segments)
    table = Table(title=f"snapshot {report.snapshot}", show_header=False, title_justify="left")
    table.add_row("segments", f"{len(built):,} committed, {present:,} there before, {len(report.failures):,} failed")
    if superseding := sum(segment.superseding for segment in built):
        table.add_row("superseding", f"{superseding:,} segments that were there before, of sources that have changed")
    if incomplete := sum(segment.incomplete for segment in built):
        table.add_row("incomplete", f"{incomplete:,} segments of sources that end inside a record")
    table.add_row("frames", f"{frames:,} in {wall_s:,.1f} s ({frames / wall_s:,.1f} frames/s)")
    table.add_row("points", f"{points:,}")
    table.add_row("bytes in", f"{bytes_in:,}")
    table.add_row("bytes out", f"{bytes_out:,}" + (f" ({bytes_out / bytes_in:.3f} of in)" if bytes_in else ""))
    table.add_row("quarantined", f"{sum(segment.quarantined for segment in report.segments):,} rows")
    table.add_row("swept", f"{report.swept:,} files of dead attempts")
    stages = ", ".join(f"{stage} {spent:,.2f}" for stage, spent in seconds.items())
    table.add_row("seconds per stage", stages or "none: nothing to do")
    return table


def main() -> None:
    """Run from the command line."""
    run_command("build_lake", BuildLakeConfig, run, __doc__)


if __name__ == "__main__":
    main()
