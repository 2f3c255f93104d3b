"""A student's training on the workers of Ray Train, and its teachers in actors of Ray."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import ray
import ray.train
from ray.exceptions import RayError
from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchTrainer
from rich.console import Console

from datalake.disk import room_in
from pipelines.paths import absolute
from pipelines.train import teacher_of, train_worker
from pipelines.train_config import TrainConfig
from pipelines.train_setup import TrainPlan
from student.config import StudentError
from teachers.ray_pool import ActorSpec, teacher_actors
from training.distributed import Distributed
from training.errors import TrainingError


def train_on_ray(plan: TrainPlan, console: Console) -> None:
    """Train on the workers of the cluster that this process has joined.

    Raises TrainingError, in one line, where the training stops before its end.
    """
    config = plan.config
    use_gpu = wants_gpus(config, int(ray.cluster_resources().get("GPU", 0)))
    console.print(f"{config.workers} workers, {'a GPU each' if use_gpu else 'without GPUs'}", highlight=False)
    folder = absolute(config.out)
    trainer = TorchTrainer(
        _ray_worker,  # type: ignore[arg-type]  # the annotation is older than return values
        train_loop_config={"plan": plan},
        scaling_config=ScalingConfig(num_workers=config.workers, use_gpu=use_gpu),
        run_config=RunConfig(
            name="ray",
            storage_path=folder,
            failure_config=FailureConfig(max_failures=config.max_failures),
        ),
    )
    try:
        # Ray Train keeps a record of its own there.
        with room_in(folder), teacher_actors(_actor_specs(plan)):
            result = trainer.fit()
    except WorkerGroupError as error:
        raise TrainingError(f"a worker failed: {_last_line(next(iter(error.worker_failures.values())))}") from error
    except ControllerError as error:
        raise TrainingError(f"Ray Train failed: {_last_line(error.controller_failure)}") from error
    except RayError as error:
        # The node of this process is lost, or so overloaded that the cluster takes it for lost.
        raise TrainingError(
            f"the cluster lost the training: {_last_line(error)}; run the same command again to go on"
        ) from error
    stopped = result.return_value  # type: ignore[attr-defined]  # the annotation is of an older Result
    if stopped is not None:
        raise TrainingError(stopped)


def wants_gpus(config: TrainConfig, available: int) -> bool:
    """Return whether the workers take a GPU each of a cluster that has so many.

    Raises TrainingError where there are some, but not for all: none would be used.
    """
    if config.device == "cpu" or not available:
        return False
    # A teacher's share is of one GPU.
    left = available - math.ceil(config.teacher_gpus * len(config.active_teachers))
    if left < config.workers:
        beside = f" beside the teachers' {config.teacher_gpus:g} each" if config.teacher_gpus else ""
        raise TrainingError(
            f"--workers {config.workers}: the cluster has GPUs for {max(0, left)} of them{beside}; give"
            f" {f'--workers {left}' if left > 0 else 'the teachers less'}, or --device cpu for all"
        )
    return True


def _actor_specs(plan: TrainPlan) -> dict[str, ActorSpec]:
    if plan.config.teachers_in == "process":
        return {}
    # No CPU is set aside: Ray would wait for ever for one that workers have taken.
    return {
        name: ActorSpec(load=partial(teacher_of, plan, name), num_cpus=0, num_gpus=plan.config.teacher_gpus)
        for name in plan.teachers
    }


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def _ray_worker(settings: dict[str, Any]) -> str | None:
    """Run in each worker of Ray Train; return why the training stopped before its end, if it did.

    An error that all workers find alike is returned: a restart would end the same way. One that a worker finds in its
    own images is raised: the others would wait for it.
    """
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    distributed = Distributed(context.get_world_rank(), context.get_world_size(), device)
    plan: TrainPlan = settings["plan"]
    every = plan.config.loop.checkpoint_every

    def tell(step: int, values: Mapping[str, float]) -> None:
        if step % every == 0 or step == plan.config.loop.steps:
            ray.train.report({"step": step, **values})
            if distributed.rank == 0:
                print(f"step {step:,} of {plan.config.loop.steps:,}: " + _line(values), flush=True)

    try:
        train_worker(plan, distributed, tell)
    except (TrainingError, StudentError) as error:
        return str(error)
    return None


def _line(values: Mapping[str, float]) -> str:
    losses = ", ".join(f"{name[5:]} {value:.3f}" for name, value in values.items() if name.startswith("loss/"))
    return f"{losses}; {values['images_per_second']:.1f} images/s"
