"""A teacher's training on the workers of Ray Train."""

from __future__ import annotations

import ray
from rich.console import Console

from pipelines.ray_workers import Report, run_workers, use_gpus
from pipelines.train_teachers import TeacherName, TrainTeachersConfig, train_worker
from teachers.card import TeacherCard
from teachers.confusion import Confusion
from training.distributed import Distributed


def train_teacher_on_ray(
    config: TrainTeachersConfig, name: TeacherName, folder: str, console: Console
) -> tuple[TeacherCard, Confusion]:
    """Train a teacher on the workers of the cluster that this process has joined; return its card and metrics.

    Raises TrainingError, in one line, where the training stops before its end.
    """
    use_gpu = use_gpus(config.workers, config.device, int(ray.cluster_resources().get("GPU", 0)))
    console.print(f"{config.workers} workers, {'a GPU each' if use_gpu else 'without GPUs'}", highlight=False)
    loop = config.spvcnn.loop if name == "spvcnn" else config.mask_rcnn.loop
    found: tuple[TeacherCard, Confusion] = run_workers(
        _work,
        (config, name, folder),
        workers=config.workers,
        use_gpu=use_gpu,
        folder=folder,
        max_failures=config.max_failures,
        report_every=loop.checkpoint_every,
        steps=loop.steps,
    )
    return found


def _work(
    task: tuple[TrainTeachersConfig, TeacherName, str], distributed: Distributed, report: Report
) -> tuple[TeacherCard, Confusion] | None:
    config, name, folder = task
    return train_worker(config, name, folder, distributed, on_step=report)
