"""How a student, its losses, its optimizer and its teachers are built, for checks and timings of a device.

The one module of these that knows it: where the training changes, this follows, and the checks stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from datalake.lake import Lake
from datalake.loader import SampleStream
from datalake.sample import Sample
from pipelines.data import Frames
from student.config import BranchSpec, StudentConfig
from student.detector import Student
from student.distillation.batch import DetectionBatch
from student.distillation.imitation import Imitation, ImitationConfig
from student.distillation.objective import DetectionObjective, LossWeights
from student.layers import memory_format
from student.rpn import Proposals
from teachers.card import read_card
from teachers.load import load_teacher
from teachers.pool import LocalPool, TeacherPool
from teachers.sparse.choice import BackendName
from teachers.spvnas.teacher import ARCHITECTURE, SpvnasTeacher
from teachers.target import Target
from training.distributed import Distributed
from training.generators import Chance
from training.loop import LoopConfig, TrainInputs, train
from training.objective import Batch, Loss
from training.optimizer import OptimizerConfig
from training.precision import Precision
from training.run_dir import RunDir

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


def open_pool(
    teachers: Mapping[str, str], grid: tuple[int, int], device: torch.device, backend: BackendName = "auto"
) -> TeacherPool:
    """Return the teachers, name -> folder, in this process."""
    opened = {name: open_teacher(url, device, backend) for name, url in teachers.items()}
    return LocalPool(opened, grid, device=device)


class KeptAnswers:
    """In a pool's place: the answers to batches that were asked before, already on the device."""

    def __init__(self, pool: TeacherPool, batches: Sequence[Sequence[Sample]]) -> None:
        self._targets = {batch[0].key: targets for batch, targets in pool.follow(batches)}

    def teach(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, dict[str, Target]]]:
        """Yield each batch with what was said of it."""
        for batch in batches:
            yield batch, self._targets[batch.samples[0].key]


def targets_of(pool: TeacherPool, samples: Sequence[Sample]) -> dict[str, Target]:
    """Return what the pool's teachers say of the samples."""
    ((_, targets),) = pool.follow([samples])
    return targets


def build_objective(config: StudentConfig, seed: int = 0) -> DetectionObjective:
    """Return an untrained student with its losses, always the same, on the CPU."""
    torch.manual_seed(seed)
    shares = {spec.name: torch.ones(spec.channels) for spec in config.branches if spec.kind == "classification"}
    return DetectionObjective(Student(config), LossWeights(), {"imitation": Imitation(ImitationConfig(), shares)})


def batch_of(
    objective: DetectionObjective,
    samples: Sequence[Sample],
    targets: Mapping[str, Target],
    device: torch.device,
    step: int = 0,
) -> DetectionBatch:
    """Return the samples, all labelled, as a training step of the objective on the device gets them."""
    moved = {name: _moved(target, device) for name, target in targets.items()}
    chance = Chance(0, step, tuple(range(len(samples))))
    return objective.collate(Batch(samples, len(samples), 0), moved, chance)


def _moved(target: Target, device: torch.device) -> Target:
    confidence = None if target.confidence is None else target.confidence.to(device)
    return Target(target.keys, target.values.to(device), target.valid.to(device), confidence)


def losses_of(
    objective: DetectionObjective, batch: DetectionBatch, *, bfloat16: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the sum to descend, and each loss without its weight."""
    with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=bfloat16):
        losses: dict[str, Loss] = objective(batch, 0.0)
    total = torch.stack([loss.weight * loss.value for loss in losses.values()]).sum()
    return total, {name: loss.value for name, loss in losses.items()}


@contextmanager
def proposals(objective: DetectionObjective, given: Any | None = None) -> Iterator[list[Any]]:
    """Yield a list that gets what the proposal network hands on in each pass of the block, on the CPU.

    given: handed on in its place: rounding may let another proposal survive, and then the heads' losses are of others
    """
    kept: list[Any] = []
    network = objective.student.rpn
    propose = network.propose

    def replaced(*arguments: Any) -> Any:
        found = propose(*arguments)
        kept.append(_moved_proposals(found, torch.device("cpu")))
        return found if given is None else _moved_proposals(given, found.boxes.device)

    network.propose = replaced  # type: ignore[method-assign,assignment]
    try:
        yield kept
    finally:
        del network.propose


def _moved_proposals(found: Proposals, device: torch.device) -> Proposals:
    return Proposals(*(getattr(found, item.name).detach().to(device) for item in fields(found)))


def in_turn(samples: Sequence[Sample], size: int) -> list[list[Sample]]:
    """Return as many batches of a size as use every sample about once."""
    count = max(1, len(samples) // size)
    return [[samples[(first * size + n) % len(samples)] for n in range(size)] for first in range(count)]


def train_in_memory(
    objective: DetectionObjective,
    samples: Sequence[Sample],
    folder: Path,
    device: torch.device,
    *,
    batch: int,
    steps: int,
    precision: Precision = "float32",
    pool: TeacherPool | KeptAnswers | None = None,
    muon: float = 2.0,
    checkpoint_every: int = 1 << 30,
    on_step: OnStep = lambda _step, _values: None,
) -> list[dict[str, float]]:
    """Run the project's own loop on samples in memory, from the checkpoint in the folder if there is one.

    Returns what it logged of the steps of this call. An EnoughError of `on_step` ends it.
    """
    batches = in_turn(samples, batch)
    logged: list[dict[str, float]] = []

    def from_step(step: int) -> Iterator[Batch]:
        while True:
            samples = batches[step % len(batches)]
            step += 1
            yield Batch(samples, len(samples), step)

    def record(step: int, values: Mapping[str, float]) -> None:
        logged.append(dict(values))
        on_step(step, values)

    inputs = TrainInputs(batches=from_step, labelled=batch, teach=None if pool is None else pool.teach, fingerprint={})
    loop = LoopConfig(steps=steps, precision=precision, checkpoint_every=checkpoint_every)
    optimizer = OptimizerConfig(muon_lr_factor=muon)
    layout = memory_format(objective.student.config.norm, device)
    objective = objective.to(device).to(memory_format=layout)  # type: ignore[call-overload]  # torch's stubs lack it
    with suppress(EnoughError):
        train(
            objective,
            loop,
            optimizer,
            inputs,
            RunDir(str(folder)),
            distributed=Distributed(device=device),
            on_step=record,
        )
    return logged


def loss_sums(logged: Sequence[Mapping[str, float]]) -> list[float]:
    """Return the sum of all losses of each step, without weights."""
    return [sum(value for name, value in values.items() if name.startswith("loss/")) for values in logged]


def stream_of(
    lake: Lake, split: str, image_size: tuple[int, int], batch: int, *, points: bool, threads: int = 1
) -> SampleStream:
    """Return the endless shuffled samples of the FRONT camera as a training reads them."""
    frames = Frames(lake=lake, split=split, cameras=("FRONT",), image_size=image_size, points=points, threads=threads)
    return frames.stream(batch, shuffle=True)
