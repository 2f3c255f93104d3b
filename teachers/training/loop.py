"""The training loop that all teachers share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from datalake.sample import Sample
from teachers.training.batches import labelled_batches
from teachers.training.checkpoint import Checkpoint, Plain, check_identity, load_checkpoint, save_checkpoint
from teachers.training.history import History
from training.errors import TrainingError
from training.optimizer import MuonAdamW, build_optimizer
from training.precision import Precision, uses_bfloat16
from training.schedule import Schedule

CHECKPOINT_FILE, HISTORY_FILE = "checkpoint.pt", "history.jsonl"


class Task(Protocol):
    """A network and what it is to learn."""

    @property
    def network(self) -> nn.Module:
        """The network to train."""
        ...

    def hidden_weights(self) -> list[nn.Parameter]:
        """Return the weights that Muon may turn (`training.optimizer`); AdamW turns all others."""
        ...

    def is_labelled(self, sample: Sample) -> bool:
        """Return whether there is anything to learn from the sample."""
        ...

    def losses(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Return the scalar losses of a batch by name; their sum is minimised. Randomness is torch's own generator."""
        ...


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long and how fast."""

    # Optimiser steps in all.
    steps: int
    # Labelled samples per step.
    batch: int
    # The highest learning rate, reached after the warm-up; from there half a cosine leads down.
    learning_rate: float
    # Hidden layers are turned by Muon, at so many times that rate; 0: by AdamW, as all else is.
    muon: float = 2.0
    # Share of the steps in which the rate rises.
    warmup: float = 0.1
    # Decay of weights per step, times the learning rate.
    weight_decay: float = 0.02
    # Gradients are scaled down to this L2 norm.
    max_gradient_norm: float = 10.0
    # bfloat16 is autocast, the weights stay float32; auto takes it where the hardware has it.
    precision: Precision = "auto"
    # Steps from one checkpoint to the next.
    checkpoint_every: int = 50


@dataclass(frozen=True, slots=True)
class Trained:
    """What a finished loop has done, over all interruptions."""

    steps: int
    samples_read: int
    seconds: float

    def figures(self) -> dict[str, float]:
        """Return `training/steps`, `training/samples_read` and `training/seconds`, for the card."""
        return {f"training/{name}": float(value) for name, value in asdict(self).items()}


def identity_of(course: Any) -> dict[str, Plain]:
    """Return the settings in a configuration, a dataclass, that decide what it leads to; parts as `loop.steps`."""
    return {name: value for name, value in _flat(asdict(course)).items() if not name.endswith("checkpoint_every")}


def train(
    task: Task,
    config: LoopConfig,
    stream: Callable[[int], Iterable[Sample]],
    folder: Path,
    *,
    device: torch.device,
    identity: dict[str, Plain],
    epoch_samples: int,
    seed: int,
    progress: Callable[[int, int], None],
) -> Trained:
    """Train `task.network` for `config.steps` steps, from the checkpoint in `folder` if there is one.

    stream: returns the samples from a given one on, for ever, always in the same order
    identity: settings of the run; a checkpoint of other settings raises TrainingError
    progress: called with steps done and steps in all

    A run that was killed and started again does the same steps, on a CPU to the last bit. Raises TrainingError where
    a loss or a gradient stops being finite; the last checkpoint is of before that.
    """
    bfloat16 = uses_bfloat16(config.precision, device)
    identity = {**identity, "bfloat16": bfloat16}
    warmup_steps = round(config.warmup * config.steps)
    schedule = Schedule(peak=config.learning_rate, steps=config.steps, warmup_steps=warmup_steps)
    network = task.network
    optimizer = build_optimizer(
        network, task.hidden_weights(), muon_lr_factor=config.muon, weight_decay=config.weight_decay, bfloat16=bfloat16
    )
    torch.manual_seed(seed)
    step, samples_read, seconds = 0, 0, 0.0
    path = folder / CHECKPOINT_FILE
    if (checkpoint := load_checkpoint(path)) is not None:
        check_identity(path, checkpoint.identity, identity)
        step, samples_read, seconds = checkpoint.step, checkpoint.samples_read, checkpoint.seconds
        network.load_state_dict(checkpoint.model)
        optimizer.load_state_dict(checkpoint.optimiser)
        torch.set_rng_state(checkpoint.rng)
        if device.type == "cuda" and checkpoint.rng_cuda:
            torch.cuda.set_rng_state(checkpoint.rng_cuda[0], device)
    network.train()
    began = time.monotonic() - seconds
    progress(step, config.steps)
    batches = labelled_batches(
        stream(samples_read), task.is_labelled, config.batch, start=samples_read, patience=epoch_samples
    )
    with History(folder / HISTORY_FILE, step) as history:
        while step < config.steps:
            batch = next(batches)
            rate = schedule.rate(step)
            losses = _losses(task, batch.samples, step, device, bfloat16)
            norm = _descend(task.network, optimizer, losses, rate, config.max_gradient_norm)
            values = {name: float(loss.detach()) for name, loss in losses.items()}
            if not math.isfinite(norm):
                raise TrainingError(
                    f"step {step}: the gradient is {norm} at losses {values} of {_names(batch.samples)};"
                    " lower the learning rate"
                )
            history.append(step, {"learning_rate": rate, "gradient_norm": norm, **values})
            step += 1
            if step % config.checkpoint_every == 0 or step == config.steps:
                history.sync()
                seconds = time.monotonic() - began
                samples_read = batch.samples_read
                save_checkpoint(
                    path,
                    Checkpoint(
                        identity=identity,
                        step=step,
                        samples_read=samples_read,
                        seconds=seconds,
                        model=network.state_dict(),
                        optimiser=optimizer.state_dict(),
                        rng=torch.get_rng_state(),
                        rng_cuda=[torch.cuda.get_rng_state(device)] if device.type == "cuda" else [],
                    ),
                )
            progress(step, config.steps)
    network.eval()
    return Trained(step, samples_read, seconds)


def _losses(
    task: Task, samples: Sequence[Sample], step: int, device: torch.device, bfloat16: bool
) -> dict[str, Tensor]:
    """Return the losses; raises TrainingError where one is not finite, with the samples that it comes from.

    Norms over the batch spread one sample's NaN to all the others, so each is tried on its own. Where none stands out,
    all are named.
    """

    def of(chosen: Sequence[Sample]) -> dict[str, Tensor]:
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            return task.losses(chosen)

    losses = of(samples)
    for name, loss in losses.items():
        if not bool(torch.isfinite(loss)):
            guilty = [sample for sample in samples if not bool(torch.isfinite(of([sample])[name]))]
            raise TrainingError(
                f"step {step}: loss {name!r} is {float(loss.detach())} at {_names(guilty or samples)};"
                " look at that sample, or lower the learning rate"
            )
    return losses


def _descend(
    network: nn.Module, optimizer: MuonAdamW, losses: Mapping[str, Tensor], rate: float, max_norm: float
) -> float:
    """Take a step down the sum of the losses, unless its gradient is not finite; return the gradient's norm."""
    optimizer.zero_grad()
    total: Tensor = torch.stack(list(losses.values())).sum()
    total.backward()
    norm = float(nn.utils.clip_grad_norm_(network.parameters(), max_norm))
    if math.isfinite(norm):
        optimizer.set_lr(rate)
        optimizer.step()
    return norm


def _names(samples: Sequence[Sample]) -> str:
    return ", ".join(str(s.key) for s in samples)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Plain]:
    flat: dict[str, Plain] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, str | int | float | None) else str(value)
    return flat
