"""What the trainings of all teachers share: their data, their folder, the call of the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from datalake.sample import Sample
from teachers.batches import labelled_batches
from teachers.card import TrainingData
from training.distributed import Distributed
from training.errors import TrainingError
from training.fingerprint import Plain, flatten
from training.loop import LoopConfig, TrainInputs, train
from training.objective import Batch, Objective
from training.optimizer import OptimizerConfig
from training.run_dir import RunDir
from training.versions import installed_versions


class SupervisedConfig(Protocol):
    """What the configurations of teachers, dataclasses, have in common."""

    @property
    def batch(self) -> int:
        """Labelled samples per step."""

    @property
    def optimizer(self) -> OptimizerConfig:
        """How fast."""

    @property
    def loop(self) -> LoopConfig:
        """How long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherData:
    """Samples to train on and to evaluate on, of different segments.

    endless: returns the training samples from a given one on, epoch after epoch, always in the same order
    epoch_samples: training samples in an epoch
    evaluation: returns the samples to evaluate on
    data: which frames are trained on
    """

    endless: Callable[[int], Iterable[Sample]]
    epoch_samples: int
    evaluation: Callable[[], Iterable[Sample]]
    data: TrainingData


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """Where and how a teacher is trained.

    folder: any fsspec URL, for the checkpoint, the log, and in the end the teacher
    fingerprint: what, besides the teacher's own configuration, a resumed run must share with this one
    progress: called with the stage, units done and units in all
    on_step: called with each step that is done and what was measured in it
    """

    folder: str
    seed: int
    fingerprint: dict[str, Plain]
    progress: Callable[[str, int, int, str], None]
    distributed: Distributed = field(default_factory=Distributed)
    on_step: Callable[[int, Mapping[str, float]], None] = lambda _step, _metrics: None

    @property
    def evaluates(self) -> bool:
        """Whether this worker evaluates the teacher and writes it: the first alone."""
        return self.distributed.rank == 0


def train_teacher(
    objective: Objective,
    config: SupervisedConfig,
    is_labelled: Callable[[Sample], bool],
    data: TeacherData,
    context: RunContext,
) -> dict[str, float]:
    """Train on the labelled samples of the data; return `training/steps`, `…/samples_read` and `…/seconds`.

    config: all of it but how often the loop keeps and measures something becomes part of the fingerprint

    Raises TrainingError before the first step where no sample of the evaluation has a label.
    """
    if not any(map(is_labelled, data.evaluation())):
        raise TrainingError(
            "no sample of the evaluation split has the labels that this teacher is compared with; name another split"
        )

    def batches(cursor: int) -> Iterator[Batch]:
        return labelled_batches(
            data.endless(cursor),
            is_labelled,
            config.batch,
            start=cursor,
            patience=data.epoch_samples,
            distributed=context.distributed,
        )

    fingerprint = flatten(config)
    for kept in ("checkpoint_every", "keep", "diagnose_every"):
        del fingerprint[f"loop.{kept}"]
    inputs = TrainInputs(
        batches=batches, labelled=config.batch, seed=context.seed, fingerprint={**fingerprint, **context.fingerprint}
    )
    steps = config.loop.steps

    def on_step(done: int, metrics: Mapping[str, float]) -> None:
        context.progress("train", done, steps, "steps")
        context.on_step(done, metrics)

    context.progress("train", 0, steps, "steps")
    trained = train(
        objective,
        config.loop,
        config.optimizer,
        inputs,
        RunDir(context.folder),
        distributed=context.distributed,
        on_step=on_step,
    )
    return {
        "training/steps": float(trained.steps),
        "training/samples_read": float(trained.cursor),
        "training/seconds": trained.seconds,
    }


def versions() -> dict[str, str]:
    """Return the versions of what decides over a teacher's metrics."""
    return installed_versions(("classroomnet", "torch", "torchvision", "numpy", "safetensors"))
