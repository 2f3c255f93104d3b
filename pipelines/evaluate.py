"""Evaluate a trained student: `python pipelines/evaluate.py --checkpoint RUN --lake URL --teachers NAME=FOLDER …`.

    OUT/metrics.json          every metric, and what was evaluated
    OUT/report.html           the same as one page that needs no other file
    OUT/student.safetensors   with --export: the weights and the configuration
    OUT/student.pt2           with --export: a program that runs without this package
    SUBMISSION                with --submission: the detections as `Objects`, which Waymo's own tools read
    OUT/model_card.json       with --export: data, classes, metrics, image size, trunk and licence of its weights

A split with segments that the student or a teacher was trained on is refused.
"""

from __future__ import annotations

import training.openmp  # isort: skip  # noqa: F401 - before torch

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from datalake.cli import run_command
from datalake.lake import Lake, open_lake
from datalake.progress_bar import ProgressBar
from pipelines.cell_means import cell_means
from pipelines.data import Frames, check_disjoint_splits, check_no_leakage
from pipelines.detector_teachers import prepare_detectors
from pipelines.device import decoding_threads, device_of
from pipelines.evaluated_frames import check_unseen, drawn_batches, frames_as_trained
from pipelines.option_ranges import check_options
from pipelines.paths import absolute
from pipelines.submission import Submission
from student.checkpoint import read_student
from student.config import StudentError
from student.detector import Student
from student.distillation.detector_teacher import DetectorTeacher
from student.distillation.trained import TrainedMethods
from student.evaluation.run import evaluate_student
from student.export import export_student
from student.layers import memory_format
from student.model_card import MODEL_CARD_FILE, model_card
from student.report.comparisons import comparisons
from student.report.distillation import show_methods
from student.report.evaluation import TEACHER_FRAMES, Evaluation, chosen_examples, write_report
from student.report.page import Page
from teachers.card import TeacherCard, TeacherError
from teachers.load import needs_points
from teachers.loading import CachedTargets, is_detector, open_pool, parse_cached, parse_teachers, read_cards
from training.checkpoint import Checkpoint
from training.metrics_log import read_history
from training.precision import uses_bfloat16
from training.run_dir import RunDir
from training.versions import installed_versions

METRICS_FILE, REPORT_FILE = "metrics.json", "report.html"
# The page shows a few of these, those with the most labels.
_EXAMPLES = 48
_EXPORT_PICTURES = 8
_PACKAGES = ("classroomnet", "torch", "torchvision", "numpy", "pycocotools")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Evaluate a student on frames that neither it nor its teachers were trained on."""

    # The folder that a training wrote to: a local path or any fsspec URL.
    checkpoint: str
    # The lake: a local path, s3:// or gs://.
    lake: str
    # The split to evaluate on.
    split: str = "val"
    # Evaluate on these images of the split alone, as in SQL: "time_of_day = 'Night'".
    where: str | None = None
    # Teachers to compare the student's branches with, as NAME=FOLDER, or none alone. Of a detector teacher the page
    # shows what it says of the student's proposals, and how ReviewKD fused features for it.
    teachers: tuple[str, ...] = ("none",)
    # Metrics and page go here; by default to `evaluation` in the checkpoint's folder.
    out: str | None = None
    # Also write the student's weights and a program that runs without this package.
    export: bool = False
    # Also write the detections to this file as Waymo's `Objects`, in pixels of the records' images.
    submission: str | None = None
    # Images at once.
    batch: int = 6
    # Cameras whose images are used; by default the training's.
    cameras: tuple[str, ...] | None = None
    # Width and height that images are scaled to; by default the training's, whose pixels the anchors were made for.
    image_size: tuple[int, int] | None = None
    # At most so many samples, drawn from the whole split; by default all.
    samples: int | None = None
    # The split whose mean in each cell the imitation of regression teachers is compared with.
    train_split: str = "train"
    # Teachers whose answers are looked up in the lake, where `cache_targets.py` has put them: NAME, or NAME=CACHED if
    # they were put there under another name than the teacher's own. Those of numbers for the training split, too.
    cached: tuple[str, ...] = ()
    # cpu, cuda, cuda:1 …; by default the GPU if there is one.
    device: str = "auto"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluated:
    """What was found, of which step's student, and the URL of the page that shows it."""

    evaluation: Evaluation
    step: int
    report: str


def evaluate(config: EvaluateConfig, console: Console, more: Callable[[Page], None] = lambda _page: None) -> Evaluated:
    """Evaluate the student, write metrics and page, and with `export` the student; progress goes to the console.

    more: called with the page when the evaluation is on it, to add what else there is to show

    Raises LakeError, TeacherError or StudentError where that cannot be, or the metrics would mean nothing.
    """
    check_options(config)
    checkpoint_url = absolute(config.checkpoint).rstrip("/")
    out = RunDir(absolute(config.out) if config.out is not None else f"{checkpoint_url}/evaluation")
    student, checkpoint = read_student(checkpoint_url)
    lake = open_lake(absolute(config.lake)).where(config.where, config.split)
    everyone = {name: absolute(url) for name, url in parse_teachers(config.teachers).items()}
    named = {name: url for name, url in everyone.items() if not is_detector(url)}
    cards = read_cards(named)
    tables = parse_cached(config.cached, named)
    asked = [card for name, card in cards.items() if name not in tables]
    frames = frames_as_trained(
        config.checkpoint,
        checkpoint,
        lake,
        config.split,
        needs_points(asked),
        console,
        {"cameras": config.cameras, "image_size": config.image_size},
    )
    _check(config, student, checkpoint, lake, cards, console)
    others = {name: url for name, url in everyone.items() if name not in named}
    detectors = _detectors(config, others, checkpoint, student, frames, console)
    methods = TrainedMethods.read(student, checkpoint, detectors)
    width, height = frames.image_size
    grid = student.config.grid(height, width)

    # All other ways to fail are cheap; this one must not be found out after a long evaluation.
    exported = _export(config, student, frames, out) if config.export else {}
    device = device_of(config.device)
    frames = replace(frames, threads=decoding_threads(device))
    # As in the training, where this device can.
    bfloat16 = bool(checkpoint.fingerprint.get("bfloat16")) and uses_bfloat16("auto", device)
    pool = open_pool(named, grid, device, CachedTargets(lake, config.split, tables)) if named else None
    of_numbers = {name: url for name, url in named.items() if cards[name].kind == "regression"}
    mean_pool = open_pool(of_numbers, grid, device, CachedTargets(lake, config.train_split, tables))
    layout = memory_format(student.config.norm, device)
    student = student.to(device).to(memory_format=layout)  # type: ignore[call-overload]  # torch's stubs lack it
    batches, samples = drawn_batches(frames, config.batch, config.samples)
    submission = Submission()
    with ProgressBar(console) as bar:
        result = evaluate_student(
            student,
            batches,
            pool,
            cell_means=cell_means(
                replace(frames, split=config.train_split),
                config.batch,
                mean_pool,
                lambda done, total: bar.update("mean", done, total, "samples"),
            ),
            example_every=-(-samples // _EXAMPLES),
            bfloat16=bfloat16,
            on_sample=submission.add,
            progress=lambda done: bar.update("evaluate", done, samples, "samples"),
        )
    if config.submission is not None:
        submission.write(absolute(config.submission))
    how = {
        "lake": lake.store.url,
        "snapshot": lake.snapshot,
        "split": config.split,
        "where": config.where,
        "segments": sorted(commit.segment for commit in lake.in_split(config.split)),
        "cameras": list(frames.cameras),
        "image_size": list(frames.image_size),
        "batch": config.batch,
        "device": _described(device),
        "bfloat16": bfloat16,
    }
    evaluation = Evaluation(
        result=result,
        metrics={**result.metrics, **exported},
        settings=_settings(checkpoint, named, how),
        history=[row for row in read_history(RunDir(checkpoint_url)) if row["step"] < checkpoint.step],
        class_names={name: card.class_names for name, card in cards.items() if card.kind == "classification"},
        undistilled=frozenset(name for name in named if _learned_from(checkpoint, name) is None),
    )
    metrics = {
        "metrics": evaluation.metrics,
        "samples": result.samples,
        "checkpoint": {"url": checkpoint_url, "step": checkpoint.step, "seconds": checkpoint.seconds},
        "fingerprint": checkpoint.fingerprint,
        "evaluated": how,
        "teachers": {name: {"url": named[name], "weights_sha256": card.weights_sha256} for name, card in cards.items()},
        "versions": installed_versions(_PACKAGES),
    }
    if config.export:
        card = model_card(student.config, checkpoint.fingerprint, checkpoint.step, how, evaluation.metrics)
        out.write(MODEL_CARD_FILE, card)
    out.write(METRICS_FILE, (json.dumps(metrics, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())

    def the_rest(page: Page) -> None:
        show_methods(page, student, methods, chosen_examples(result.examples, TEACHER_FRAMES))
        more(page)

    write_report(out.place(REPORT_FILE), f"ClassroomNet: {checkpoint_url.rpartition('/')[2]}", evaluation, the_rest)
    return Evaluated(evaluation=evaluation, step=checkpoint.step, report=out.place(REPORT_FILE))


def run(config: EvaluateConfig, console: Console, more: Callable[[Page], None] = lambda _page: None) -> int:
    """Evaluate, print the chief metrics and the page's path, and return the exit status 0; see `evaluate`."""
    evaluated = evaluate(config, console, more)
    console.print(summary(evaluated))
    console.print(f"open {evaluated.report}", soft_wrap=True, highlight=False)
    return 0


def summary(evaluated: Evaluated) -> Table:
    """Return the chief metrics, and beside them those of trivial predictors."""
    metrics, samples = evaluated.evaluation.metrics, evaluated.evaluation.result.samples
    table = Table(title=f"{samples:,} samples, step {evaluated.step:,}", title_justify="left")
    for heading, wraps in (("", False), ("student", False), ("trivial", False), ("", True)):
        table.add_column(heading, no_wrap=not wraps)
    for one in comparisons(metrics):
        trivial = "" if one.trivial is None else f"{one.trivial:.3f}"
        table.add_row(one.name, f"{one.value:.3f}", trivial, one.answer)
    table.add_row("images/s", f"{metrics['images_per_second']:.1f}", "", "")
    return table


def _check(
    config: EvaluateConfig,
    student: Student,
    checkpoint: Checkpoint,
    lake: Lake,
    cards: dict[str, TeacherCard],
    console: Console,
) -> None:
    """Raise where the student cannot be evaluated as configured, or the metrics would mean nothing."""
    branches = [spec.name for spec in student.config.branches]
    for name, card in cards.items():
        if name not in branches:
            raise StudentError(
                f"--teachers {name}: this student has no branch for it, only for: {', '.join(branches) or 'none'}"
            )
        if _learned_from(checkpoint, name) not in (None, card.weights_sha256):
            raise TeacherError(
                f"teacher {name}: the student was distilled from another one: its imitation of this means nothing; give"
                " the teacher that it was trained with"
            )
    check_unseen(config.checkpoint, checkpoint, lake, config.split, console)
    check_no_leakage(cards, lake, [config.split])
    if any(card.kind == "regression" for card in cards.values()):
        check_disjoint_splits(lake, config.train_split, config.split)


def _detectors(
    config: EvaluateConfig,
    urls: Mapping[str, str],
    checkpoint: Checkpoint,
    student: Student,
    frames: Frames,
    console: Console,
) -> dict[str, DetectorTeacher]:
    """Return the detector teachers.

    Raises TeacherError where one is not the run's, or has learned from these frames.
    """
    seen = frozenset(commit.segment for commit in frames.lake.in_split(config.split))
    detectors = prepare_detectors(urls, student.config, frames.image_size, frames.lake, seen, console)
    for name, detector in detectors.items():
        if _learned_from(checkpoint, name) not in (None, detector.weights_sha256):
            raise TeacherError(
                f"teacher {name}: the student was distilled from another one; give the one of its training"
            )
    return detectors


def _learned_from(checkpoint: Checkpoint, teacher: str) -> object:
    """Return the checksum of the weights of the teacher of that name in the training; None where it was not used."""
    return checkpoint.fingerprint.get(f"teacher.{teacher}")


def _export(config: EvaluateConfig, student: Student, frames: Frames, out: RunDir) -> dict[str, float]:
    """Write the student by itself, checked on a few images of the split; return the check's metrics."""
    batches, _ = drawn_batches(replace(frames, points=False), config.batch, _EXPORT_PICTURES)
    return export_student(student, out.url, [sample.image for batch in batches for sample in batch]).metrics()


def _settings(checkpoint: Checkpoint, named: Mapping[str, str], how: Mapping[str, Any]) -> dict[str, str]:
    """Return what a reader may want to look up."""
    width, height = how["image_size"]
    return {
        "trained": f"{checkpoint.step:,} steps in {checkpoint.seconds:,.0f} s",
        "evaluated on": f"split {how['split']} of {how['lake']}, snapshot {how['snapshot']}",
        **({} if how["where"] is None else {"where": how["where"]}),
        "segments": f"{len(how['segments']):,}",
        "images": f"{width} x {height}, {', '.join(how['cameras'])}, {how['batch']} at once",
        "computed on": f"{how['device']}, {'bfloat16' if how['bfloat16'] else 'float32'}",
        **{f"teacher {name}": url for name, url in named.items()},
        **{f"trained with {name}": str(value) for name, value in sorted(checkpoint.fingerprint.items())},
        **{f"version of {name}": version for name, version in installed_versions(_PACKAGES).items()},
    }


def _described(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def main() -> None:
    """Run from the command line."""
    run_command("evaluate", EvaluateConfig, run, __doc__)


if __name__ == "__main__":
    main()
