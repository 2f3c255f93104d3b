"""What a student's tasks hang on: `python pipelines/analyse.py attack --checkpoint RUN --lake URL [--against RUN …]`.

    attack       moves the images along the gradient of each loss: which loss breaks which task?
    interpret    replaces what each branch passes on: what does the student lose without it?

    OUT/metrics.json    every metric of every attack or ablation, for each run
    OUT/report.html     the same as one page that needs no other file

A split with segments that a student or a teacher was trained on is refused.
"""

from __future__ import annotations

import training.openmp  # isort: skip  # noqa: F401 - before torch

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from datalake.cli import run_command
from datalake.lake import Lake, open_lake
from datalake.progress_bar import ProgressBar
from pipelines.data import Frames, check_no_leakage
from pipelines.device import decoding_threads, device_of
from pipelines.evaluated_frames import check_unseen, drawn_batches, frames_as_trained
from pipelines.option_ranges import check_options
from pipelines.paths import absolute
from student.checkpoint import read_student
from student.config import StudentError
from student.detector import Student
from student.distillation.objective import LossWeights
from student.distillation.trained import read_objective
from student.evaluation.attack import (
    CLEAN,
    NOISE,
    SUM,
    Attack,
    AttackBatch,
    AttackResult,
    AttackStrength,
    attack_student,
)
from student.evaluation.branches import ALL, FREE, REPLACEMENTS, Ablation, ablate_branches
from student.evaluation.responses import Response, branch_responses
from student.report import attack as attack_report
from student.report import branches as branches_report
from student.report.page import Page
from teachers.card import TeacherCard, TeacherError
from teachers.load import needs_points
from teachers.loading import open_pool, parse_teachers, read_cards
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
    # Metrics and page go here; by default to `attack` or `interpret` in the checkpoint's folder.
    out: str | None = None
    # cpu, cuda, cuda:1 …; by default the GPU if there is one.
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class AttackConfig(AnalysisConfig):
    """Move the images along the gradient of each loss: which loss breaks which task?"""

    # Teachers whose imitation is attacked as well, as NAME=FOLDER, or none alone.
    teachers: tuple[str, ...] = ("none",)
    # The most that a value of a pixel changes, in 255ths, when each loss is attacked alone.
    epsilon: float = 4.0
    # The same when their sum is attacked, and of noise.
    epsilons: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    # Steps of an attack, each of a quarter of epsilon.
    steps: int = 10
    # Decides where attacks start, and which anchors and proposals their losses look at.
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class InterpretConfig(AnalysisConfig):
    """Replace what each branch passes on: what does the student lose without it?"""


def attack(config: AttackConfig, console: Console) -> None:
    """Attack each run's losses, write metrics and page, and print the table."""
    teachers = {name: absolute(url) for name, url in parse_teachers(config.teachers).items()}
    cards = read_cards(teachers)
    runs = _read_runs(config, cards, console)
    outcomes: dict[str, list[AttackResult]] = {}
    with ProgressBar(console) as bar:
        for run in runs:
            outcomes[run.name] = _attack(config, run, teachers, bar)
    found = {name: [{**asdict(one.attack), "metrics": one.metrics} for one in each] for name, each in outcomes.items()}
    page = Page(f"ClassroomNet: attacks on {', '.join(outcomes)}")
    attack_report.fill_page(page, outcomes, config.epsilon)
    asked = {name: {"url": teachers[name], "weights_sha256": card.weights_sha256} for name, card in cards.items()}
    _write(config, "attack", runs, found, {"teachers": asked}, page, attack_report.table(outcomes), console)


def interpret(config: InterpretConfig, console: Console) -> None:
    """Ablate each run's branches, write metrics and page, and print the table."""
    runs = _read_runs(config, {}, console)
    ablations: dict[str, list[Ablation]] = {}
    responses: dict[str, list[Response]] = {}
    with ProgressBar(console) as bar:
        for run in runs:
            student = run.student.to(device_of(config.device))
            drawn, images = drawn_batches(run.frames, config.batch, config.images)
            batches = list(drawn)
            total = images * (1 + len(REPLACEMENTS) * (len(run.branches) + len((FREE, ALL))))
            ablations[run.name] = ablate_branches(student, batches, _telling(bar, run.name, total))
            responses[run.name] = branch_responses(student, batches)
    found = {
        name: [{"branch": one.branch, "replacement": one.replacement, "metrics": one.metrics} for one in each]
        for name, each in ablations.items()
    }
    page = Page(f"ClassroomNet: the branches of {', '.join(ablations)}")
    branches_report.fill_page(page, ablations)
    branches_report.fill_responses(page, responses, ablations)
    seen = {name: {one.branch: _plain(one) for one in each} for name, each in responses.items()}
    table = branches_report.table(ablations)
    _write(config, "interpret", runs, found, {"responses": seen}, page, table, console)


def _plain(response: Response) -> dict[str, Any]:
    """Return a response as JSON has it; without a t where there are too few images for one."""
    by_class = {
        name: {"ratio": one.ratio, "images": one.images, **({"t": one.t} if math.isfinite(one.t) else {})}
        for name, one in response.contrasts.items()
    }
    return {"share": response.share, "classes": by_class}


def _telling(bar: ProgressBar, stage: str, total: int) -> Callable[[int], None]:
    return lambda done: bar.update(stage, done, total, "images")


def _attack(config: AttackConfig, run: _Run, teachers: dict[str, str], bar: ProgressBar) -> list[AttackResult]:
    device = device_of(config.device)
    objective = read_objective(run.student, run.checkpoint).to(device)
    width, height = run.frames.image_size
    imitated = {name: url for name, url in teachers.items() if name in run.branches}
    pool = open_pool(imitated, run.student.config.grid(height, width), device)
    batches, images = drawn_batches(run.frames, config.batch, config.images)
    clean: list[AttackBatch] = []
    for samples, targets in pool.follow(batches):
        first = clean[-1].places[-1] + 1 if clean else 0
        # The points are not needed any more.
        seen = [replace(sample, lidar=None) for sample in samples]
        clean.append(AttackBatch(samples=seen, targets=targets, places=tuple(range(first, first + len(seen)))))
    losses = [option.name for option in fields(LossWeights)] + [f"imitation/{teacher}" for teacher in imitated]
    # What single losses do is compared with what all of them, and noise, do at the same size.
    sizes = sorted({*config.epsilons, config.epsilon})
    attacks = [
        Attack(goal=CLEAN, epsilon=0),
        *(Attack(goal=loss, epsilon=config.epsilon) for loss in losses),
        *(Attack(goal=goal, epsilon=size) for goal in (SUM, NOISE) for size in sizes),
    ]
    return attack_student(
        objective,
        clean,
        attacks,
        AttackStrength(steps=config.steps, seed=config.seed),
        _telling(bar, run.name, len(attacks) * images),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Run:
    """A trained student, and the frames that it is examined on as it was trained to see them."""

    name: str
    url: str
    student: Student
    checkpoint: Checkpoint
    frames: Frames

    @property
    def branches(self) -> list[str]:
        return [spec.name for spec in self.student.config.branches]


def _read_runs(config: AnalysisConfig, cards: dict[str, TeacherCard], console: Console) -> list[_Run]:
    """Return the runs to compare.

    Raises StudentError or LakeError where one cannot be examined on these frames, TeacherError where one was distilled
    from other teachers than these, or a teacher has learned from the frames.
    """
    urls = [absolute(url).rstrip("/") for url in (config.checkpoint, *config.against)]
    lake = open_lake(absolute(config.lake)).where(config.where, config.split)
    check_no_leakage(cards, lake, [config.split])
    runs = [_read(url, name, config, lake, cards, console) for url, name in zip(urls, _names(urls), strict=True)]
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
    url: str, name: str, config: AnalysisConfig, lake: Lake, cards: dict[str, TeacherCard], console: Console
) -> _Run:
    student, checkpoint = read_student(url)
    check_unseen(url, checkpoint, lake, config.split, console)
    for teacher, card in cards.items():
        if checkpoint.fingerprint.get(f"teacher.{teacher}") not in (None, card.weights_sha256):
            raise TeacherError(f"teacher {teacher}: {url} was distilled from another one; give that of its training")
    frames = frames_as_trained(url, checkpoint, lake, config.split, needs_points(cards.values()), console)
    threads = decoding_threads(device_of(config.device))
    return _Run(name=name, url=url, student=student, checkpoint=checkpoint, frames=replace(frames, threads=threads))


def _names(urls: Sequence[str]) -> list[str]:
    """Return the last parts of the runs' folders, or these whole where two would be called the same."""
    if len(set(urls)) < len(urls):
        raise StudentError("--against: a run is given twice")
    last = [url.rpartition("/")[2] for url in urls]
    return last if len(set(last)) == len(last) else list(urls)


def _write(
    config: AnalysisConfig,
    analysis: str,
    runs: Sequence[_Run],
    found: Mapping[str, Sequence[Mapping[str, Any]]],
    more: Mapping[str, Any],
    page: Page,
    table: tuple[list[str], list[list[str]]],
    console: Console,
) -> None:
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


Command = (
    Annotated[AttackConfig, tyro.conf.subcommand("attack")]
    | Annotated[InterpretConfig, tyro.conf.subcommand("interpret")]
)


def run(command: AttackConfig | InterpretConfig, console: Console) -> int:
    """Analyse, and return the exit status 0."""
    check_options(command)
    if isinstance(command, AttackConfig):
        attack(command, console)
    else:
        interpret(command, console)
    return 0


def main() -> None:
    """Run from the command line."""
    run_command("analyse", Command, run, __doc__)


if __name__ == "__main__":
    main()
