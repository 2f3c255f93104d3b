"""Train a student from a lake: `python pipelines/train.py --lake URL --out URL --teachers NAME=FOLDER …`.

    OUT/checkpoint.pt     the student and its training, replaced as a whole every so many steps
    OUT/history.jsonl     a line for each step: losses, rates, throughput, waiting
    OUT/tensorboard/      the same for TensorBoard

Run it again after any interruption, with the same settings, and it goes on where it was. It runs by itself, or as
`ray job submit --working-dir . -- python pipelines/train.py …` on a cluster. With `--workers 0` the training runs in
this process; otherwise Ray Train starts so many workers, and starts them again when one is lost.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
import tyro
from ray.exceptions import RayError
from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchTrainer
from rich.console import Console

from datalake.commit import LakeError
from datalake.space import room_in
from pipelines.classrooms import (
    NamedTeacher,
    all_remembered,
    look_at_points,
    open_cached,
    open_teacher,
    read_cards,
)
from pipelines.cluster import cluster
from pipelines.curriculum import mixed_batches
from pipelines.device import decoding_threads, device_of
from pipelines.place import absolute
from pipelines.progress import ProgressBar
from pipelines.settings import Train
from pipelines.stop import stoppable
from pipelines.syllabus import Syllabus, plan_training
from student.config import StudentError
from student.detector import Student
from training.run_dir import RunDir
from student.distillation.objective import Lesson
from training.loop import Plan, Trained, train
from training.distributed import Distributed
from teachers.card import TeacherError
from teachers.classroom import Classroom, LocalClassroom
from teachers.remote import RemoteClassroom, TeacherPost, employed
from teachers.teacher import Teacher
from training.errors import TrainingError


def attend(
    syllabus: Syllabus, world: Distributed, progress: Callable[[int, Mapping[str, float]], None] = lambda _step, _values: None
) -> Trained:
    """Train as one of the workers, from the checkpoint if there is one."""
    config = syllabus.config
    lake = config.open_lake(syllabus.snapshot)
    width, height = config.image_size
    grid = syllabus.student.grid(height, width)
    remember = Path(absolute(config.remember)) if config.remember else None
    points = look_at_points(read_cards(syllabus.teachers).values())
    if points and remember is not None:
        # Nobody will look at points whose answers are all there, and they are most of what would be read.
        everything = config.frames(lake, points=False)
        points = not all_remembered(syllabus.teachers, everything, grid, remember)
    threads = decoding_threads(world.device)
    labelled, unlabelled = (
        config.frames(lake, points=points, segments=segments, threads=threads)
        for segments in (syllabus.labelled_segments, syllabus.unlabelled_segments)
    )
    # Weights that do not depend on what was drawn before.
    torch.manual_seed(config.seed)
    lesson = Lesson(Student(syllabus.student), config.weights, syllabus.class_weights)
    plan = Plan(
        batches=mixed_batches(
            labelled, syllabus.labelled, unlabelled, syllabus.unlabelled, rank=world.rank, world_size=world.size
        ),
        labelled=syllabus.labelled,
        unlabelled=syllabus.unlabelled,
        classroom=_classroom(syllabus, grid, world.device),
        seed=config.seed,
        identity=config.identity(lake),
        teaching="shuffled" if config.listen == "shuffled" else "real",
    )
    folder = RunDir(absolute(config.out))
    return train(lesson, config.loop, plan, folder, world=world, progress=progress)


def _classroom(syllabus: Syllabus, grid: tuple[int, int], device: torch.device) -> Classroom | None:
    if not syllabus.teachers:
        return None
    if syllabus.config.teachers_in == "actors":
        return RemoteClassroom(list(syllabus.teachers), grid, device=device)
    return LocalClassroom([_teacher(syllabus, name, device) for name in syllabus.teachers], grid, device=device)


def _teacher(syllabus: Syllabus, name: str, device: torch.device | str) -> Teacher:
    """Return a teacher, or what the lake has of its answers, under the name that the student calls it."""
    config, url = syllabus.config, syllabus.teachers[name]
    if name in config.tables:
        lake = config.open_lake(syllabus.snapshot)
        return NamedTeacher(name, open_cached(url, config.tables[name], lake, config.split))
    return open_teacher(name, url, device, Path(absolute(config.remember)) if config.remember else None)


def run(config: Train, console: Console) -> int:
    """Train, print a closing line, and return the exit status 0."""
    with ProgressBar(console) as bar:
        syllabus = plan_training(config, console, bar.update)
    if config.workers:
        with cluster():
            _train_on_ray(syllabus, console)
        trained = None
    else:
        with ProgressBar(console) as bar:
            trained = attend(
                syllabus,
                Distributed(device=device_of(config.device)),
                lambda step, _values: bar.update("train", step, config.loop.steps, "steps"),
            )
    took = f" in {trained.seconds:,.0f} s" if trained else ""
    console.print(f"trained {config.loop.steps:,} steps{took}; {absolute(config.out)}", soft_wrap=True, highlight=False)
    return 0


def wants_gpus(config: Train, available: int) -> bool:
    """Return whether the workers take a GPU each of a cluster that has so many.

    Raises TrainingError where there are some, but not for all: none would be used.
    """
    if config.device == "cpu" or not available:
        return False
    # A teacher's share is of one GPU.
    left = available - math.ceil(config.teacher_gpus * len(config.heard))
    if left < config.workers:
        beside = f" beside the teachers' {config.teacher_gpus:g} each" if config.teacher_gpus else ""
        raise TrainingError(
            f"--workers {config.workers}: the cluster has GPUs for {max(0, left)} of them{beside}; give"
            f" {f'--workers {left}' if left > 0 else 'the teachers less'}, or --device cpu for all"
        )
    return True


def _train_on_ray(syllabus: Syllabus, console: Console) -> None:
    config = syllabus.config
    use_gpu = wants_gpus(config, int(ray.cluster_resources().get("GPU", 0)))
    console.print(f"{config.workers} workers, {'a GPU each' if use_gpu else 'without GPUs'}", highlight=False)
    folder = absolute(config.out)
    trainer = TorchTrainer(
        _work,  # type: ignore[arg-type]  # the annotation is older than return values
        train_loop_config={"syllabus": syllabus},
        scaling_config=ScalingConfig(num_workers=config.workers, use_gpu=use_gpu),
        run_config=RunConfig(
            name="ray",
            storage_path=folder,
            failure_config=FailureConfig(max_failures=config.max_failures),
        ),
    )
    try:
        # Ray Train keeps a record of its own there.
        with room_in(folder), employed(_posts(syllabus)):
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


def _posts(syllabus: Syllabus) -> list[TeacherPost]:
    if syllabus.config.teachers_in == "process":
        return []
    # No CPU is set aside: Ray would wait for ever for one that workers have taken.
    return [
        TeacherPost(
            name=name, load=partial(_teacher, syllabus, name), num_cpus=0, num_gpus=syllabus.config.teacher_gpus
        )
        for name in syllabus.teachers
    ]


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def _work(settings: dict[str, Any]) -> str | None:
    """Run in each worker of Ray Train; return why the training stopped before its end, if it did.

    What all workers find alike is an answer: doing the same again would end the same way. What a worker finds in its
    own pictures is raised: the others would wait for it.
    """
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    world = Distributed(context.get_world_rank(), context.get_world_size(), device)
    syllabus: Syllabus = settings["syllabus"]
    every = syllabus.config.loop.checkpoint_every

    def tell(step: int, values: Mapping[str, float]) -> None:
        if step % every == 0 or step == syllabus.config.loop.steps:
            ray.train.report({"step": step, **values})
            if world.rank == 0:
                print(f"step {step:,} of {syllabus.config.loop.steps:,}: " + _line(values), flush=True)

    try:
        attend(syllabus, world, tell)
    except (TrainingError, StudentError) as error:
        return str(error)
    return None


def _line(values: Mapping[str, float]) -> str:
    losses = ", ".join(f"{name[5:]} {value:.3f}" for name, value in values.items() if name.startswith("loss/"))
    return f"{losses}; {values['images_per_second']:.1f} images/s"


def main() -> None:
    """Run from the command line; bad input ends in one line and status 2, a signal in one and 128 + its number."""
    config = tyro.cli(Train, description=__doc__)
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    try:
        with stoppable("train"):
            status = run(config, Console())
    except (LakeError, TeacherError, TrainingError, StudentError, OSError) as error:
        Console(stderr=True).print(f"train: {error}", soft_wrap=True, highlight=False, markup=False)
        sys.exit(2)
    sys.exit(status)


if __name__ == "__main__":
    main()
