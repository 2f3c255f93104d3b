"""The study of pre-training: all methods for equally many steps, what features know of objects, what students gain.

    python -m benchmarks.pretraining --lake LAKE --out OUT

    OUT/<arm>-<seed>/             the pre-trainings, by pipelines/pretrain.py
    OUT/segmented-<seed>/         clusters of their features beside all baselines, by pipelines/segment.py
    OUT/students/…                students from the trunks of --students and from scratch, with few labels
    OUT/pretraining.json          every figure, written when all are there

Run again after any interruption it goes on where it was: what is done is not done again. One arm is a process of half
an hour to some hours on a core; commands with other --arms need an --out of their own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from pipelines import evaluate, pretrain, segment, train
from pipelines.evaluate import EvaluateConfig
from pipelines.pretrain import PretrainConfig
from pipelines.segment import SegmentConfig
from pipelines.train_config import TrainConfig
from student.config import StudentConfig
from student.pretraining.dino import DinoConfig
from student.pretraining.odin import OdinConfig
from student.pretraining.views import ViewConfig
from training.loop import LoopConfig
from training.metrics_log import read_history
from training.run_dir import RunDir

# What differs from the settings of `Options.pretraining`.
ARMS: Mapping[str, Mapping[str, Any]] = {
    "byol-next": {},
    "byol-same": {"pairs": "same"},
    "byol-shuffled": {"pairs": "shuffled"},
    "byol-dense": {"method": "byol-dense", "pairs": "same"},
    "byol-lidar": {"method": "byol-lidar"},
    "odin-kmeans": {"method": "odin"},
    "odin-lidar": {"method": "odin", "odin": OdinConfig(masks="lidar")},
    "odin-panoptic": {"method": "odin", "odin": OdinConfig(masks="panoptic", regions=16)},
    "odin-two": {"method": "odin", "odin": OdinConfig(regions=2, start=0.0)},
    "dino": {"method": "dino"},
    "dino-vit": {"method": "dino", "dino": DinoConfig(network="vit", crop_size=(64, 48))},
}
SCRATCH = "scratch"
_FINISHED = "evaluation/metrics.json"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is trained and measured."""

    # The lake, with splits train, val and test.
    lake: str
    # Where everything goes.
    out: Path
    # The arms to pre-train, and the seeds of each.
    arms: tuple[str, ...] = tuple(ARMS)
    seeds: tuple[int, ...] = (0,)
    # Arms from whose trunks of the first seed students start, beside scratch; none: pre-training and clusters alone.
    students: tuple[str, ...] = ()
    student_seeds: tuple[int, ...] = (0, 1, 2)
    # As many rates are tried for each arm.
    rates: tuple[float, ...] = (1.5e-3, 3e-3)
    # A run of train.py with all labels, whose trunk stands beside the pre-trained ones.
    supervised: str | None = None
    pretraining: LoopConfig = field(default_factory=lambda: LoopConfig(steps=1000, warmup=0.1, diagnose_every=50))
    batch: int = 32
    view: tuple[int, int] = (128, 96)
    student_steps: int = 400
    labelled_fraction: float = 0.025
    images: int = 200
    device: str = "auto"


def pretraining(options: Options, arm: str, seed: int) -> PretrainConfig:
    """Return the configuration of an arm."""
    base = PretrainConfig(
        lake=options.lake,
        out=str(options.out / f"{arm}-{seed}"),
        seed=seed,
        batch=options.batch,
        views=ViewConfig(size=options.view),
        loop=options.pretraining,
        device=options.device,
    )
    return replace(base, **ARMS[arm])


def student(options: Options, arm: str, seed: int, rate: float) -> TrainConfig:
    """Return the configuration of a student from an arm's trunk, or from scratch."""
    base = TrainConfig(lake=options.lake, out=str(options.out / "students" / f"{arm}-{rate:g}-{seed}"), seed=seed)
    return replace(
        base,
        init=None if arm == SCRATCH else str(options.out / f"{arm}-{options.seeds[0]}"),
        labelled_fraction=options.labelled_fraction,
        optimizer=replace(base.optimizer, learning_rate=rate),
        loop=replace(base.loop, steps=options.student_steps),
        student=StudentConfig(),
        device=options.device,
    )


def main() -> int:
    """Run the study, or the rest of it; return the exit status."""
    options = tyro.cli(Options, description=__doc__)
    console = Console()
    options.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"pretraining": {}, "segmented": {}, "students": {}}
    for seed in options.seeds:
        for arm in options.arms:
            config = pretraining(options, arm, seed)
            pretrain.run(config, console)
            history = [line for line in read_history(RunDir(config.out)) if any("collapse/" in name for name in line)]
            found["pretraining"][f"{arm}-{seed}"] = history[-1] if history else {}
        runs = [f"{arm}={options.out / f'{arm}-{seed}'}" for arm in options.arms]
        runs += [f"supervised={options.supervised}"] if options.supervised else []
        out = options.out / f"segmented-{seed}"
        if not (out / "metrics.json").exists():
            segment.run(
                SegmentConfig(
                    lake=options.lake, out=str(out), runs=tuple(runs), images=options.images, device=options.device
                ),
                console,
            )
        found["segmented"][str(seed)] = json.loads((out / "metrics.json").read_text())["metrics"]
    for arm in (*options.students, SCRATCH) if options.students else ():
        for rate in options.rates:
            for seed in options.student_seeds:
                learner = student(options, arm, seed, rate)
                train.run(learner, console)
                measured = Path(learner.out) / _FINISHED
                if not measured.exists():
                    evaluate.run(EvaluateConfig(checkpoint=learner.out, lake=options.lake, split="val"), console)
                found["students"][Path(learner.out).name] = json.loads(measured.read_text())["metrics"]["AP50"]
    (options.out / "pretraining.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
