"""The runs that an analysis compares, the frames that it looks at, and where it writes what it has found."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table

from datalake.lake import Lake, open_lake
from datalake.progress_bar import ProgressBar
from pipelines.data import Frames, check_no_leakage
from pipelines.device import decoding_threads, device_of
from pipelines.evaluated_frames import check_unseen, frames_as_trained
from pipelines.paths import absolute
from student.checkpoint import read_student
from student.config import StudentError
from student.detector import Student
from student.report.page import Page
from teachers.card import TeacherCard, TeacherError
from teachers.load import needs_points
from training.checkpoint import Checkpoint
from training.run_dir import RunDir
from training.versions import installed_versions

METRICS_FILE, REPORT_FILE = "metrics.json", "report.html"
_PACKAGES = ("classroomnet", "torch", "torchvision", "numpy", "pycocotools")


@dataclass(frozen=True, kw_only=True)
class AnalysisConfig:
    """What all analyses are told."""

    # The folder that a training wrote to: a local path or any fsspec URL.
    checkpoint: str
    # The lake: a local path, s3:// or gs://.
    lake: str
    # Other runs, which are shown beside this one.
    against: tuple[str, ...] = ()
    # The split whose images are used.
    split: str = "val"
    # Images of the split alone for which this is true, as in SQL: "time_of_day = 'Night'".
    where: str | None = None
    # So many images, drawn from the whole split.
    images: int = 16
    # Images at once.
    batch: int = 4
    # Metrics and page go here; by default to a folder in the checkpoint's that is called like the analysis.
    out: str | None = None
    # cpu, cuda, cuda:1 …; by default the GPU if there is one.
    device: str = "auto"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AnalysedRun:
    """A trained student, and the frames that it is examined on as it was trained to see them."""

    name: str
    url: str
    student: Student
    checkpoint: Checkpoint
    frames: Frames

    @property
    def branches(self) -> list[str]:
        """The teachers that the student has a branch for."""
        return [spec.name for spec in self.student.config.branches]


def read_runs(
    config: AnalysisConfig, cards: dict[str, TeacherCard], console: Console, *, points: bool = False
) -> list[AnalysedRun]:
    """Return the runs to compare.

    points: read the lidar's points, whether or not a teacher needs them

    Raises StudentError or LakeError where one cannot be examined on these frames, TeacherError where one was distilled
    from other teachers than these, or a teacher has learned from the frames.
    """
    urls = [absolute(url).rstrip("/") for url in (config.checkpoint, *config.against)]
    lake = open_lake(absolute(config.lake)).where(config.where, config.split)
    check_no_leakage(cards, lake, [config.split])
    points = points or needs_points(cards.values())
    runs = [
        _read(url, name, config, lake, cards, points, console) for url, name in zip(urls, _names(urls), strict=True)
    ]
    for name in cards:
        if not any(name in run.branches for run in runs):
            raise StudentError(f"--teachers {name}: none of the runs has a branch for it")
    cameras = runs[0].frames.cameras
    for run in runs[1:]:
        if run.frames.cameras != cameras:
            raise StudentError(
                f"--against {run.url}: trained on the cameras {', '.join(run.frames.cameras)}, {runs[0].url} on"
                f" {', '.join(cameras)}: they cannot be compared on the same images"
            )
    return runs


def _read(
    url: str,
    name: str,
    config: AnalysisConfig,
    lake: Lake,
    cards: dict[str, TeacherCard],
    points: bool,
    console: Console,
) -> AnalysedRun:
    student, checkpoint = read_student(url)
    check_unseen(url, checkpoint, lake, config.split, console)
    for teacher, card in cards.items():
        if checkpoint.fingerprint.get(f"teacher.{teacher}") not in (None, card.weights_sha256):
            raise TeacherError(f"teacher {teacher}: {url} was distilled from another one; give that of its training")
    frames = frames_as_trained(url, checkpoint, lake, config.split, points, console)
    threads = decoding_threads(device_of(config.device))
    return AnalysedRun(
        name=name, url=url, student=student, checkpoint=checkpoint, frames=replace(frames, threads=threads)
    )


def _names(urls: Sequence[str]) -> list[str]:
    """Return the last parts of the runs' folders, or these whole where two would be called the same."""
    if len(set(urls)) < len(urls):
        raise StudentError("--against: a run is given twice")
    last = [url.rpartition("/")[2] for url in urls]
    return last if len(set(last)) == len(last) else list(urls)


def write_analysis(
    config: AnalysisConfig,
    analysis: str,
    runs: Sequence[AnalysedRun],
    found: Mapping[str, Any],
    more: Mapping[str, Any],
    page: Page,
    table: tuple[list[str], list[list[str]]],
    console: Console,
) -> None:
    """Write metrics and page, and print a table and where the page is.

    found: what JSON is to have of each run, by its name; more: what it is to have beside the runs
    table: header and rows
    """
    out = RunDir(absolute(config.out) if config.out is not None else f"{runs[0].url}/{analysis}")
    lake = runs[0].frames.lake
    settings = {**asdict(config), "lake": lake.store.url, "snapshot": lake.snapshot}
    metrics = {
        "runs": {
            run.name: {
                "checkpoint": {"url": run.url, "step": run.checkpoint.step},
                "image_size": list(run.frames.image_size),
                analysis: found[run.name],
            }
            for run in runs
        },
        "settings": settings,
        "versions": installed_versions(_PACKAGES),
        **more,
    }
    out.write(METRICS_FILE, (json.dumps(metrics, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())
    page.heading("Settings")
    page.preformatted("\n".join(f"{name:<12}{value}" for name, value in settings.items()))
    page.write(out.place(REPORT_FILE))
    header, rows = table
    printed = Table(*header)
    for row in rows:
        printed.add_row(*row)
    console.print(printed)
    console.print(f"open {out.place(REPORT_FILE)}", soft_wrap=True, highlight=False)


def telling(bar: ProgressBar, stage: str, total: int, unit: str = "images") -> Callable[[int], None]:
    """Return what is to be called with how much of `total` is done."""
    return lambda done: bar.update(stage, done, total, unit)
