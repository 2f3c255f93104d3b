"""A run on disk: the whole of it as of one step, or nothing."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
import zlib
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from training.errors import TrainingError
from training.fingerprint import Plain
from training.run_dir import RunDir

CHECKPOINT_FILE = "checkpoint.pt"
# What reading a damaged archive may end in, beside what reading another one does.
_DAMAGES = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, LookupError, pickle.UnpicklingError)
# The fields by which version 0.1 kept a student's run, and a teacher's.
_OLD_STUDENT = {"identity", "config", "step", "seconds", "lesson", "optimizer"}
_OLD_TEACHER = {"identity", "step", "samples_read", "seconds", "model", "optimizer", "rng", "rng_cuda"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """All that a run needs to go on as if nothing had happened, and all that is needed to use its product.

    fingerprint: what decides about the run's result; another run must not continue it
    config: the product's, as JSON
    step: steps done. Every random number follows from it.
    cursor: where the stream of batches goes on
    seconds: time spent training, over all interruptions
    objective, optimizer: state dicts
    resumable: False for a run of version 0.1, whose product alone can be used
    """

    fingerprint: dict[str, Plain]
    config: str
    step: int
    cursor: int
    seconds: float
    objective: dict[str, Tensor]
    optimizer: dict[str, Any]
    resumable: bool = True


def save_checkpoint(run_dir: RunDir, checkpoint: Checkpoint) -> None:
    """Replace the run's checkpoint; it is there completely, or the one before is."""
    content = io.BytesIO()
    torch.save({item.name: getattr(checkpoint, item.name) for item in fields(Checkpoint)}, content)
    run_dir.write(CHECKPOINT_FILE, content.getvalue())


def load_checkpoint(run_dir: RunDir) -> Checkpoint | None:
    """Return the run's checkpoint, on the CPU, or None where there is none; raises TrainingError for a damaged one."""
    content = run_dir.read(CHECKPOINT_FILE)
    if content is None:
        return None
    try:
        # torch itself compares no checksum: damaged weights would be loaded as they are.
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if (damaged := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"bad checksum of {damaged}")
        values = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return _from_version_0_1(values) or Checkpoint(**values)
    except (*_DAMAGES, TypeError, ValueError) as error:
        problem = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TrainingError(
            f"{run_dir.place(CHECKPOINT_FILE)}: not a training checkpoint: {problem}; delete it to start again"
        ) from error


def _from_version_0_1(values: dict[str, Any]) -> Checkpoint | None:
    if values.keys() not in (_OLD_STUDENT, _OLD_TEACHER):
        return None
    return Checkpoint(
        fingerprint=values["identity"],
        config=values.get("config", "{}"),
        step=values["step"],
        cursor=values.get("samples_read", values["step"]),
        seconds=values["seconds"],
        objective=values["lesson"] if "lesson" in values else values["model"],
        optimizer={},
        resumable=False,
    )
