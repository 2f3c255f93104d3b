"""A detector teacher from a lake's labels: a student of this project, wider, trained without teachers."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from rich.console import Console

from pipelines.cluster import cluster
from pipelines.data import Frames
from pipelines.device import device_of
from pipelines.train import train_worker
from pipelines.train_config import TrainConfig
from pipelines.train_setup import prepare_training
from student.augmentation import Augmentation
from student.checkpoint import read_student
from student.config import StudentConfig
from student.detections import CLASS_NAMES
from student.detector import Student
from student.distillation.objective import LossWeights
from student.evaluation.run import evaluate_student
from student.export import WEIGHTS_FILE, weights_file
from teachers.card import DETECTOR, TeacherCard, TrainingData, write_card
from teachers.training import versions
from training.distributed import Distributed
from training.loop import LoopConfig
from training.optimizer import OptimizerConfig
from training.precision import uses_bfloat16
from training.run_dir import RunDir


@dataclass(frozen=True, kw_only=True)
class DetectorTrainConfig:
    """How a detector teacher is trained: its levels, classes and anchors are the student's, its channels twice as many.

    A student's features are compared with the teacher's cell by cell, so strides and levels have to stay.
    """

    # The detector.
    student: StudentConfig = field(
        default_factory=lambda: StudentConfig(
            stages=(32, 64, 128, 192, 256), blocks=(2, 2, 2, 2), width=96, head_width=384
        )
    )
    # This share of the segments keeps its labels; the others are not seen.
    labelled_fraction: float = 1.0
    # Images per step.
    batch: int = 6
    # The training stops before it starts where anchors overlap a smaller share of the boxes by IoU 0.5.
    min_anchor_recall: float = 0.6
    # Weight of each detection loss.
    weights: LossWeights = field(default_factory=LossWeights)
    # What happens to the images.
    augmentation: Augmentation = field(default_factory=Augmentation)
    # How fast.
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    # How long, and in which number format.
    loop: LoopConfig = field(default_factory=LoopConfig)


def train_detector(
    config: DetectorTrainConfig,
    data: TrainConfig,
    evaluation: Frames,
    eval_samples: int,
    console: Console,
    progress: Callable[[str, int, int, str], None],
) -> TeacherCard:
    """Train a detector and evaluate it; write its weights and card beside the run, and return the card.

    data: where the frames and the run are; its settings of the training are replaced by those of `config`
    evaluation, eval_samples: frames that it is not trained on, and at most how many of them
    progress: called with the stage, units done and units in all, and their name
    """
    run = replace(
        data,
        teachers=("none",),
        student=config.student,
        labelled_fraction=config.labelled_fraction,
        batch=config.batch,
        min_anchor_recall=config.min_anchor_recall,
        weights=config.weights,
        augmentation=config.augmentation,
        optimizer=config.optimizer,
        loop=config.loop,
    )
    plan = prepare_training(run, console, progress)
    steps = config.loop.steps
    device = device_of(run.device)
    if run.workers:
        with cluster():
            # Ray is imported where it is used: without `--workers` it is not needed.
            from pipelines.train_on_ray import train_on_ray

            train_on_ray(plan, console)
    else:
        train_worker(plan, Distributed(device=device), lambda step, _metrics: progress("train", step, steps, "steps"))
    detector, checkpoint = read_student(run.out)
    detector = detector.to(device)
    stream = evaluation.stream(1, shuffle=False)
    count = min(stream.epoch_samples, eval_samples)
    result = evaluate_student(
        detector,
        itertools.islice(stream.loader(), count),
        None,
        bfloat16=uses_bfloat16(config.loop.precision, device),
        progress=lambda done: progress("evaluate", done, count, "images"),
    )
    lake = run.open_lake(plan.snapshot)
    measured = {
        **result.metrics,
        "training/steps": float(checkpoint.step),
        "training/seconds": checkpoint.seconds,
    }
    seen = {run.split: tuple(sorted(plan.labelled_segments))}
    frames = TrainingData(lake=lake.store.url, snapshot=lake.snapshot, segments=seen, image_size=plan.config.size)
    return write_detector(run.out, detector, measured, frames)


def write_detector(
    url: str, detector: Student, metrics: dict[str, float], data: TrainingData | None, name: str = "detector"
) -> TeacherCard:
    """Write a detector's weights and card to a folder and return the card."""
    content = weights_file(detector)
    RunDir(url).write(WEIGHTS_FILE, content)
    card = TeacherCard(
        name=name,
        kind=DETECTOR,
        architecture="faster_rcnn",
        options={},
        channels=detector.config.width,
        class_names=CLASS_NAMES,
        weights_sha256=hashlib.sha256(content).hexdigest(),
        metrics=metrics,
        data=data,
        versions=versions(),
    )
    write_card(url, card)
    return card
