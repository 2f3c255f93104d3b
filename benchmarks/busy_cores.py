"""What threads that spin at OpenMP's barriers cost where another process takes one of two cores.

    python -m benchmarks.busy_cores                     # six minutes on two cores that nobody else uses
    python -m benchmarks.busy_cores --seconds 1 --rounds 1 --batch 2        # a rehearsal

A training step of the default student without teachers, and one of SPVCNN as `train_teachers.py` trains it, on
simulated drives, with each of the settings that libgomp reads as torch loads it. Each setting has a process of its own
on two cores, which measures both steps, first alone, then beside a process that computes on the same cores. Settings
take turns, round by round. Ends with 1 where `training.openmp`'s setting keeps less than a third of its quiet rate on
busy cores, or loses more than 5 % of the rate that libgomp's own setting has on quiet ones.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.table import Table

from datalake.build import BuildConfig
from datalake.fanout import build_lake
from datalake.lake import open_lake
from datalake.loader import LoaderConfig, SampleStream
from datalake.process_tasks import run_in_processes
from datalake.sample import Sample
from datalake.synthetic import DriveConfig, write_drives
from student.config import StudentConfig
from student.detector import Student
from student.distillation.objective import DetectionObjective, LossWeights
from student.layers import memory_format
from teachers.spvnas.network import SPVCNN
from teachers.spvnas.objective import SpvcnnObjective, count_classes, weights_of_classes
from teachers.spvnas.train import SpvcnnTrainConfig
from training.generators import Chance
from training.objective import Batch, Objective
from training.optimizer import OptimizerConfig, build_optimizer

_OURS, _DEFAULT = "GOMP_SPINCOUNT=10000", "libgomp's own"
_SETTINGS: dict[str, dict[str, str]] = {
    _DEFAULT: {},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    _OURS: {"GOMP_SPINCOUNT": "10000"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
_READ_BY_OPENMP = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
_CORES = 2
_LEAST_BUSY, _MOST_LOST = 1 / 3, 0.05


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured."""

    # How long each step is repeated, alone and beside the other process.
    seconds: float = 6.0
    # How often the settings take turns; the median counts.
    rounds: int = 2
    # Images of the student's step.
    batch: int = 6
    # Where the metrics go, as JSON.
    output: Path = Path("out/bench/busy_cores.json")
    # The lake of a process that measures one setting.
    lake: str | None = None


def student_step(samples: list[Sample]) -> Callable[[int], None]:
    """Return a training step of the default student without teachers."""
    objective = DetectionObjective(Student(StudentConfig()), LossWeights(), {})
    layout = memory_format(objective.student.config.norm, torch.device("cpu"))
    return step_of(objective.to(memory_format=layout), samples)  # type: ignore[call-overload]  # torch's stubs lack it


def spvcnn_step(samples: list[Sample]) -> Callable[[int], None]:
    """Return a training step of SPVCNN."""
    config = SpvcnnTrainConfig()
    weights = weights_of_classes(count_classes(samples))
    return step_of(SpvcnnObjective(SPVCNN(config.network()), weights, config.augmentation), samples[: config.batch])


def step_of(objective: Objective, samples: list[Sample]) -> Callable[[int], None]:
    """Return a training step on these samples, in float32."""
    objective.train()
    optimizer = build_optimizer(objective.parameter_groups(), OptimizerConfig(), bfloat16=False)
    optimizer.set_lr(1e-4)

    def step(number: int) -> None:
        chance = Chance(0, number, tuple(range(len(samples))))
        batch = objective.collate(Batch(samples, len(samples), number), {}, chance)
        optimizer.zero_grad()
        torch.stack([loss.weight * loss.value for loss in objective(batch, 0.0).values()]).sum().backward()
        optimizer.step()

    return step


def steps_per_second(step: Callable[[int], None], seconds: float) -> float:
    """Repeat a step for about so long, at least twice; return how many were taken a second."""
    begun, done = time.perf_counter(), 0
    while done < 2 or time.perf_counter() - begun < seconds:
        step(done)
        done += 1
    return done / (time.perf_counter() - begun)


def measure(options: Options, lake: str) -> dict[str, float]:
    """Return the images a second of both steps, quiet and busy, with the setting that this process has."""
    torch.manual_seed(0)
    config = LoaderConfig(split="train", image_size=(384, 256), shuffle=False, panoptic=False, lasers=("TOP",))
    samples = list(SampleStream(open_lake(lake), config))[: options.batch]
    found = {}
    for name, build, images in (
        ("student", student_step, len(samples)),
        ("SPVCNN", spvcnn_step, min(len(samples), SpvcnnTrainConfig().batch)),
    ):
        step = build(samples)
        step(0)
        found[f"{name} quiet"] = images * steps_per_second(step, options.seconds)
        other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            found[f"{name} busy"] = images * steps_per_second(step, options.seconds)
        finally:
            other.kill()
            other.wait()
    return found


def build(folder: str, images: int) -> str:
    """Build a lake of simulated drives, an image a segment; return its URL."""
    lake = f"{folder}/lake"
    sources = write_drives(f"{folder}/drives", DriveConfig(), segments=images, frames=1, seed=5)
    build_lake(sources, lake, BuildConfig(split="train", cameras=("FRONT",)), lambda _: None, run=run_in_processes)
    return lake


def run(options: Options, console: Console) -> int:
    """Measure every setting, print the table, and return the exit status."""
    cores = sorted(os.sched_getaffinity(0))[:_CORES]
    if len(cores) < _CORES:
        raise SystemExit(f"expected {_CORES} cores, got: {len(cores)}")
    rates: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in _SETTINGS}
    with tempfile.TemporaryDirectory() as folder:
        lake = build(folder, max(options.batch, SpvcnnTrainConfig().batch))
        # What is started below inherits it.
        os.sched_setaffinity(0, cores)
        for _ in range(options.rounds):
            for name, setting in _SETTINGS.items():
                for step, rate in _measured(options, lake, setting).items():
                    rates[name][step].append(rate)
    medians = {name: {step: statistics.median(found) for step, found in by.items()} for name, by in rates.items()}
    _print(medians, console)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    told = {**asdict(options), "output": str(options.output)}
    options.output.write_text(json.dumps({"options": told, "images_per_second": medians, "rounds": rates}, indent=1))
    ours, default = medians[_OURS], medians[_DEFAULT]
    kept = all(
        ours[f"{step} busy"] >= _LEAST_BUSY * ours[f"{step} quiet"]
        and ours[f"{step} quiet"] >= (1 - _MOST_LOST) * default[f"{step} quiet"]
        for step in ("student", "SPVCNN")
    )
    return 0 if kept else 1


def _measured(options: Options, lake: str, setting: dict[str, str]) -> dict[str, float]:
    environment = {name: value for name, value in os.environ.items() if name not in _READ_BY_OPENMP} | setting
    words = ["--lake", lake, "--seconds", str(options.seconds), "--batch", str(options.batch)]
    command = [sys.executable, "-m", "benchmarks.busy_cores", *words]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _print(medians: dict[str, dict[str, float]], console: Console) -> None:
    table = Table("images/s", *next(iter(medians.values())), title="with one of two cores taken (busy), and without")
    for name, found in medians.items():
        table.add_row(name, *(f"{rate:.2f}" for rate in found.values()))
    console.print(table)


def main() -> None:
    """Measure one setting in a process that got a lake, otherwise all of them in processes of their own."""
    options = tyro.cli(Options, description=__doc__)
    if options.lake is not None:
        json.dump(measure(options, options.lake), sys.stdout)
    else:
        sys.exit(run(options, Console()))


if __name__ == "__main__":
    main()
