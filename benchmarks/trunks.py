"""What trunks cost at two image sizes: weights, multiplications, a training step's time and memory.

    python -m benchmarks.trunks

Each trunk is in a student without teachers, in a process of its own on one thread. Multiply-accumulates are counted of
a forward pass of one image up to the feature pyramid; a step is forward, backward and optimizer, in float32 on images
of noise with ten boxes, whose time is the processor's. Memory is the most that the process had beyond what it had
before the student was built. Prints a row for each trunk and image size.
"""

from __future__ import annotations

import copy
import itertools
import json
import multiprocessing
import os
import resource
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from datalake.cli import run_command
from datalake.limits import check_range
from datalake.sample import Objects
from student.config import StudentConfig
from student.detector import Student
from student.distillation.batch import DetectionBatch
from student.distillation.objective import DetectionObjective, LossWeights
from training.generators import Chance
from training.optimizer import OptimizerConfig, build_optimizer

STUDENTS = {
    "fpn (default)": StudentConfig(),
    "timm:tf_efficientnet_lite0": StudentConfig(trunk="timm:tf_efficientnet_lite0"),
    "timm:convnext_atto": StudentConfig(trunk="timm:convnext_atto"),
    "timm:resnet18": StudentConfig(trunk="timm:resnet18"),
    "timm:resnet50": StudentConfig(trunk="timm:resnet50"),
    "timm:resnet50, --preset resnet50": StudentConfig.resnet50(),
}
_BOXES = 10


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured."""

    # Width and height of the images, two numbers each.
    image_sizes: tuple[tuple[int, int], ...] = ((384, 256), (960, 640))
    batch: int = 2
    # Of each, at least two, of which the first does not count.
    steps: int = 3
    # Where the metrics go, as JSON.
    output: Path = Path("out/bench/trunks.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one trunk at one image size.

    weights_m: millions, of the whole student; trunk_m: of its trunk
    gmac: billions of multiply-accumulates for one image
    step_s: median of the steps by the clock; cpu_s: by the processor's time
    memory_gib: beyond what the process had before
    """

    weights_m: float
    trunk_m: float
    gmac: float
    step_s: float
    cpu_s: float
    memory_gib: float


def measure(name: str, width: int, height: int, batch: int, steps: int) -> Cost:
    """Return what the trunk costs in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    before = _most_bytes()
    student = Student(STUDENTS[name])
    objective = DetectionObjective(student, LossWeights(), {})
    gmac = gmac_of(student, width, height)
    objective.train()
    optimizer = build_optimizer(objective.parameter_groups(), OptimizerConfig(), bfloat16=False)
    optimizer.set_lr(1e-4)
    walls, processors = [], []
    for number in range(steps):
        chance = Chance(0, number, tuple(range(batch)))
        images = torch.rand(batch, 3, height, width)
        data = DetectionBatch(images, [_objects(width, height)] * batch, {}, chance.generators(), chance)
        wall, processor = time.perf_counter(), time.process_time()
        optimizer.zero_grad()
        losses = objective(data, 0.0)
        torch.stack([loss.weight * loss.value for loss in losses.values()]).sum().backward()
        optimizer.step()
        walls.append(time.perf_counter() - wall)
        processors.append(time.process_time() - processor)
    return Cost(
        weights_m=sum(parameter.numel() for parameter in student.parameters()) / 1e6,
        trunk_m=sum(parameter.numel() for parameter in student.backbone.trunk.parameters()) / 1e6,
        gmac=gmac,
        step_s=statistics.median(walls[1:]),
        cpu_s=statistics.median(processors[1:]),
        memory_gib=(_most_bytes() - before) / 2**30,
    )


@torch.no_grad()
def gmac_of(student: Student, width: int, height: int) -> float:
    """Return the billions of multiply-accumulates by which one image becomes a pyramid; nothing is computed."""
    shapes = copy.deepcopy(student).eval().to("meta")
    with FlopCounterMode(display=False) as counter:
        shapes.features(torch.zeros(1, 3, height, width, device="meta"))
    return counter.get_total_flops() / 2e9


def run(options: Options, console: Console) -> int:
    """Measure, print the table row by row, and return the exit status 0."""
    check_range("--steps", options.steps, 2)
    console.print(f"| trunk | image | weights, M (trunk) | GMAC an image | s a step of {options.batch} | GiB |")
    console.print("|---|---|---|---|---|---|")
    costs = {}
    for (width, height), name in itertools.product(options.image_sizes, STUDENTS):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            cost = pool.apply(measure, (name, width, height, options.batch, options.steps))
        costs[f"{name} {width} x {height}"] = asdict(cost)
        console.print(
            f"| {name} | {width} x {height} | {cost.weights_m:.1f} ({cost.trunk_m:.1f}) | {cost.gmac:.1f} |"
            f" {cost.cpu_s:.1f} | {cost.memory_gib:.2f} |",
            soft_wrap=True,
            highlight=False,
        )
        options.output.parent.mkdir(parents=True, exist_ok=True)
        settings = {**asdict(options), "output": str(options.output)}
        options.output.write_text(json.dumps({"options": settings, "costs": costs}, indent=1))
    return 0


def _objects(width: int, height: int) -> Objects:
    """Return boxes of a twelfth of the image's sides, side by side."""
    x = torch.arange(_BOXES) * (width / _BOXES)
    y = torch.full((_BOXES,), height / 2)
    boxes = torch.stack([x, y, x + width / 12, y + height / 12], 1)
    return Objects(boxes, torch.ones(_BOXES, dtype=torch.int64), torch.full((_BOXES,), 30.0))


def _most_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    run_command("trunks", Options, run, __doc__)
