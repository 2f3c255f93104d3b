"""The student of a training run."""

from __future__ import annotations

from student.config import StudentConfig, StudentError
from student.detector import Student
from student.state_dict_adapter import adapt_names
from training.checkpoint import CHECKPOINT_FILE, Checkpoint, load_checkpoint
from training.run_dir import RunDir

_STUDENT = "student."


def read_student(url: str) -> tuple[Student, Checkpoint]:
    """Return the student of the run at `url`, on the CPU, in eval mode, and the checkpoint it is from.

    Raises StudentError where there is none or its weights do not fit, TrainingError where the checkpoint is damaged.
    """
    run_dir = RunDir(url)
    checkpoint = load_checkpoint(run_dir)
    place = run_dir.place(CHECKPOINT_FILE)
    if checkpoint is None:
        raise StudentError(f"{place}: no such checkpoint; give the folder that a training wrote to")
    weights = {
        name.removeprefix(_STUDENT): value for name, value in checkpoint.objective.items() if name.startswith(_STUDENT)
    }
    if not weights:
        raise StudentError(f"{place}: not a student's checkpoint; give the folder that train.py wrote to")
    student = Student(StudentConfig.from_json(checkpoint.config))
    try:
        student.load_state_dict(adapt_names(weights))
    except RuntimeError as error:
        raise StudentError(f"the weights do not fit the configuration beside them: {error}") from error
    return student.eval(), checkpoint
