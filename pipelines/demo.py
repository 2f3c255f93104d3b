"""The main job on the embedded default: simulated drives become a lake, ending in pictures and a summary.

    python pipelines/demo.py            # or: make demo

Run it again and it goes on where it was: drives that are written and segments that are committed are kept.
"""

from __future__ import annotations

import io
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import tyro
from rich.console import Console

from datalake.build import BuildConfig
from datalake.commit import LakeError
from datalake.fanout import BuildReport, build_lake
from datalake.info import print_info
from datalake.lake import Lake, open_lake
from datalake.show import save_frame
from datalake.synthetic import DriveConfig, write_drives
from datalake.verify import verify
from pipelines.build_lake import summary
from pipelines.cluster import cluster
from pipelines.progress import ProgressBar
from student.report.page import Page

# Splits are of whole segments, and from different seeds: no street is in two of them.
_SEEDS = {"train": 1, "val": 2}


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Simulate drives, build their lake, and look at it."""

    # Drives, lake and report go here.
    out: Path = Path("out/demo")
    # Simulated segments to train on, and to validate on.
    train_segments: int = 6
    val_segments: int = 2
    # Frames per segment, at 10 Hz.
    frames: int = 40
    # Cameras on the simulated car.
    cameras: tuple[str, ...] = ("FRONT",)


def run(config: Demo, console: Console) -> int:
    """Run every step and return the exit status: 0 only if every segment is committed and verified."""
    started = time.monotonic()
    drives = DriveConfig(cameras=config.cameras)
    lake_url = str((config.out / "lake").absolute())
    failed = False
    with ProgressBar(console) as bar:
        drives_of = {split: _simulate(config, drives, split, bar) for split in _SEEDS}
    with cluster():
        for split, sources in drives_of.items():
            settings = BuildConfig(split=split, cameras=config.cameras)
            with ProgressBar(console) as bar:
                begun = time.monotonic()
                report: BuildReport = build_lake(
                    sources,
                    lake_url,
                    settings,
                    lambda step, bar=bar: bar.update(  # type: ignore[misc]
                        step.stage, step.done, step.total, "files" if step.stage == "index" else "frames"
                    ),
                )
            console.print(summary(report, time.monotonic() - begun))
            for name, reason in sorted(report.failures.items()):
                console.print(f"[red]failed[/] {name}: {reason}", soft_wrap=True)
            failed |= bool(report.failures)

    lake = open_lake(lake_url)
    problems = [problem for _, found in verify(lake) for problem in found]
    for problem in problems:
        console.print(f"[red]damaged[/] {problem}", soft_wrap=True)
    print_info(lake, console)
    report_path = _write_report(lake, config.out)
    console.print(f"\nfinished in {time.monotonic() - started:.0f} s; open {report_path}", soft_wrap=True)
    return 1 if failed or problems else 0


def _simulate(config: Demo, drives: DriveConfig, split: str, bar: ProgressBar) -> list[str]:
    folder = (config.out / "drives" / split).absolute()
    segments = config.train_segments if split == "train" else config.val_segments
    done = 0

    def finished(_: str) -> None:
        nonlocal done
        done += 1
        bar.update(f"drives {split}", done * config.frames, segments * config.frames, "frames")

    bar.update(f"drives {split}", 0, segments * config.frames, "frames")
    return write_drives(
        str(folder),
        drives,
        segments=segments,
        frames=config.frames,
        seed=_SEEDS[split],
        workers=os.cpu_count() or 1,
        progress=finished,
    )


def _write_report(lake: Lake, out: Path) -> Path:
    """Draw a frame of every segment and write one self-contained page with the pictures and the figures."""
    mpl.use("agg")
    page = Page("ClassroomNet: the lake")
    page.heading("What it looks like")
    for commit in lake.commits:
        path = out / "pictures" / f"{commit.split}-{commit.segment}.png"
        save_frame(lake, commit.split, commit.segment, commit.frames // 2, commit.cameras[0], path)
        caption = f"{commit.split} · {commit.segment} · {commit.frames} frames · {commit.points:,} points"
        page.picture(path.read_bytes(), caption)
    text = Console(file=io.StringIO(), record=True, width=100)
    print_info(lake, text)
    page.heading("What it holds")
    page.preformatted(text.export_text())
    path = (out / "report.html").absolute()
    page.write(path)
    return path


def main() -> None:
    """Run from the command line; bad input ends in one line and exit status 2."""
    config = tyro.cli(Demo, description=__doc__)
    try:
        status = run(config, Console())
    except (LakeError, OSError, ValueError) as error:
        Console(stderr=True).print(f"demo: {error}", soft_wrap=True, highlight=False, markup=False)
        sys.exit(2)
    sys.exit(status)


if __name__ == "__main__":
    main()
