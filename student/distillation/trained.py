"""The methods that a student was trained with, from its run: to show and to measure what they have learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from student.config import StudentError
from student.detector import Student
from student.distillation.detector_teacher import DetectorTeacher
from student.distillation.imitation import Imitation, ImitationConfig
from student.distillation.lgd import LGD, LGDConfig
from student.distillation.objective import DetectionObjective, LossWeights
from student.distillation.reviewkd import ReviewKD, ReviewKDConfig
from training.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainedMethods:
    """What a run has of the methods that can be shown, on the CPU, in eval mode.

    fgfi: whether the student was trained with it
    detectors: detector teachers by their names, those of the run or some of them
    reviewkd: with its fusions for these detectors; None: it was not trained with one of them
    """

    fgfi: bool = False
    lgd: LGD | None = None
    reviewkd: ReviewKD | None = None
    detectors: Mapping[str, DetectorTeacher] = field(default_factory=dict)

    @staticmethod
    def read(student: Student, checkpoint: Checkpoint, detectors: Mapping[str, DetectorTeacher]) -> TrainedMethods:
        """Return the methods of the run that the student and the checkpoint are of."""
        return TrainedMethods(
            fgfi=bool(_state(checkpoint, "fgfi")),
            lgd=read_lgd(student, checkpoint) if _state(checkpoint, "lgd") else None,
            reviewkd=_read_reviewkd(student, checkpoint, detectors),
            detectors=detectors,
        )


def read_lgd(student: Student, checkpoint: Checkpoint) -> LGD:
    """Return the LGD that the student of the checkpoint was trained with, on the CPU, in eval mode.

    The detection losses on its maps have the weights that they have by default: what it makes does not depend on them.

    Raises StudentError where it was trained without.
    """
    state = _state(checkpoint, "lgd")
    if not state:
        raise StudentError("expected a run of train.py with --distill lgd, got: one without")
    method = LGD(LGDConfig(**_options(checkpoint, "lgd", LGDConfig)), student.config, LossWeights())
    method.load_state_dict(state)
    return method.eval()


def read_objective(student: Student, checkpoint: Checkpoint) -> DetectionObjective:
    """Return detection's and imitation's losses of the run that the student and the checkpoint are of, in eval mode.

    They are weighted as in the training. Imitation has its defaults where the student was trained without. Losses of
    other methods are left out.
    """
    prefix = "class_weights."
    class_weights = {
        name.removeprefix(prefix): value
        for name, value in _state(checkpoint, "imitation").items()
        if name.startswith(prefix)
    }
    imitation = Imitation(ImitationConfig(**_options(checkpoint, "imitation", ImitationConfig)), class_weights)
    weights = LossWeights(**_options(checkpoint, "weights", LossWeights))
    return DetectionObjective(student, weights, {"imitation": imitation}).eval()


def _read_reviewkd(
    student: Student, checkpoint: Checkpoint, detectors: Mapping[str, DetectorTeacher]
) -> ReviewKD | None:
    state = _state(checkpoint, "reviewkd")
    known = {name: detectors[name] for name in detectors if any(key.startswith(f"fusions.{name}.") for key in state)}
    if not known:
        return None
    # Weights of losses change nothing of what it is.
    method = ReviewKD(ReviewKDConfig(), student.config, known)
    method.load_state_dict({key: value for key, value in state.items() if key.split(".")[1] in known})
    return method.eval()


def _state(checkpoint: Checkpoint, method: str) -> dict[str, Tensor]:
    """Return a method's state dict; {} where the student was trained without it."""
    prefix = f"methods.{method}."
    return {name.removeprefix(prefix): v for name, v in checkpoint.objective.items() if name.startswith(prefix)}


def _options(checkpoint: Checkpoint, prefix: str, config: type[Any]) -> dict[str, Any]:
    """Return those options of a configuration that the run's fingerprint has, below a prefix."""
    names = {option.name: f"{prefix}.{option.name}" for option in fields(config)}
    return {name: checkpoint.fingerprint[key] for name, key in names.items() if key in checkpoint.fingerprint}
