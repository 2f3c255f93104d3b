"""The training loop: the same for one worker and for many, and the same after any interruption."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from datalake.sample import Sample
from student.config import StudentConfig
from student.layers import memory_format
from student.training.augment import Augmentation
from student.training.checkpoint import CHECKPOINT_FILE, Checkpoint, load_checkpoint, save_checkpoint
from student.training.folder import RunFolder
from student.training.lesson import Lesson, Material
from student.training.logbook import Logbook
from student.training.material import from_other_frames, picture_generator, prepare
from student.training.world import World
from teachers.classroom import Classroom
from teachers.target import Target
from teachers.training.checkpoint import Plain, check_identity
from training.errors import TrainingError
from training.optimizer import MuonAdamW, build_optimizer
from training.precision import Precision, uses_bfloat16
from training.schedule import Schedule

Teaching = Literal["real", "shuffled"]
Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long and how fast."""

    # Optimiser steps in all.
    steps: int = 1000
    # The highest learning rate, reached after the warm-up; from there half a cosine leads down.
    learning_rate: float = 3e-3
    # Hidden layers are turned by Muon, at so many times that rate; 0: by AdamW, as all else is.
    muon: float = 2.0
    # Share of the steps in which the rate rises.
    warmup: float = 0.05
    # Decay of weights per step, times the learning rate.
    weight_decay: float = 0.02
    # Gradients are scaled down to this L2 norm.
    max_gradient_norm: float = 10.0
    # bfloat16 is autocast, the weights stay float32; auto takes it where the hardware has it.
    precision: Precision = "auto"
    # Steps from one checkpoint to the next.
    checkpoint_every: int = 100
    # What happens to the pictures.
    augmentation: Augmentation = field(default_factory=Augmentation)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run trains on.

    batches: returns this worker's batches from a given step on, always the same; labelled samples come first
    labelled, unlabelled: pictures per step over all workers
    classroom: whom the student listens to; None: nobody
    teaching: `shuffled` gives each picture what the teachers say of another
    identity: settings of the run; a checkpoint of other settings is refused
    """

    batches: Callable[[int], Iterable[Sequence[Sample]]]
    labelled: int
    unlabelled: int
    classroom: Classroom | None
    seed: int
    identity: dict[str, Plain]
    teaching: Teaching = "real"


@dataclass(frozen=True, slots=True)
class Trained:
    """What a finished run has done, over all interruptions."""

    steps: int
    seconds: float


def train(
    lesson: Lesson,
    config: LoopConfig,
    plan: Plan,
    folder: RunFolder,
    *,
    world: World | None = None,
    progress: Callable[[int, Mapping[str, float]], None] = lambda _step, _values: None,
) -> Trained:
    """Train the lesson's student for `config.steps` steps, from the checkpoint in `folder` if there is one.

    progress: called after each step with the steps done and what was logged

    A run that was killed and started again does the same steps, on a CPU to the last bit, and any number of workers
    does the same up to rounding; but for batch norms, which see a worker's own pictures, and for shuffled teachers,
    whose answers are turned within a worker. Raises TrainingError, on every worker, where a loss or a gradient stops
    being finite; the last checkpoint is of before that.
    """
    world = world or World()
    places = _places(plan, world)
    bfloat16 = uses_bfloat16(config.precision, world.device)
    identity = {**plan.identity, "bfloat16": bfloat16}
    schedule = Schedule(peak=config.learning_rate, steps=config.steps, warmup_steps=round(config.warmup * config.steps))
    lesson.to(world.device)
    layout = memory_format(lesson.student.config.norm, world.device)
    lesson.to(memory_format=layout)  # type: ignore[call-overload]  # torch's stubs lack it
    optimizer = build_optimizer(
        lesson,
        lesson.student.hidden_weights(),
        muon_lr_factor=config.muon,
        weight_decay=config.weight_decay,
        bfloat16=bfloat16,
    )
    step, seconds = 0, 0.0
    if (checkpoint := load_checkpoint(folder)) is not None:
        check_identity(folder.place(CHECKPOINT_FILE), checkpoint.identity, identity)
        made, asked = StudentConfig.from_json(checkpoint.config), lesson.student.config
        check_identity(folder.place(CHECKPOINT_FILE), asdict(made), asdict(asked))
        step, seconds = checkpoint.step, checkpoint.seconds
        lesson.load_state_dict(checkpoint.lesson)
        optimizer.load_state_dict(checkpoint.optimiser)
    module = world.wrap(lesson)
    lesson.train()
    began = time.monotonic() - seconds
    logbook = Logbook(folder, step) if world.rank == 0 else None
    try:
        source = _Timed(plan.batches(step))
        taught = _Timed(_taught(source, plan.classroom))
        while step < config.steps:
            started = time.monotonic()
            data_s, teachers_s = source.seconds, taught.seconds
            samples, targets = next(taught)
            data_s, teachers_s = source.seconds - data_s, taught.seconds - teachers_s
            if plan.teaching == "shuffled":
                targets = from_other_frames(targets)
            generators = [picture_generator(plan.seed, step, place) for place in places]
            material = prepare(
                samples,
                world.share(plan.labelled, "labelled pictures"),
                targets,
                generators,
                config.augmentation,
                world.device,
            )
            rate = schedule.rate(step)
            chance = [generator.get_state() for generator in material.generators]
            with torch.autocast(world.device.type, torch.bfloat16, enabled=bfloat16):
                total, losses = module(material, step / config.steps)
            values = world.mean({name: float(loss.detach()) for name, loss in losses.items()})
            if wrong := [name for name, value in values.items() if not math.isfinite(value)]:
                # With the same chance as before: what went wrong may depend on which proposals were drawn.
                for generator, state in zip(material.generators, chance, strict=True):
                    generator.set_state(state)
                guilty = [samples[i] for i in _guilty(wrong[0], lesson, material, bfloat16)]
                # All workers are here, since the values are means over all of them.
                names = world.gather(_names(guilty)) or world.gather(_names(samples))
                raise TrainingError(
                    f"step {step}: loss {wrong[0]!r} is {values[wrong[0]]} at {', '.join(names)};"
                    " look at that sample, or lower the learning rate"
                )
            norm = _descend(lesson, optimizer, total, rate, config.max_gradient_norm)
            if not math.isfinite(norm):
                names = world.gather(_names(samples))
                raise TrainingError(
                    f"step {step}: the gradient is {norm} at losses {values} of {', '.join(names)};"
                    " lower the learning rate"
                )
            wall_s = time.monotonic() - started
            logged = {
                "learning_rate": rate,
                "gradient_norm": norm,
                **{f"loss/{name}": value for name, value in values.items()},
                "images_per_second": len(places) * world.size / wall_s,
                "wait/data": data_s / wall_s,
                "wait/teachers": max(0.0, teachers_s - data_s) / wall_s,
            }
            if logbook is not None:
                logbook.append(step, logged)
            step += 1
            if logbook is not None and (step % config.checkpoint_every == 0 or step == config.steps):
                seconds = time.monotonic() - began
                logbook.sync()
                save_checkpoint(folder, _checkpoint(identity, lesson, optimizer, step, seconds))
            progress(step, logged)
    finally:
        # Who keeps an error keeps this frame. With the workers' module in it their group would outlive its end, and at
        # the end of the process a thread of the group's, asking for an interpreter that is no more, would abort it.
        del module
        if logbook is not None:
            logbook.__exit__(None, None, None)
    lesson.eval()
    return Trained(step, seconds)


class _Timed(Iterator[Item]):
    """The items of an iterable, and how long whoever asked for them has waited."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items, self.seconds = iter(items), 0.0

    def __next__(self) -> Item:
        started = time.monotonic()
        try:
            return next(self._items)
        finally:
            self.seconds += time.monotonic() - started


def _taught(
    batches: Iterable[Sequence[Sample]], classroom: Classroom | None
) -> Iterator[tuple[Sequence[Sample], dict[str, Target]]]:
    if classroom is None:
        return ((batch, {}) for batch in batches)
    return classroom.follow(batches)


def _places(plan: Plan, world: World) -> list[int]:
    """Return where in the global batch this worker's pictures stand: labelled ones come first, there and here."""
    labelled = world.share(plan.labelled, "labelled pictures")
    unlabelled = world.share(plan.unlabelled, "pictures without labels")
    return [
        *range(world.rank * labelled, (world.rank + 1) * labelled),
        *range(plan.labelled + world.rank * unlabelled, plan.labelled + (world.rank + 1) * unlabelled),
    ]


@torch.no_grad()
def _guilty(name: str, lesson: Lesson, material: Material, bfloat16: bool) -> list[int]:
    """Return the numbers of the pictures which, each on its own, have a loss `name` that is not finite."""
    guilty = []
    # The losses divide by what is labelled, so a picture without labels is tried beside the first labelled one.
    for place in range(len(material.pictures)):
        chosen = [place] if place < len(material.labels) else [0, place]
        alone = Material(
            material.pictures[chosen],
            [material.labels[chosen[0]]],
            {key: _of(target, chosen) for key, target in material.targets.items()},
            [material.generators[chosen[0]]],
        )
        with torch.autocast(material.pictures.device.type, torch.bfloat16, enabled=bfloat16):
            _, losses = lesson(alone, 0.0)
        if name in losses and not bool(torch.isfinite(losses[name])) and (len(chosen) == 1 or 0 not in guilty):
            guilty.append(place)
    return guilty


def _of(target: Target, chosen: list[int]) -> Target:
    return Target(
        tuple(target.keys[i] for i in chosen),
        target.values[chosen],
        target.valid[chosen],
        None if target.confidence is None else target.confidence[chosen],
    )


def _descend(lesson: nn.Module, optimizer: MuonAdamW, total: Tensor, rate: float, max_norm: float) -> float:
    """Take a step down `total`, unless its gradient is not finite; return the gradient's norm."""
    optimizer.zero_grad()
    total.backward()
    norm = float(nn.utils.clip_grad_norm_(lesson.parameters(), max_norm))
    if math.isfinite(norm):
        optimizer.set_lr(rate)
        optimizer.step()
    return norm


def _checkpoint(
    identity: dict[str, Plain], lesson: Lesson, optimizer: MuonAdamW, step: int, seconds: float
) -> Checkpoint:
    return Checkpoint(
        identity=identity,
        config=lesson.student.config.to_json(),
        step=step,
        seconds=seconds,
        lesson=lesson.state_dict(),
        optimiser=optimizer.state_dict(),
    )


def _names(samples: Sequence[Sample]) -> list[str]:
    return [str(s.key) for s in samples]
