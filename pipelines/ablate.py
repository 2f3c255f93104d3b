"""Does distillation help? `python pipelines/ablate.py --train.lake URL --train.out OUT --train.teachers NAME=FOLDER …`.

Trains one student for each arm and seed, evaluates all of them on the same frames, and writes the table with means and
standard deviations: OUT/ablation-SPLIT.json, OUT/ablation-SPLIT.md and OUT/report-SPLIT.html, for the evaluated split.

    none        the same architecture without distillation; every image of its batches is labelled
    classroom   distilled from every teacher
    <teacher>   distilled from that teacher alone; the other branches stay, not distilled
    shuffled    distilled from every teacher, but each image gets the targets of another
    fgfi        that distillation method alone, likewise all others that `train.py --distill` knows
    imitation+fgfi, fgfi-shuffled
                several methods; a method with the targets of another image, or with `-random` ones
    autolabel, autolabel+imitation, autolabel-shuffled
                the auto-labels of `--train.auto-labels`, which no other arm uses, alone or beside methods; those
                of another image

Methods that learn from a detector need one among the teachers: `--train.teachers … big=FOLDER`.
`--train.preset paper` studies the paper's student.

Run it again after any interruption: finished arms are kept, unfinished ones go on where they were.
"""

from __future__ import annotations

import training.openmp  # isort: skip  # noqa: F401 - before torch

import json
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, get_args

import torch
from rich.console import Console

from datalake.children import process_pool
from datalake.cli import run_command
from datalake.limits import check_range
from datalake.progress_bar import ProgressBar
from pipelines.cell_means import cell_means
from pipelines.data import check_disjoint_splits, check_no_leakage
from pipelines.detector_teachers import prepare_detectors
from pipelines.device import device_of
from pipelines.image_size import find_image_size
from pipelines.option_ranges import check_options
from pipelines.paths import absolute
from pipelines.peak_memory import PeakMemory
from pipelines.train import train_worker
from pipelines.train_config import DISTILLATION_METHODS, Method, TrainConfig, read_preset, run_fingerprint
from pipelines.train_setup import prepare_training
from student.checkpoint import read_student
from student.config import StudentError
from student.distillation.controls import Targets
from student.evaluation.run import evaluate_student
from student.report.ablation import CLASSROOM, NONE, SHUFFLED, Results, fill_page, markdown
from student.report.page import Page
from teachers.load import needs_points
from teachers.loading import open_pool, parse_teachers, read_cards
from training.checkpoint import CHECKPOINT_FILE
from training.distributed import Distributed
from training.errors import TrainingError
from training.fingerprint import check_same_run
from training.metrics_log import read_history
from training.precision import uses_bfloat16
from training.run_dir import RunDir
from training.run_lock import run_lock

# What stands behind an arm's methods -> the targets that they get.
_CONTROLS: dict[str, Targets] = {"": "real", "shuffled": "shuffled", "random": "random"}
# The arm that trains on auto-labels, alone or joined with methods.
_AUTOLABEL = "autolabel"
_ON_ONE_GPU = 6


def _at_a_time() -> int:
    cores = os.cpu_count() or 1
    # One student uses a fifth of a GPU, but two or three cores to feed it.
    return max(1, min(_ON_ONE_GPU, cores // 3)) if torch.cuda.is_available() else cores


@dataclass(frozen=True, kw_only=True)
class AblateConfig:
    """Train the same student with and without its teachers, and compare."""

    # How each student is trained; `--train.lake`, `--train.out` and `--train.teachers` are those of the study. The
    # arms set seed, rate and the teachers that the student is distilled from.
    train: TrainConfig
    # The arms; by default none, classroom, each teacher alone, shuffled. Methods by their names as well.
    arms: tuple[str, ...] = ()
    # Seeds of every arm.
    seeds: tuple[int, ...] = (0, 1, 2)
    # Shares of the segments that keep their labels: one table for each.
    labelled_fractions: tuple[float, ...] = (0.025, 1.0)
    # Steps for each of these shares; the training's own by default.
    steps: tuple[int, ...] = ()
    # Learning rate of an arm, as ARM=RATE, where it is not the training's own: tune it for each before comparing.
    rates: tuple[str, ...] = ()
    # The split to evaluate on.
    eval_split: str = "val"
    # Students trained at a time, each on its share of the CPU's cores; they share the GPU if there is one.
    parallel: int = field(default_factory=_at_a_time)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One student of the study."""

    arm: str
    fraction: float
    config: TrainConfig
    eval_split: str
    threads: int


def jobs_of(study: AblateConfig) -> list[Job]:
    """Return the students to train, one seed after the other so that what is there is comparable at any time.

    Raises StudentError for an unknown arm or rate, and where two students would be one in folders and tables.
    """
    detectors = tuple(study.train.detectors)
    names = tuple(name for name in parse_teachers(study.train.teachers) if name not in detectors)
    if taken := sorted({NONE, CLASSROOM, SHUFFLED, _AUTOLABEL, *DISTILLATION_METHODS} & set(names)):
        raise StudentError(f"--train.teachers {taken[0]}: that is the name of an arm; call the teacher otherwise")
    known = (NONE, CLASSROOM, *(names if len(names) > 1 else ()), SHUFFLED)
    arms = study.arms or known
    rates = {}
    for text in study.rates:
        arm, _, rate = text.partition("=")
        try:
            rates[arm] = float(rate)
        except ValueError as error:
            raise StudentError(f"--rates {text}: expected ARM=RATE") from error
        check_range(f"--rates {arm}", rates[arm], 0, exclusive=True)
    if unknown := sorted(arm for arm in {*arms, *rates} - set(known) if _methods_in(arm) is None):
        raise StudentError(
            f"unknown arm {unknown[0]}; there are {', '.join(known)}, and methods joined by + of"
            f" {', '.join((_AUTOLABEL, *DISTILLATION_METHODS))}, with -shuffled or -random behind"
        )
    if study.train.auto_labels is None and any(_is_auto_labelled(arm) for arm in arms):
        raise StudentError(f"--arms {_AUTOLABEL}: expected --train.auto-labels NAME, the labels that autolabel.py made")
    if study.train.workers:
        raise StudentError(
            "--train.workers: a study trains each student in one process; --parallel is how many at a time"
        )
    if not names and {CLASSROOM, SHUFFLED} & set(arms):
        raise StudentError("--train.teachers none: expected teachers whose help is to be measured")
    if study.steps and len(study.steps) != len(study.labelled_fractions):
        raise StudentError("--steps: expected a number for each of --labelled-fractions")
    for what, values in (
        ("arms", arms),
        ("seeds", study.seeds),
        ("labelled-fractions", [_named(fraction) for fraction in study.labelled_fractions]),
    ):
        if twice := [value for value, count in Counter(values).items() if count > 1]:
            raise StudentError(f"--{what} {twice[0]}: named twice; for other steps take another --train.out")
    steps = study.steps or (study.train.loop.steps,) * len(study.labelled_fractions)
    jobs = []
    for fraction, count in zip(study.labelled_fractions, steps, strict=True):
        for seed in study.seeds:
            for arm in arms:
                learning_rate = rates.get(arm, study.train.optimizer.learning_rate)
                config = replace(
                    study.train,
                    out=f"{absolute(study.train.out)}/{_named(fraction)}/{arm}-{seed}",
                    seed=seed,
                    labelled_fraction=fraction,
                    **_overrides(arm, study.train, names, detectors),
                    loop=replace(study.train.loop, steps=count),
                    optimizer=replace(study.train.optimizer, learning_rate=learning_rate),
                )
                threads = max(1, (os.cpu_count() or 1) // study.parallel)
                jobs.append(
                    Job(arm=arm, fraction=fraction, config=config, eval_split=study.eval_split, threads=threads)
                )
    return jobs


def _overrides(arm: str, train: TrainConfig, names: Sequence[str], detectors: Sequence[str]) -> dict[str, Any]:
    """Return the settings by which an arm's training differs from the study's.

    names, detectors: the teachers that have maps, and those that are detectors
    """
    if arm == NONE:
        return {"distill": ("none",), "targets": "real", "mute": (), "auto_labels": None}
    if arm in names or arm in (CLASSROOM, SHUFFLED):
        methods, targets = train.distill, "shuffled" if arm == SHUFFLED else "real"
    else:
        found = _methods_in(arm)
        assert found is not None
        methods, targets = found
    asked = any(DISTILLATION_METHODS[name].learns_from == "detectors" for name in methods)
    others = tuple(name for name in names if name != arm) if arm in names else ()
    return {
        "distill": methods or ("none",),
        "targets": targets,
        "mute": others if asked else (*others, *detectors),
        "auto_labels": train.auto_labels if _is_auto_labelled(arm) else None,
    }


def _methods_in(arm: str) -> tuple[tuple[Method, ...], Targets] | None:
    """Return the methods and targets of an arm like `imitation+fgfi` or `fgfi-shuffled`; None where it is no such."""
    text, _, control = arm.partition("-")
    names = [name for name in text.split("+") if name != _AUTOLABEL]
    methods = tuple(name for name in get_args(Method) if name in names and name in DISTILLATION_METHODS)
    targets = _CONTROLS.get(control)
    # Of auto-labels alone there are shuffled ones, but none that are drawn.
    known = bool(methods) or (_is_auto_labelled(arm) and targets != "random")
    return (methods, targets) if targets is not None and len(methods) == len(names) and known else None


def _is_auto_labelled(arm: str) -> bool:
    return _AUTOLABEL in arm.partition("-")[0].split("+")


def _named(fraction: float) -> str:
    return f"{fraction:g}"


def finished(job: Job) -> dict[str, float] | None:
    """Return the metrics of a student that was trained and evaluated before, if it was.

    Raises TrainingError where it was trained with other settings.
    """
    folder = RunDir(job.config.out)
    if (done := folder.read(_kept(job))) is None:
        return None
    settings = run_fingerprint(job.config, device_of(job.config.device))
    fingerprint = read_student(job.config.out)[1].fingerprint
    # The student's architecture, which it has as well, follows from the settings.
    check_same_run(folder.place(CHECKPOINT_FILE), {name: fingerprint.get(name) for name in settings}, settings)
    metrics: dict[str, float] = json.loads(done)
    return metrics


def _kept(job: Job) -> str:
    # The same students may be evaluated on another split later.
    return f"metrics-{job.eval_split}.json"


def work(job: Job) -> dict[str, float]:
    """Train and evaluate one student, from its checkpoint if there is one; return its metrics."""
    torch.set_num_threads(job.threads)
    silent = Console(file=sys.stderr, quiet=True)
    plan = prepare_training(job.config, silent, lambda *_: None)
    device = device_of(job.config.device)
    memory = PeakMemory(device)
    with run_lock(job.config.out):
        trained = train_worker(plan, Distributed(device=device))
    peak = {} if memory.bytes is None else {"training/peak_memory_bytes": float(memory.bytes)}
    _, checkpoint = read_student(job.config.out)
    beside = (value.numel() for name, value in checkpoint.objective.items() if name.startswith("methods."))
    labelled = plan.config.frames(plan.config.open_lake(plan.snapshot), points=False, segments=plan.labelled_segments)
    epoch = -(-labelled.stream(1, shuffle=False).epoch_samples // plan.labelled)
    metrics = {
        **_evaluated(job),
        "training/method_parameters": float(sum(beside)),
        "training/seconds": trained.seconds,
        "training/steps": float(trained.steps),
        "training/images": float(trained.steps * job.config.batch),
        "training/labelled_images": float(trained.steps * plan.labelled),
        "training/labelled_segments": float(len(plan.labelled_segments)),
        "training/segments": float(len(plan.labelled_segments | plan.unlabelled_segments)),
        "training/learning_rate": job.config.optimizer.learning_rate,
        **peak,
        **first_epoch_losses(read_history(RunDir(job.config.out)), epoch),
    }
    RunDir(job.config.out).write(_kept(job), json.dumps(metrics, indent=1, allow_nan=False).encode())
    return metrics


def first_epoch_losses(history: Sequence[Mapping[str, float]], steps: int) -> dict[str, float]:
    """Return `first_epoch/<name of the loss>`, the mean over the last tenth of the first epoch's steps.

    history: what was logged of each step; steps: of an epoch over the labelled images

    Without any where the training was shorter.
    """
    if len(history) < steps:
        return {}
    last = history[steps - max(1, steps // 10) : steps]
    names = sorted({name for row in last for name in row if name.startswith("loss/")})
    return {f"first_epoch/{name[5:]}": fmean(row[name] for row in last if name in row) for name in names}


def _evaluated(job: Job) -> dict[str, float]:
    config = job.config
    device = device_of(config.device)
    student, _ = read_student(config.out)
    student = student.to(device)
    lake = config.open_lake(config.snapshot)
    named = config.map_teachers
    cards = read_cards(named)
    points = needs_points(card for name, card in cards.items() if name not in config.tables)
    # Of all seeds the same, so that all are compared with the same means.
    frames = replace(config.frames(lake, points=points), split=job.eval_split, seed=0)
    grid = student.config.grid(config.size[1], config.size[0])
    cached = config.cached_targets(lake)
    of_numbers = {name: url for name, url in named.items() if cards[name].kind == "regression"}
    mean_pool = open_pool(of_numbers, grid, device, cached)
    result = evaluate_student(
        student,
        frames.stream(config.batch, shuffle=False).loader(),
        open_pool(named, grid, device, replace(cached, split=job.eval_split)) if named else None,
        cell_means=cell_means(replace(frames, split=config.split), config.batch, mean_pool),
        bfloat16=uses_bfloat16(config.loop.precision, device),
    )
    return result.metrics


def opened(study: AblateConfig, console: Console) -> AblateConfig:
    """Return the study of the lake as it is now: a snapshot that is published meanwhile changes none of its students.

    Nor does it change the size of their images, which is found here for all of them.

    Raises LakeError or TeacherError where a student would be evaluated on segments that it or a teacher was trained on,
    or where targets that are to be looked up are missing.
    """
    lake = study.train.open_lake(study.train.snapshot)
    check_disjoint_splits(lake, study.train.split, study.eval_split)
    check_no_leakage(read_cards(study.train.map_teachers), lake, [study.train.split, study.eval_split])
    cached = study.train.cached_targets(lake)
    for split in (study.train.split, study.eval_split):
        for name, url in study.train.map_teachers.items():
            replace(cached, split=split).open(name, url)
    size = find_image_size(study.train.image_size, lake, study.train.cameras, console)
    evaluated = frozenset(commit.segment for commit in lake.in_split(study.eval_split))
    prepare_detectors(study.train.detectors, study.train.student, size, lake, evaluated, console)
    return replace(study, train=replace(study.train, snapshot=lake.snapshot, image_size=size))


def run(study: AblateConfig, console: Console) -> int:
    """Train and compare, print the tables, and return the exit status 0."""
    check_options(study)
    out = absolute(study.train.out)
    jobs = jobs_of(opened(study, console))
    found: dict[tuple[float, str, int], dict[str, float]] = {}
    waiting = []
    for job in jobs:
        if (metrics := finished(job)) is None:
            waiting.append(job)
        else:
            found[job.fraction, job.arm, job.config.seed] = metrics
    # Where one fails the others are not waited for: they have checkpoints.
    with ProgressBar(console) as bar, process_pool(study.parallel) as pool:
        bar.update("students", len(found), len(jobs), "students")
        futures = {pool.submit(work, job): job for job in waiting}
        try:
            for future in as_completed(futures):
                job = futures[future]
                found[job.fraction, job.arm, job.config.seed] = future.result()
                bar.update("students", len(found), len(jobs), "students")
                _write(out, _ordered(jobs, found), study.eval_split)
        except BrokenProcessPool as error:
            raise TrainingError(
                "a student's process was killed, perhaps for want of memory; run the same command again to go on,"
                " with a smaller --parallel"
            ) from error
    results = _ordered(jobs, found)
    if not waiting:
        _write(out, results, study.eval_split)
    console.print(markdown(results), soft_wrap=True, markup=False, highlight=False)
    console.print(RunDir(out).place(f"report-{study.eval_split}.html"), soft_wrap=True, highlight=False)
    return 0


def _ordered(jobs: Sequence[Job], found: Mapping[tuple[float, str, int], dict[str, float]]) -> Results:
    """Return what is there, in the order of the jobs."""
    results: Results = {}
    for job in jobs:
        seed = job.config.seed
        if (metrics := found.get((job.fraction, job.arm, seed))) is not None:
            results.setdefault(job.fraction, {}).setdefault(job.arm, {})[seed] = metrics
    return results


def _write(out: str, results: Results, split: str) -> None:
    folder = RunDir(out)
    folder.write(f"ablation-{split}.json", json.dumps(results, indent=1, allow_nan=False).encode())
    folder.write(f"ablation-{split}.md", markdown(results).encode())
    page = Page(f"ClassroomNet: does distillation help? Evaluated on {split}")
    fill_page(page, results)
    page.write(folder.place(f"report-{split}.html"))


def _prepare(arguments: list[str]) -> tuple[list[str], AblateConfig]:
    rest, train = read_preset(arguments, "--train.preset")
    return rest, AblateConfig(train=train)


def main() -> None:
    """Run from the command line."""
    run_command("ablate", AblateConfig, run, __doc__, prepare=_prepare)


if __name__ == "__main__":
    main()
