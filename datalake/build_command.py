"""A build from the command line: what `python -m datalake build` and `pipelines/build_lake.py` share."""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import AbstractContextManager, nullcontext

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from datalake.build import BuildConfig
from datalake.build_options import BuildOptions
from datalake.commit import LakeError
from datalake.fanout import BuildReport, RunTasks, build_lake
from datalake.limits import check_range
from datalake.process_tasks import run_in_processes
from datalake.progress_bar import ProgressBar
from datalake.sources.frame import ALL_CAMERAS

# Segments that a line of failures names.
_NAMED = 5


def build_and_report(
    options: BuildOptions,
    console: Console,
    *,
    run: RunTasks = run_in_processes,
    within: AbstractContextManager[object] | None = None,
) -> int:
    """Build, print the closing table, and return the exit status: 0 only if every segment is in the lake.

    run: where the tasks run; by default in processes of this machine, one for each CPU
    within: is entered for the build once the options are checked

    Raises LakeError where an option is out of its range, or nothing can be built at all.
    """
    unknown = sorted(set(options.cameras) - set(ALL_CAMERAS))
    if unknown or not options.cameras:
        raise LakeError(
            f"--cameras: unknown {', '.join(unknown) or '(none)'}; expected some of {', '.join(ALL_CAMERAS)}"
        )
    check_range("--max-quarantined", options.max_quarantined, 0, 1)
    check_range("--grace-hours", options.grace_hours, 0)
    started = time.monotonic()
    settings = BuildConfig(
        split=options.split,
        cameras=tuple(camera for camera in ALL_CAMERAS if camera in options.cameras),
        points=options.points,
        max_quarantined=options.max_quarantined,
        allow_truncated=options.allow_truncated,
    )
    with within or nullcontext(), ProgressBar(console) as bar:
        report = build_lake(
            options.source,
            options.lake,
            settings,
            lambda step: bar.update(step.stage, step.done, step.total, "files" if step.stage == "index" else "frames"),
            options.grace_hours * 3600,
            run=run,
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
