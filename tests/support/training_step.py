"""How a student, its losses, its optimizer and its teachers are built, for checks and timings of a device.

The one module of these that knows it: where the training changes, this follows, and the checks stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from datalake.lake import Lake
from datalake.loader import LoaderConfig, SampleStream
from datalake.sample import Sample
from student.config import BranchSpec, StudentConfig
from student.detector import Student
from student.training.augment import Augmentation
from student.training.folder import RunFolder
from student.training.lesson import Lesson, LossWeights, Material
from student.training.loop import LoopConfig, Plan, train
from student.training.material import picture_generator, prepare
from student.training.world import World
from teachers.card import read_card
from teachers.classroom import Classroom, LocalClassroom
from teachers.lidar import ARCHITECTURE, SpvnasTeacher
from teachers.load import load_teacher
from teachers.sparse.choice import BackendName
from teachers.target import Target
from training.precision import Precision

# What the loop is called with after each step: steps done, and what it logged.
OnStep = Callable[[int, Mapping[str, float]], None]


class EnoughError(Exception):
    """Ends a training from its `on_step`, wherever it is."""


def sparse_backends() -> tuple[BackendName, ...]:
    """Return the names of all backends of sparse convolutions."""
    names: tuple[BackendName, ...] = get_args(BackendName)
    return tuple(name for name in names if name != "auto")


def branches_of(teachers: Mapping[str, str]) -> tuple[BranchSpec, ...]:
    """Return a student's branches for teachers, name -> folder."""
    return tuple(BranchSpec.of(name, read_card(url)) for name, url in teachers.items())


def open_teacher(url: str, device: torch.device | str, backend: BackendName = "auto") -> Any:
    """Return the teacher in a folder; the backend is the lidar teacher's."""
    if read_card(url).architecture == ARCHITECTURE:
        return SpvnasTeacher.load(url, device, backend=backend)
    return load_teacher(url, device)


class _Renamed:
    """A teacher under the name of the student's branch."""

    def __init__(self, name: str, teacher: Any) -> None:
        self.card, self._teacher = replace(teacher.card, name=name), teacher

    def look(self, samples: Sequence[Sample], height: int, width: int) -> Target:
        target: Target = self._teacher.look(samples, height, width)
        return target


def open_pool(
    teachers: Mapping[str, str], grid: tuple[int, int], device: torch.device, backend: BackendName = "auto"
) -> Classroom:
    """Return the teachers, name -> folder, in this process."""
    named = [_Renamed(name, open_teacher(url, device, backend)) for name, url in teachers.items()]
    return LocalClassroom(named, grid, device=device)


class KeptAnswers:
    """In a pool's place: the answers to batches that were asked before, already on the device."""

    def __init__(self, pool: Classroom, batches: Sequence[Sequence[Sample]]) -> None:
        self._targets = {batch[0].key: targets for batch, targets in pool.follow(batches)}

    def follow(self, batches: Any) -> Iterator[tuple[Sequence[Sample], dict[str, Target]]]:
        """Yield each batch with what was said of it."""
        for batch in batches:
            yield batch, self._targets[batch[0].key]


def targets_of(pool: Classroom, samples: Sequence[Sample]) -> dict[str, Target]:
    """Return what the pool's teachers say of the samples."""
    ((_, targets),) = pool.follow([samples])
    return targets


def build_objective(config: StudentConfig, seed: int = 0) -> Lesson:
    """Return an untrained student with its losses, always the same, on the CPU."""
    torch.manual_seed(seed)
    shares = {spec.name: torch.ones(spec.channels) for spec in config.branches if spec.kind == "classes"}
    return Lesson(Student(config), LossWeights(), shares)


def batch_of(samples: Sequence[Sample], targets: Mapping[str, Target], device: torch.device, step: int = 0) -> Material:
    """Return the samples, all labelled, as a training step on the device gets them; chance is the step's."""
    generators = [picture_generator(0, step, place) for place in range(len(samples))]
    moved = {name: _moved(target, device) for name, target in targets.items()}
    return prepare(samples, len(samples), moved, generators, Augmentation(), device)


def _moved(target: Target, device: torch.device) -> Target:
    confidence = None if target.confidence is None else target.confidence.to(device)
    return Target(target.keys, target.values.to(device), target.valid.to(device), confidence)


def losses_of(objective: Lesson, batch: Material, *, bfloat16: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the sum to descend, and each loss without its weight."""
    with torch.autocast(batch.pictures.device.type, torch.bfloat16, enabled=bfloat16):
        total, losses = objective(batch, 0.0)
    return total, losses


@contextmanager
def proposals(objective: Lesson, given: Any | None = None) -> Iterator[list[Any]]:
    """Yield a list that gets what the proposal network hands on in each pass of the block, on the CPU.

    given: handed on in its place: rounding may let another proposal survive, and then the heads' losses are of others
    """
    kept: list[Any] = []

    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        found, losses = output
        kept.append(_to(found, torch.device("cpu")))
        return None if given is None else (_to(given, next(iter(losses.values())).device), losses)

    handle = objective.student.rpn.register_forward_hook(hook)
    try:
        yield kept
    finally:
        handle.remove()


def _to(tree: Any, device: torch.device) -> Any:
    return tree_map(lambda leaf: leaf.detach().to(device) if isinstance(leaf, Tensor) else leaf, tree)


def in_turn(samples: Sequence[Sample], size: int) -> list[list[Sample]]:
    """Return as many batches of a size as use every sample about once."""
    count = max(1, len(samples) // size)
    return [[samples[(first * size + n) % len(samples)] for n in range(size)] for first in range(count)]


def train_in_memory(
    objective: Lesson,
    samples: Sequence[Sample],
    folder: Path,
    device: torch.device,
    *,
    batch: int,
    steps: int,
    precision: Precision = "float32",
    pool: Classroom | KeptAnswers | None = None,
    muon: float = 2.0,
    checkpoint_every: int = 1 << 30,
    on_step: OnStep = lambda _step, _values: None,
) -> list[dict[str, float]]:
    """Run the project's own loop on samples in memory, from the checkpoint in the folder if there is one.

    Returns what it logged of the steps of this call. An EnoughError of `on_step` ends it.
    """
    batches = in_turn(samples, batch)
    logged: list[dict[str, float]] = []

    def from_step(step: int) -> Iterator[list[Sample]]:
        while True:
            yield batches[step % len(batches)]
            step += 1

    def record(step: int, values: Mapping[str, float]) -> None:
        logged.append(dict(values))
        on_step(step, values)

    plan = Plan(
        batches=from_step,
        labelled=batch,
        unlabelled=0,
        classroom=pool,  # type: ignore[arg-type]  # answers that are kept follow as a classroom does
        seed=0,
        identity={},
    )
    loop = LoopConfig(steps=steps, muon=muon, precision=precision, checkpoint_every=checkpoint_every)
    with suppress(EnoughError):
        train(objective, loop, plan, RunFolder(str(folder)), world=World(device=device), progress=record)
    return logged


def loss_sums(logged: Sequence[Mapping[str, float]]) -> list[float]:
    """Return the sum of all losses of each step, without weights."""
    return [sum(value for name, value in values.items() if name.startswith("loss/")) for values in logged]


def stream_of(
    lake: Lake, split: str, image_size: tuple[int, int], batch: int, *, points: bool, threads: int = 1
) -> SampleStream:
    """Return the endless shuffled samples of the FRONT camera as a training reads them."""
    settings = LoaderConfig(
        split=split, cameras=("FRONT",), image_size=image_size, points=points, global_batch=batch, threads=threads
    )
    return SampleStream(lake, settings, epochs=None)
