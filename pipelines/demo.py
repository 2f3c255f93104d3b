"""The whole pipeline on simulated drives: a lake is built, teachers are trained on it, a student on both.

    python pipelines/demo.py            # or: make demo

    OUT/drives  OUT/lake  OUT/teachers  OUT/student     and at the end OUT/report.html, with images

With `--store s3://bucket/demo` all of these go there, and only what trainings keep for themselves stays in OUT.

Run it again after any interruption: drives that are written, segments that are committed and steps that are trained
are kept.
"""

from __future__ import annotations

import training.openmp  # isort: skip  # noqa: F401 - before torch

import io
import os
import re
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib as mpl
import torch
from rich.console import Console

from datalake.build import BuildConfig
from datalake.build_command import summary
from datalake.children import process_pool
from datalake.cli import run_command
from datalake.commit import LakeError
from datalake.derived_table import derived_commits_folders, list_derived_tables
from datalake.fanout import BuildReport, build_lake
from datalake.info import print_info
from datalake.lake import Lake, open_lake
from datalake.process_tasks import run_in_processes
from datalake.progress_bar import ProgressBar
from datalake.ray_tasks import run_on_ray
from datalake.show import save_frame
from datalake.synthetic import DriveConfig, write_drives
from datalake.verify import verify
from pipelines import cache_targets, evaluate, train, train_teachers
from pipelines.cluster import cluster
from pipelines.option_ranges import check_options
from pipelines.paths import cluster_address
from pipelines.train_config import TrainConfig
from pipelines.train_teachers import TeacherName, TrainTeachersConfig
from student.report.page import Page
from teachers.card import CARD_FILE, WEIGHTS_FILE, read_card
from training.loop import LoopConfig
from training.run_dir import RunDir

# Splits are of whole segments, and from different seeds: no street is in two of them. Teachers are trained on segments
# that the student never sees; otherwise labels would leak.
_SEEDS = {"teach": 3, "train": 1, "val": 2}
_FRAME_RATE_HZ = 2.0
# Of the simulated cameras: larger images would show nothing more.
IMAGE_SIZE = (384, 256)
_TEACHERS: tuple[TeacherName, ...] = ("spvcnn", "mask_rcnn")
# The student learns from the images of the first, and is evaluated on those of the second.
_ASKED = ("train", "val")
# Samples that a teacher is evaluated on, and that its statistics are of.
_EVAL_SAMPLES, _MEASURED = 40, 60


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Simulate drives, build their lake, train teachers and a student, evaluate it, and write a report."""

    # Drives, lake, teachers, student and report go here.
    out: Path = Path("out/demo")
    # They go to this fsspec URL instead, for example s3://bucket/demo; the bucket must be there.
    store: str | None = None
    # Simulated segments for the teachers.
    teach_segments: int = 70
    # Simulated segments for the student.
    train_segments: int = 150
    # Simulated segments to evaluate on.
    val_segments: int = 30
    # Frames per segment, at 2 Hz: many streets are better training data than many images of one.
    frames: int = 3
    # Cameras on the simulated car; the student uses the first.
    cameras: tuple[str, ...] = ("FRONT",)
    # Steps of the lidar teacher.
    lidar_steps: int = 60
    # Steps of the mask teacher.
    mask_steps: int = 190
    # Steps of the student.
    student_steps: int = 400
    # Where to train: cpu, cuda …; by default on the GPU if there is one.
    device: str = "auto"

    @property
    def place(self) -> str:
        """The URL below which the demo leaves what it makes."""
        return self.store.rstrip("/") if self.store else str(self.out.absolute())


def run(config: DemoConfig, console: Console) -> int:
    """Run every step and return the exit status: 0 only if every segment is committed and verified."""
    if re.match(r"[a-z0-9+]+:/", str(config.out)):
        raise LakeError(f"--out {config.out}: trainings keep files of their own in a local folder; --store takes a URL")
    check_options(config)
    config = replace(config, out=config.out.expanduser())
    started = time.monotonic()
    lake_url = f"{config.place}/lake"
    failed = not build(config, lake_url, console)
    lake = open_lake(lake_url)
    problems = [problem for _, found in verify(lake) for problem in found]
    for problem in problems:
        console.print(f"[red]damaged[/] {problem}", soft_wrap=True)
    print_info(lake, console)
    if failed or problems:
        return 1

    teachers = teach(config, lake_url, console)
    cached = tuple(f"{name}={cached_as(folder)}" for name, folder in teachers.items())
    named = tuple(f"{name}={_published(name, folder, config)}" for name, folder in teachers.items())
    student = f"{config.place}/student"
    console.print("\n[bold]the student[/]")
    train.run(
        TrainConfig(
            lake=lake_url,
            out=student,
            teachers=named,
            cameras=config.cameras[:1],
            image_size=IMAGE_SIZE,
            cached=cached,
            device=config.device,
            loop=LoopConfig(steps=config.student_steps),
        ),
        console,
    )
    evaluation = evaluate.EvaluateConfig(
        checkpoint=student,
        lake=lake_url,
        teachers=named,
        cached=cached,
        device=config.device,
        out=config.place,
    )
    evaluate.run(evaluation, console, lambda page: _fill_page(page, lake, config.out))
    console.print(
        f"\nfinished in {time.monotonic() - started:.0f} s; open {config.place}/{evaluate.REPORT_FILE}",
        soft_wrap=True,
        highlight=False,
    )
    return 0


def build(config: DemoConfig, lake_url: str, console: Console) -> bool:
    """Simulate the drives and build their lake; return whether every segment is committed."""
    drives = DriveConfig(cameras=config.cameras, frame_rate_hz=_FRAME_RATE_HZ)
    complete = True
    with ProgressBar(console) as bar:
        drives_of = {split: _simulate(config, drives, split, bar) for split in _SEEDS}
    # As a Ray job it builds on the cluster; by itself in processes, which are there at once.
    on_ray = cluster_address() is not None
    with cluster() if on_ray else nullcontext():
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
                    run=run_on_ray if on_ray else run_in_processes,
                )
            console.print(summary(report, time.monotonic() - begun))
            for name, reason in sorted(report.failures.items()):
                console.print(f"[red]failed[/] {name}: {reason}", soft_wrap=True)
            complete &= not report.failures
    return complete


def teach(config: DemoConfig, lake_url: str, console: Console) -> dict[str, Path]:
    """Train the teachers side by side, each on its share of the cores; return name -> folder.

    Their answers to every image that a student will see are in the lake then (see `cached_as`); no student waits for
    them.
    """
    folder = (config.out / "teachers").absolute()
    base = TrainTeachersConfig(
        lake=lake_url,
        out=str(folder),
        train_split="teach",
        cameras=config.cameras[:1],
        image_size=IMAGE_SIZE,
        eval_samples=_EVAL_SAMPLES,
        device=config.device,
    )
    lidar, mask = base.spvcnn, base.mask_rcnn
    teacher_configs = [
        replace(
            base,
            teacher=name,
            spvcnn=replace(lidar, measured_samples=_MEASURED, loop=replace(lidar.loop, steps=config.lidar_steps)),
            mask_rcnn=replace(mask, loop=replace(mask.loop, steps=config.mask_steps)),
        )
        for name in _TEACHERS
    ]
    steps = config.lidar_steps + config.mask_steps
    lake = open_lake(lake_url)
    questions = len(_TEACHERS) * sum(len(lake.in_split(split)) for split in _ASKED)
    console.print("\n[bold]the teachers[/]")
    with process_pool(len(teacher_configs)) as pool, ProgressBar(console) as bar:
        running = [pool.submit(_train_teacher, teacher_config) for teacher_config in teacher_configs]
        while not all(future.done() for future in running):
            if (trained := sum(_steps_done(folder / name) for name in _TEACHERS)) < steps:
                bar.update("teachers", trained, steps, "steps")
            else:
                bar.update("answers", min(_segments_cached(lake), questions), questions, "segments")
            time.sleep(1)
        for future in running:
            console.print(future.result(), soft_wrap=True, markup=False, highlight=False)
    return {name: folder / name for name in _TEACHERS}


def _published(name: str, folder: Path, config: DemoConfig) -> str:
    """Return where the demo's student finds a teacher: trainings of teachers need a local folder, readers do not."""
    if config.store is None:
        return str(folder)
    place = RunDir(f"{config.place}/teachers/{name}")
    for file in (WEIGHTS_FILE, CARD_FILE):
        place.write(file, (folder / file).read_bytes())
    return place.url


def cached_as(teacher: Path) -> str:
    """Return the name under which the lake has the teacher's answers: one trained anew leaves others."""
    card = read_card(str(teacher))
    return f"{card.name}_{card.weights_sha256[:12]}"


def _train_teacher(teacher_config: TrainTeachersConfig) -> str:
    """Train one teacher and cache its answers, in a process of its own; return what it printed of the training."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // len(_TEACHERS)))
    output = io.StringIO()
    train_teachers.run(teacher_config, Console(file=output, width=100))
    folder = Path(teacher_config.out) / str(teacher_config.teacher)
    for split in _ASKED:
        answers = cache_targets.CacheTargetsConfig(
            lake=teacher_config.lake,
            teacher=str(folder),
            name=cached_as(folder),
            split=split,
            image_size=teacher_config.image_size,
            device=teacher_config.device,
        )
        cache_targets.run(answers, Console(quiet=True))
    lines = output.getvalue().splitlines()
    first = next(number for number, line in enumerate(lines) if " steps in " in line)
    return "\n".join(lines[first:])


def _segments_cached(lake: Lake) -> int:
    """Return how many segments the lake has a teacher's answers of, each teacher's counted."""
    folders = (derived_commits_folders(name, split)[0] for name in list_derived_tables(lake.store) for split in _ASKED)
    return sum(len(lake.store.listing(folder)) for folder in folders)


def _steps_done(folder: Path) -> int:
    """Return the lines of a training's log, of which the last may be half written."""
    history = folder / "history.jsonl"
    return history.read_bytes().count(b"\n") if history.exists() else 0


def _simulate(config: DemoConfig, drives: DriveConfig, split: str, bar: ProgressBar) -> list[str]:
    segments = {"teach": config.teach_segments, "train": config.train_segments, "val": config.val_segments}[split]
    done = 0

    def finished(_: str) -> None:
        nonlocal done
        done += 1
        bar.update(f"drives {split}", done * config.frames, segments * config.frames, "frames")

    bar.update(f"drives {split}", 0, segments * config.frames, "frames")
    return write_drives(
        f"{config.place}/drives/{split}",
        drives,
        segments=segments,
        frames=config.frames,
        seed=_SEEDS[split],
        # Each takes 150 MB, and containers have fewer than their host has for its cores.
        workers=min(8, os.cpu_count() or 1),
        progress=finished,
    )


def _fill_page(page: Page, lake: Lake, out: Path) -> None:
    """Draw a frame of a few segments of every split, and what the lake holds."""
    mpl.use("agg")
    page.heading("The lake")
    for split in lake.splits:
        for commit in lake.in_split(split)[:2]:
            path = out / "images" / f"{commit.split}-{commit.segment}.png"
            save_frame(lake, commit.split, commit.segment, commit.frames // 2, commit.cameras[0], str(path))
            caption = f"{commit.split} · {commit.segment} · {commit.frames} frames · {commit.points:,} points"
            page.image(path.read_bytes(), caption)
    text = Console(file=io.StringIO(), record=True, width=100)
    print_info(lake, text)
    page.preformatted(text.export_text())


def main() -> None:
    """Run from the command line."""
    run_command("demo", DemoConfig, run, __doc__)


if __name__ == "__main__":
    main()
