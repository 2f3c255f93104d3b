"""Train a student from a lake: `python pipelines/train.py --lake URL --out URL --teachers NAME=FOLDER …`.

    OUT/checkpoint.pt     the student and its training, replaced as a whole every so many steps
    OUT/history.jsonl     a line for each step: losses, rates, throughput, waiting
    OUT/tensorboard/      the same for TensorBoard

`--preset paper` trains the paper's student instead of ClassroomNet, `--preset resnet50` one for large images;
`--student.…` changes single parts of any.

Run it again after any interruption, with the same settings, and it goes on where it was. It runs by itself, or as
`ray job submit --working-dir . -- python pipelines/train.py …` on a cluster. With `--workers 0` the training runs in
this process; otherwise Ray Train starts so many workers, and starts them again when one is lost.
"""

from __future__ import annotations

import training.openmp  # isort: skip  # noqa: F401 - before torch

import logging
from collections.abc import Callable, Iterator, Mapping

import torch
from rich.console import Console

from datalake.cli import run_command
from datalake.progress_bar import ProgressBar
from pipelines.cluster import cluster
from pipelines.data import mixed_batches
from pipelines.device import decoding_threads, device_of
from pipelines.fine_tuning import load_fine_tuned
from pipelines.option_ranges import check_options
from pipelines.paths import absolute
from pipelines.train_config import DISTILLATION_METHODS, TrainConfig, read_preset
from pipelines.train_setup import TrainPlan, prepare_training
from pipelines.trunk_weights import load_pretrained, load_trunk, recompute_activations
from student.detector import Student
from student.distillation.objective import DetectionObjective
from student.layers import memory_format
from teachers.load import needs_points
from teachers.loading import open_pool, open_teacher, read_cards
from teachers.pool import TeacherPool
from teachers.teacher import Teacher
from training.distributed import Distributed
from training.loop import Trained, TrainInputs, train
from training.objective import Batch
from training.run_dir import RunDir
from training.run_lock import run_lock


def train_worker(
    plan: TrainPlan,
    distributed: Distributed,
    on_step: Callable[[int, Mapping[str, float]], None] = lambda _step, _metrics: None,
) -> Trained:
    """Train as one of the workers, from the checkpoint if there is one."""
    config = plan.config
    lake = config.open_lake(plan.snapshot)
    width, height = config.size
    grid = plan.student.grid(height, width)
    # Points are most of what would be read; nobody looks at them where answers are looked up.
    asked = {name: url for name, url in plan.teachers.items() if name not in config.tables}
    points = needs_points(read_cards(asked).values())
    threads = decoding_threads(distributed.device)
    labelled, unlabelled = (
        config.frames(lake, points=points, segments=segments, threads=threads)
        for segments in (plan.labelled_segments, plan.unlabelled_segments)
    )
    from_step = mixed_batches(
        labelled,
        plan.labelled,
        unlabelled,
        plan.unlabelled,
        rank=distributed.rank,
        world_size=distributed.size,
        data_workers=config.data_workers,
    )

    def batches(cursor: int) -> Iterator[Batch]:
        # The cursor counts steps.
        share = distributed.share(plan.labelled, "labelled images")
        for step, samples in enumerate(from_step(cursor), cursor):
            yield Batch(samples, share, step + 1)

    pool = _open_pool(plan, grid, distributed.device)
    inputs = TrainInputs(
        batches=batches,
        labelled=plan.labelled,
        unlabelled=plan.unlabelled,
        teach=None if pool is None else pool.teach,
        seed=config.seed,
        fingerprint=config.identity(lake),
    )
    objective = build_objective(plan).to(distributed.device)
    layout = memory_format(plan.student.norm, distributed.device)
    objective = objective.to(memory_format=layout)  # type: ignore[call-overload]  # torch's stubs lack it
    return train(
        objective,
        config.loop,
        config.optimizer,
        inputs,
        RunDir(absolute(config.out)),
        distributed=distributed,
        on_step=on_step,
    )


def build_objective(plan: TrainPlan) -> DetectionObjective:
    """Return the student, its weights from the seed or as they are given, and the methods by which it is distilled."""
    config = plan.config
    torch.manual_seed(config.seed)
    student = Student(plan.student)
    if config.student.trunk_weights is not None:
        load_trunk(student, config.student.trunk_weights, config.out)
    if config.init is not None:
        assert plan.init_sha256 is not None
        load_pretrained(student, config.init, config.out, plan.init_sha256)
    if config.fine_tune is not None:
        load_fine_tuned(student, config.fine_tune, config.out, plan.fine_tune_sha256)
    if config.recompute_activations:
        recompute_activations(student)
    methods = {name: DISTILLATION_METHODS[name].build(plan) for name in plan.methods}
    return DetectionObjective(student, config.weights, methods, config.augmentation, config.targets, plan.detectors)


def _open_pool(plan: TrainPlan, grid: tuple[int, int], device: torch.device) -> TeacherPool | None:
    if not plan.teachers:
        return None
    if plan.config.teachers_in == "actors":
        from teachers.ray_pool import RayPool

        return RayPool(list(plan.teachers), grid, device=device)
    config = plan.config
    return open_pool(plan.teachers, grid, device, config.cached_targets(config.open_lake(plan.snapshot)))


def teacher_of(plan: TrainPlan, name: str, device: torch.device | str) -> Teacher:
    """Return a teacher, or what the lake has of its answers."""
    config = plan.config
    cached = config.cached_targets(config.open_lake(plan.snapshot))
    return open_teacher(name, plan.teachers[name], device, cached)


def run(config: TrainConfig, console: Console) -> int:
    """Train, print a closing line, and return the exit status 0."""
    check_options(config)
    with run_lock(absolute(config.out)):
        return _run(config, console)


def _run(config: TrainConfig, console: Console) -> int:
    with ProgressBar(console) as bar:
        plan = prepare_training(config, console, bar.update)
    if config.workers:
        with cluster():
            # Ray is imported where it is used: without `--workers` it is not needed.
            from pipelines.train_on_ray import train_on_ray

            train_on_ray(plan, console)
        trained = None
    else:
        with ProgressBar(console) as bar:
            trained = train_worker(
                plan,
                Distributed(device=device_of(config.device)),
                lambda step, _values: bar.update("train", step, config.loop.steps, "steps"),
            )
    took = f" in {trained.seconds:,.0f} s" if trained else ""
    console.print(f"trained {config.loop.steps:,} steps{took}; {absolute(config.out)}", soft_wrap=True, highlight=False)
    return 0


def main() -> None:
    """Run from the command line."""
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    run_command("train", TrainConfig, run, __doc__, prepare=read_preset)


if __name__ == "__main__":
    main()
