"""The training loop: the same for one worker and for many, and the same after any interruption."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from datalake.sample import Sample, naming
from training.checkpoint import CHECKPOINT_FILE, Checkpoint, load_checkpoint, save_checkpoint
from training.distributed import Distributed
from training.errors import TrainingError
from training.fingerprint import Plain, check_same_run
from training.generators import Chance
from training.metrics_log import MetricsLog
from training.objective import Batch, Loss, Objective
from training.optimizer import MuonAdamW, OptimizerConfig, build_optimizer
from training.precision import Precision, uses_bfloat16
from training.run_dir import RunDir
from training.schedule import Schedule

Item = TypeVar("Item")
Taught = tuple[Batch, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long, and in which number format."""

    # Optimizer steps in all.
    steps: int = 1000
    # Share of the steps in which the learning rate rises.
    warmup: float = 0.05
    # bfloat16 is autocast, the weights stay float32; auto takes it where the hardware has it. Muon
    # follows on a GPU.
    precision: Precision = "auto"
    # Each worker's images of a step are computed in so many parts, one after the other, for want of memory. Gradients
    # are those of the whole, up to rounding, but for what is computed over all images of a part, such as batch norms;
    # diagnostics are of the last part.
    accumulate: int = 1
    # Steps from one checkpoint to the next.
    checkpoint_every: int = 100
    # Every so many steps a checkpoint is kept beside the run's, as that of a run in the folder `step-<n>`; 0: none.
    keep: int = 0
    # Steps from one measurement of the objective's diagnostics to the next, which go into the log; 0: none.
    diagnose_every: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainInputs:
    """What a run trains on.

    batches: returns this worker's batches from a cursor on, always the same, 0 being the first
    labelled, unlabelled: samples per step over all workers; in each batch labelled ones come first
    teach: adds the teachers' targets to each batch, in order; None: there are none
    seed: of every random number that is drawn while training
    fingerprint: of the data and the settings; a checkpoint of another is refused
    """

    batches: Callable[[int], Iterable[Batch]]
    labelled: int
    unlabelled: int = 0
    teach: Callable[[Iterator[Batch]], Iterator[Taught]] | None = None
    seed: int = 0
    fingerprint: Mapping[str, Plain]


@dataclass(frozen=True, slots=True)
class Trained:
    """What a finished run has done, over all interruptions.

    cursor: where its stream of batches stood at the end
    """

    steps: int
    cursor: int
    seconds: float


def train(
    objective: Objective,
    config: LoopConfig,
    optimizer_config: OptimizerConfig,
    inputs: TrainInputs,
    run_dir: RunDir,
    *,
    distributed: Distributed | None = None,
    on_step: Callable[[int, Mapping[str, float]], None] = lambda _step, _metrics: None,
) -> Trained:
    """Train for `config.steps` steps, from the checkpoint in `run_dir` if there is one; end in eval mode.

    on_step: called after each step with the steps done and what was logged

    A run that was killed and started again does the same steps, on a CPU to the last bit, and any number of workers
    does the same up to rounding; but for what an objective computes over a worker's own samples, such as batch norms.
    torch's own generator is seeded in each step, for dropout and the like. Raises TrainingError, on every worker, where
    a loss or a gradient stops being finite, naming its samples; the last checkpoint is of before that.
    """
    distributed = distributed or Distributed()
    places = _places(inputs, distributed)
    _check_parts(inputs, config.accumulate, distributed)
    bfloat16 = uses_bfloat16(config.precision, distributed.device)
    fingerprint = {**inputs.fingerprint, **objective.fingerprint(), "bfloat16": bfloat16}
    schedule = Schedule(
        peak=optimizer_config.learning_rate, steps=config.steps, warmup_steps=round(config.warmup * config.steps)
    )
    objective.to(distributed.device)
    groups = objective.parameter_groups()
    norm_names = ["gradient_norm", *(f"gradient_norm/{group.name}" for group in groups[1:])]
    optimizer = build_optimizer(groups, optimizer_config, bfloat16=bfloat16 and distributed.device.type == "cuda")
    step, cursor, seconds = 0, 0, 0.0
    if (checkpoint := load_checkpoint(run_dir)) is not None:
        if not checkpoint.resumable:
            raise TrainingError(
                f"{run_dir.place(CHECKPOINT_FILE)}: a run of version 0.1, whose result can be used but whose training"
                " cannot be continued; give another folder"
            )
        check_same_run(run_dir.place(CHECKPOINT_FILE), checkpoint.fingerprint, fingerprint)
        step, cursor, seconds = checkpoint.step, checkpoint.cursor, checkpoint.seconds
        objective.load_state_dict(checkpoint.objective)
        optimizer.load_state_dict(checkpoint.optimizer)
    module = distributed.wrap(objective)
    objective.train()
    began = time.monotonic() - seconds
    log = MetricsLog(run_dir, step) if distributed.rank == 0 else None
    try:
        source = _Timed(inputs.batches(cursor))
        taught = _Timed(inputs.teach(source) if inputs.teach else ((batch, {}) for batch in source))
        while step < config.steps:
            started = time.monotonic()
            data_s, teachers_s = source.seconds, taught.seconds
            batch, targets = next(taught)
            data_s, teachers_s = source.seconds - data_s, taught.seconds - teachers_s
            chance = Chance(inputs.seed, step, places)
            torch.manual_seed(_step_seed(inputs.seed, step, distributed.rank))
            optimizer.zero_grad()
            of_parts = []
            with naming(sample.key for sample in batch.samples):
                for part in _parts(batch, targets, chance, config.accumulate):
                    collated = objective.collate(*part)
                    with torch.autocast(distributed.device.type, torch.bfloat16, enabled=bfloat16):
                        losses: dict[str, Loss] = module(collated, step / config.steps)
                    total = torch.stack([loss.weight * loss.value for loss in losses.values()]).sum()
                    (total / config.accumulate).backward()
                    of_parts.append(torch.stack([loss.value.detach().float() for loss in losses.values()]))
            norms = [nn.utils.clip_grad_norm_(group.parameters, optimizer_config.max_gradient_norm) for group in groups]
            # The only wait for the device in a step.
            values = distributed.mean(torch.cat([torch.stack(of_parts).mean(0), torch.stack(norms)]))
            means = dict(zip(losses, values, strict=False))
            gradients = dict(zip(norm_names, values[len(losses) :], strict=True))
            if wrong := [name for name, value in means.items() if not math.isfinite(value)]:
                torch.manual_seed(_step_seed(inputs.seed, step, distributed.rank))
                guilty = _nonfinite_samples(wrong[0], objective, batch, targets, chance, step / config.steps, bfloat16)
                # All workers are here, since the values are means over all of them.
                names = distributed.gather(_names(guilty)) or distributed.gather(_names(batch.samples))
                raise TrainingError(
                    f"step {step}: loss {wrong[0]!r} is {means[wrong[0]]} at {', '.join(names)};"
                    " look at that sample, or lower the learning rate"
                )
            if wrong := [name for name, value in gradients.items() if not math.isfinite(value)]:
                names = distributed.gather(_names(batch.samples))
                raise TrainingError(
                    f"step {step}: the gradient is {gradients[wrong[0]]} at losses {means} of {', '.join(names)};"
                    " lower the learning rate"
                )
            diagnosed: dict[str, float] = {}
            if config.diagnose_every and step % config.diagnose_every == 0:
                with torch.autocast(distributed.device.type, torch.bfloat16, enabled=bfloat16):
                    found = objective.diagnostics(collated, step / config.steps)
                if found:
                    stacked = torch.stack([value.detach().float() for value in found.values()])
                    diagnosed = dict(zip(found, distributed.mean(stacked), strict=True))
            rate = schedule.rate(step)
            optimizer.set_lr(rate)
            optimizer.step()
            step, cursor = step + 1, batch.cursor
            objective.after_step(step / config.steps)
            wall_s = time.monotonic() - started
            metrics = {
                "learning_rate": rate,
                **gradients,
                **{f"loss/{name}": value for name, value in means.items()},
                **diagnosed,
                "images_per_second": len(places) * distributed.size / wall_s,
                "wait/data": data_s / wall_s,
                "wait/teachers": max(0.0, teachers_s - data_s) / wall_s,
            }
            if log is not None:
                log.append(step - 1, metrics)
                kept = config.keep and step % config.keep == 0
                latest = step % config.checkpoint_every == 0 or step == config.steps
                if kept or latest:
                    seconds = time.monotonic() - began
                    log.sync()
                    checkpoint = _checkpoint(fingerprint, objective, optimizer, step, cursor, seconds)
                    # First what is kept: a run that goes on from its own checkpoint does not come by again.
                    if kept:
                        save_checkpoint(RunDir(run_dir.place(f"step-{step}")), checkpoint)
                    if latest:
                        save_checkpoint(run_dir, checkpoint)
            on_step(step, metrics)
    finally:
        # An error that is kept keeps this frame. With the workers' module in it their group would outlive its end, and
        # at the end of the process a thread of the group, asking for an interpreter that is gone, would abort it.
        del module
        if log is not None:
            log.__exit__(None, None, None)
    objective.eval()
    return Trained(step, cursor, seconds)


class _Timed(Iterator[Item]):
    """The items of an iterable, and how long the caller has waited for them."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items, self.seconds = iter(items), 0.0

    def __next__(self) -> Item:
        started = time.monotonic()
        try:
            return next(self._items)
        finally:
            self.seconds += time.monotonic() - started


def _places(inputs: TrainInputs, distributed: Distributed) -> tuple[int, ...]:
    """Return where in the global batch this worker's samples stand: labelled ones come first, there and here."""
    labelled = distributed.share(inputs.labelled, "labelled images")
    unlabelled = distributed.share(inputs.unlabelled, "images without labels")
    rank, first = distributed.rank, inputs.labelled
    return (
        *range(rank * labelled, (rank + 1) * labelled),
        *range(first + rank * unlabelled, first + (rank + 1) * unlabelled),
    )


def _check_parts(inputs: TrainInputs, accumulate: int, distributed: Distributed) -> None:
    for total, what in ((inputs.labelled, "labelled images"), (inputs.unlabelled, "images without labels")):
        if total // distributed.size % accumulate:
            raise TrainingError(
                f"{total // distributed.size} {what} of a worker cannot be cut into {accumulate} parts (accumulate);"
                f" give a multiple of {accumulate}"
            )


def _parts(
    batch: Batch, targets: Mapping[str, Any], chance: Chance, count: int
) -> Iterator[tuple[Batch, Mapping[str, Any], Chance]]:
    """Yield what is computed at once, with as many labelled images in each part."""
    if count == 1:
        yield batch, targets, chance
        return
    labelled, others = batch.labelled // count, (len(batch.samples) - batch.labelled) // count
    for number in range(count):
        first, second = number * labelled, batch.labelled + number * others
        chosen = [*range(first, first + labelled), *range(second, second + others)]
        some = {teacher: target[chosen] for teacher, target in targets.items()}
        yield batch.subset(chosen), some, chance.subset(chosen)


def _step_seed(seed: int, step: int, rank: int) -> int:
    return (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) % 2**63


@torch.no_grad()
def _nonfinite_samples(
    name: str,
    objective: Objective,
    batch: Batch,
    targets: Mapping[str, Any],
    chance: Chance,
    progress: float,
    bfloat16: bool,
) -> list[Sample]:
    """Return the samples which, each on its own, have a loss `name` that is not finite."""
    guilty: list[int] = []
    for place in range(len(batch.samples)):
        # Losses divide by what is labelled, so a sample without labels is tried beside the first labelled one.
        chosen = [0, place] if batch.labelled <= place and batch.labelled else [place]
        some = {teacher: target[chosen] for teacher, target in targets.items()}
        alone = objective.collate(batch.subset(chosen), some, chance.subset(chosen))
        with torch.autocast(next(objective.parameters()).device.type, torch.bfloat16, enabled=bfloat16):
            losses: dict[str, Loss] = objective(alone, progress)
        if name in losses and not bool(torch.isfinite(losses[name].value)) and (len(chosen) == 1 or 0 not in guilty):
            guilty.append(place)
    return [batch.samples[i] for i in guilty]


def _checkpoint(
    fingerprint: dict[str, Plain],
    objective: Objective,
    optimizer: MuonAdamW,
    step: int,
    cursor: int,
    seconds: float,
) -> Checkpoint:
    return Checkpoint(
        fingerprint=fingerprint,
        config=objective.config(),
        step=step,
        cursor=cursor,
        seconds=seconds,
        objective=objective.state_dict(),
        optimizer=optimizer.state_dict(),
    )


def _names(samples: Sequence[Sample]) -> list[str]:
    return [str(sample.key) for sample in samples]
