"""A training run on disk: the whole of it as of one step, or nothing."""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.errors import TrainingError

Plain = str | int | float | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """All that a run needs to go on as if nothing had happened.

    identity: what the run was started with; another run must not continue it
    step: steps done
    samples_read: samples taken from the stream so far, where the next batch starts
    seconds: time spent training, over all interruptions
    model, optimiser: state dicts
    rng: state of torch's generator; rng_cuda: that of the GPU that it trains on
    """

    identity: dict[str, Plain]
    step: int
    samples_read: int
    seconds: float
    model: dict[str, Tensor]
    optimiser: dict[str, Any]
    rng: Tensor
    rng_cuda: list[Tensor]


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Replace the file by `checkpoint`. Whenever the process or the machine dies, the old or the new one is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    with unfinished.open("wb") as file:
        torch.save({item.name: getattr(checkpoint, item.name) for item in fields(Checkpoint)}, file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load_checkpoint(path: Path) -> Checkpoint | None:
    """Return the checkpoint, on the CPU, or None where there is none. Raises TrainingError where it cannot be read."""
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
        return Checkpoint(**values)
    except FileNotFoundError:
        return None
    except (pickle.UnpicklingError, RuntimeError, EOFError, TypeError, OSError) as error:
        problem = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TrainingError(f"{path}: not a training checkpoint: {problem}; delete it to start again") from error


def check_identity(path: Path | str, found: dict[str, Plain], expected: dict[str, Plain]) -> None:
    """Raise TrainingError unless the checkpoint at `path` is of the run that is to be continued."""
    differing = [
        f"{name} {found.get(name)} instead of {expected.get(name)}"
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    ]
    if differing:
        raise TrainingError(
            f"{path}: a run with other settings is under way here: {', '.join(differing)};"
            " repeat its settings to continue it, or give another folder"
        )
