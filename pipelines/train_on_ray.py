"""A student's training on the workers of Ray Train, and its teachers in actors of Ray."""

from __future__ import annotations

import math
from functools import partial

import ray
from rich.console import Console

from pipelines.paths import absolute
from pipelines.ray_workers import Report, run_workers, use_gpus
from pipelines.train import teacher_of, train_worker
from pipelines.train_config import TrainConfig
from pipelines.train_setup import TrainPlan
from teachers.ray_pool import ActorSpec, teacher_actors
from training.distributed import Distributed


def train_on_ray(plan: TrainPlan, console: Console) -> None:
    """Train on the workers of the cluster that this process has joined.

    Raises TrainingError, in one line, where the training stops before its end.
    """
    config = plan.config
    use_gpu = wants_gpus(config, int(ray.cluster_resources().get("GPU", 0)))
    console.print(f"{config.workers} workers, {'a GPU each' if use_gpu else 'without GPUs'}", highlight=False)
    with teacher_actors(_actor_specs(plan)):
        run_workers(
            _work,
            plan,
            workers=config.workers,
            use_gpu=use_gpu,
            folder=absolute(config.out),
            max_failures=config.max_failures,
            report_every=config.loop.checkpoint_every,
            steps=config.loop.steps,
        )


def wants_gpus(config: TrainConfig, available: int) -> bool:
    """Return whether the workers take a GPU each of a cluster that has so many.

    Raises TrainingError where there are some, but not for all: none would be used.
    """
    # A teacher's share is of one GPU.
    taken = math.ceil(config.teacher_gpus * len(config.active_teachers))
    beside = f" beside the teachers' {config.teacher_gpus:g} each" if config.teacher_gpus else ""
    return use_gpus(config.workers, config.device, available, taken, beside)


def _actor_specs(plan: TrainPlan) -> dict[str, ActorSpec]:
    if plan.config.teachers_in == "process":
        return {}
    # No CPU is set aside: Ray would wait for ever for one that workers have taken.
    return {
        name: ActorSpec(load=partial(teacher_of, plan, name), num_cpus=0, num_gpus=plan.config.teacher_gpus)
        for name in plan.teachers
    }


def _work(plan: TrainPlan, distributed: Distributed, report: Report) -> None:
    train_worker(plan, distributed, report)
