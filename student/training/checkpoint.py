"""A student and its training on disk, as of one step."""

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

from student.config import StudentConfig, StudentError
from student.detector import Student
from student.training.folder import RunFolder
from teachers.training.checkpoint import Plain

CHECKPOINT_FILE, HISTORY_FILE = "checkpoint.pt", "history.jsonl"
_STUDENT = "student."
# What reading a damaged archive may end in, beside what reading another one does.
_DAMAGES = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, LookupError, pickle.UnpicklingError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """All that a run needs to go on as if nothing had happened, and all that is needed to use its student.

    identity: the run's settings; another run must not continue it
    config: the student's, as JSON
    step: steps done. The loader's cursor and every generator follow from it.
    seconds: time spent training, over all interruptions
    lesson, optimiser: state dicts
    """

    identity: dict[str, Plain]
    config: str
    step: int
    seconds: float
    lesson: dict[str, Tensor]
    optimiser: dict[str, Any]

    def student(self) -> Student:
        """Return the student as it was, on the CPU, in eval mode; raises StudentError where the weights do not fit."""
        student = Student(StudentConfig.from_json(self.config))
        weights = {name[len(_STUDENT) :]: value for name, value in self.lesson.items() if name.startswith(_STUDENT)}
        try:
            student.load_state_dict(weights)
        except RuntimeError as error:
            raise StudentError(f"the weights do not fit the configuration beside them: {error}") from error
        return student.eval()


def save_checkpoint(folder: RunFolder, checkpoint: Checkpoint) -> None:
    """Replace the run's checkpoint; it is there completely, or the one before is."""
    content = io.BytesIO()
    torch.save({item.name: getattr(checkpoint, item.name) for item in fields(Checkpoint)}, content)
    folder.write(CHECKPOINT_FILE, content.getvalue())


def load_checkpoint(folder: RunFolder) -> Checkpoint | None:
    """Return the run's checkpoint, on the CPU, or None where there is none; raises StudentError where it is damaged."""
    content = folder.read(CHECKPOINT_FILE)
    if content is None:
        return None
    try:
        # torch itself compares no checksum: damaged weights would be loaded as they are.
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if (damaged := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"bad checksum of {damaged}")
        return Checkpoint(**torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
    except (*_DAMAGES, TypeError, ValueError) as error:
        problem = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StudentError(
            f"{folder.place(CHECKPOINT_FILE)}: not a training checkpoint: {problem}; delete it to start again"
        ) from error


def read_student(url: str) -> tuple[Student, Checkpoint]:
    """Return the student of the run at `url`, in eval mode, and the checkpoint it is from; raises StudentError."""
    folder = RunFolder(url)
    checkpoint = load_checkpoint(folder)
    if checkpoint is None:
        raise StudentError(
            f"{folder.place(CHECKPOINT_FILE)}: no such checkpoint; give the folder that a training wrote to"
        )
    return checkpoint.student(), checkpoint
