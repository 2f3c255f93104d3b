"""`analyse.py attack`: the images are moved along the gradient of each loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace

from rich.console import Console
from torch import Tensor

from datalake.progress_bar import ProgressBar
from pipelines.analysed_runs import AnalysedRun, AnalysisConfig, read_runs, telling, write_analysis
from pipelines.device import device_of
from pipelines.evaluated_frames import drawn_batches
from pipelines.paths import absolute
from student.distillation.objective import DetectionObjective, LossWeights
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
    attacked_images,
)
from student.evaluation.attack_checks import check_attacks
from student.report import attack as attack_report
from student.report.page import Page
from teachers.loading import open_pool, parse_teachers, read_cards


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
    # Their sum is attacked with so few steps as well: damage must rise with them.
    fewer_steps: tuple[int, ...] = (1, 3)
    # Decides where attacks start, and which anchors and proposals their losses look at.
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Attacked:
    """A run's losses, and the images on which they are raised.

    strongest: the images after the attack on the sum, for other runs to be shown; None where there are none
    """

    run: AnalysedRun
    objective: DetectionObjective
    batches: list[AttackBatch]
    strongest: list[Tensor] | None

    @property
    def imitated(self) -> list[str]:
        return [name for name in self.run.branches if name in self.batches[0].targets]


def attack(config: AttackConfig, console: Console) -> None:
    """Attack each run's losses, write metrics and page, and print the table."""
    teachers = {name: absolute(url) for name, url in parse_teachers(config.teachers).items()}
    cards = read_cards(teachers)
    runs = read_runs(config, cards, console)
    outcomes: dict[str, list[AttackResult]] = {}
    with ProgressBar(console) as bar:
        attacked = [_prepare(config, run, teachers, bar, others=len(runs) > 1) for run in runs]
        for one in attacked:
            outcomes[one.run.name] = _attack(config, one, attacked, bar)
    checks = {name: check_attacks(each) for name, each in outcomes.items()}
    found = {name: [{**asdict(one.attack), "metrics": one.metrics} for one in each] for name, each in outcomes.items()}
    page = Page(f"ClassroomNet: attacks on {', '.join(outcomes)}")
    attack_report.fill_page(page, outcomes, config.epsilon)
    attack_report.fill_checks(page, checks)
    more = {
        "teachers": {
            name: {"url": teachers[name], "weights_sha256": card.weights_sha256} for name, card in cards.items()
        },
        "checks": {name: [asdict(check) for check in each] for name, each in checks.items()},
    }
    write_analysis(config, "attack", runs, found, more, page, attack_report.table(outcomes), console)
    for name, each in checks.items():
        for check in each:
            if not check.holds:
                console.print(f"{name}: NOT as an honest attack's: {check}", soft_wrap=True, highlight=False)


def _prepare(
    config: AttackConfig, run: AnalysedRun, teachers: Mapping[str, str], bar: ProgressBar, *, others: bool
) -> _Attacked:
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
    strongest = None
    if others:
        white_box = Attack(goal=SUM, epsilon=config.epsilon)
        told, strongest = telling(bar, f"{run.name}, for others", images), []
        for one in clean:
            strongest.append(attacked_images(objective, one, white_box, _strength(config)).cpu())
            told(one.places[-1] + 1)
    return _Attacked(run=run, objective=objective, batches=clean, strongest=strongest)


def _attack(
    config: AttackConfig, one: _Attacked, attacked: Sequence[_Attacked], bar: ProgressBar
) -> list[AttackResult]:
    losses = [option.name for option in fields(LossWeights)] + [f"imitation/{teacher}" for teacher in one.imitated]
    # What single losses do is compared with what all of them, and noise, do at the same size.
    sizes = sorted({*config.epsilons, config.epsilon})
    device = device_of(config.device)
    # An attack on one run that is shown to another: it cannot do more than one that knows the weights.
    ready = {
        Attack(goal=SUM, epsilon=config.epsilon, source=None if other is one else other.run.name): [
            images.to(device) for images in other.strongest
        ]
        for other in attacked
        if other.strongest is not None and other.run.frames.image_size == one.run.frames.image_size
    }
    attacks = [
        Attack(goal=CLEAN, epsilon=0),
        *(Attack(goal=loss, epsilon=config.epsilon) for loss in losses),
        *(Attack(goal=goal, epsilon=size) for goal in (SUM, NOISE) for size in sizes),
        *(
            Attack(goal=SUM, epsilon=config.epsilon, steps=steps)
            for steps in sorted(set(config.fewer_steps))
            if steps < config.steps
        ),
        *(each for each in ready if each.source is not None),
    ]
    images = sum(len(batch.samples) for batch in one.batches)
    told = telling(bar, one.run.name, len(attacks) * images)
    return attack_student(one.objective, one.batches, attacks, _strength(config), told, ready)


def _strength(config: AttackConfig) -> AttackStrength:
    return AttackStrength(steps=config.steps, seed=config.seed)
