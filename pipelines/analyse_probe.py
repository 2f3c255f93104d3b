"""`analyse.py probe`: what a linear layer reads off the frozen student."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

from rich.console import Console

from datalake.lake import Lake
from datalake.progress_bar import ProgressBar
from datalake.sample import Sample
from pipelines.analysed_runs import AnalysisConfig, read_runs, telling, write_analysis
from pipelines.data import Frames, check_disjoint_splits
from pipelines.device import device_of
from pipelines.evaluated_frames import drawn_batches, words_of_images
from student.config import StudentError
from student.detector import Student
from student.evaluation.probed_frames import (
    ProbeResult,
    ProbeTask,
    depth_task,
    frame_task,
    frozen_features,
    panoptic_task,
    probe_frames,
    random_student,
)
from student.report import probe as probe_report
from student.report.page import Page

# Of the split that probes learn from, one segment in so many is for the choice of their rates alone.
_TUNED = 5
_WORDS = ("time_of_day", "weather")


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(AnalysisConfig):
    """Read panoptic classes, depths, time of day and weather off the frozen student with a linear layer."""

    # The split that probes learn from; a fifth of its segments is kept for the choice of their learning rates.
    train_split: str = "train"
    # So many of its images, and a quarter as many for that choice.
    frames: int = 160
    # Shares of them that probes learn from.
    shares: tuple[float, ...] = (0.01, 0.1, 1.0)
    # Decides about the cells and images that are drawn, and the weights of students that have learned nothing.
    seed: int = 0


def probe(config: ProbeConfig, console: Console) -> None:
    """Probe each run and its companion with random weights, write metrics and page, and print the table."""
    runs = read_runs(config, {}, console, points=True)
    lake = runs[0].frames.lake
    check_disjoint_splits(lake, config.train_split, config.split)
    tasks = _tasks(lake, config)
    learned, tuned = _halves(lake, config.train_split)
    device = device_of(config.device)
    probes: dict[str, list[ProbeResult]] = {}
    companions: dict[str, str] = {}
    with ProgressBar(console) as bar:
        for run in runs:
            students: dict[str, Student] = {run.name: run.student.to(device)}
            # Students of one architecture, on images of one size, share their companion.
            like = f"{run.student.config.to_json()} {run.frames.image_size}"
            if like not in companions:
                companions[like] = f"random weights of {run.name}" if companions else "random weights"
                students[companions[like]] = random_student(run.student.config, config.seed, device)
            for name, student in students.items():
                examined, images = _drawn(run.frames, config.batch, config.images)
                of_training = replace(run.frames, split=config.train_split)
                learning, count = _drawn(replace(of_training, segments=learned), config.batch, config.frames)
                tuning, few = _drawn(replace(of_training, segments=tuned), config.batch, -(-config.frames // 4))
                told = telling(bar, name, images + count + few)
                probes[name] = probe_frames(
                    partial(frozen_features, student),
                    tasks,
                    learning,
                    tuning,
                    examined,
                    config.shares,
                    config.seed,
                    told,
                )
    if not any(probes.values()):
        raise StudentError(
            f"{lake.store.url}: splits {config.train_split} and {config.split} have no panoptic labels, points, time of"
            " day or weather in common for probes to read"
        )
    found = {run.name: [asdict(one) for one in probes[run.name]] for run in runs}
    others = {name: [asdict(one) for one in each] for name, each in probes.items() if name not in found}
    page = Page(f"ClassroomNet: linear probes of {', '.join(run.name for run in runs)}")
    probe_report.fill_page(page, probes, images)
    write_analysis(config, "probe", runs, found, {"random_weights": others}, page, probe_report.table(probes), console)


def _tasks(lake: Lake, config: ProbeConfig) -> list[ProbeTask]:
    splits = (config.train_split, config.split)
    words = {name: {k: v for split in splits for k, v in words_of_images(lake, split, name).items()} for name in _WORDS}
    of_frames = [frame_task(name, values) for name, values in words.items() if len(set(values.values()) - {None}) > 1]
    return [panoptic_task(), depth_task(), *of_frames]


def _halves(lake: Lake, split: str) -> tuple[frozenset[str], frozenset[str]]:
    """Return the segments that probes learn from, and those that their rates are chosen by; a fixed choice."""
    names = sorted({commit.segment for commit in lake.in_split(split)})
    if len(names) < 2:
        raise StudentError(
            f"--train-split {split}: expected two segments or more, one to choose the probes' learning rates by, got:"
            f" {len(names)}"
        )
    drawn = sorted(names, key=lambda name: hashlib.sha256(f"probe:{name}".encode()).digest())
    count = max(1, len(names) // _TUNED)
    return frozenset(drawn[count:]), frozenset(drawn[:count])


def _drawn(frames: Frames, batch: int, images: int) -> tuple[Iterable[Sequence[Sample]], int]:
    return drawn_batches(frames, batch, images, panoptic=True)
